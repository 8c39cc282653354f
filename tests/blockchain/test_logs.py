"""Goal: no transfer is lost to an empty answer, none is believed that does not belong, and no question is wasted."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from app.blockchain.blocks import BlockRun, fetch_run
from app.blockchain.errors import InvalidAnswerError
from app.blockchain.headers import Header
from app.blockchain.logs import bloom_mask, fetch_logs
from app.blockchain.rpc import Endpoint
from app.blockchain.wire import TRANSFER_TOPIC, RawBlock, RawLog
from tests.support.anvil import Anvil
from tests.support.node import Call, ProxyNode, ScriptedNode, answered, calls_of, hides_payments, result

PAYEE = "0x" + "11" * 20
Change = Callable[[Call, Call], Call]


def raw(address: str) -> bytes:
    return bytes.fromhex(address[2:])


@asynccontextmanager
async def asking(*urls: str) -> AsyncIterator[list[Endpoint]]:
    endpoints = [Endpoint(url) for url in urls]
    try:
        yield endpoints
    finally:
        for endpoint in endpoints:
            await endpoint.close()


def no_logs(call: Call, answer: Call) -> Call:
    return answer | {"result": []} if call["method"] == "eth_getLogs" else answer


def paid(run: BlockRun) -> list[int]:
    return [transfer.amount_units for transfer in run.transfers_to({raw(PAYEE)})]


@pytest.fixture
async def token(anvil: Anvil) -> str:
    return await anvil.deploy("TestToken", "USD Coin", "USDC", 6)


@pytest.fixture
async def paid_blocks(anvil: Anvil, token: str) -> tuple[int, int]:
    """First and last of four blocks; the first and the third pay 5 and 7 tokens."""
    first = await anvil.block_number() + 1
    for units in (5, 7):
        await anvil.transact(token, "mint(address,uint256)", PAYEE, units)
        await anvil.mine()
        await anvil.mine()
    return first, first + 3


# --- blooms


async def test_the_mask_is_that_of_a_real_block(anvil: Anvil, token: str, paid_blocks: tuple[int, int]) -> None:
    bloom = int((await anvil.block(paid_blocks[0]))["logsBloom"], 16)
    zeros, payee = bytes(32), raw(PAYEE).rjust(32, b"\0")
    held = bloom_mask(raw(token), raw(TRANSFER_TOPIC), zeros, payee)
    assert bloom == held  # of exactly these items, and no other bit
    absent = bloom_mask(raw("0x" + "22" * 20))
    assert bloom & absent != absent
    assert int((await anvil.block(paid_blocks[0] + 1))["logsBloom"], 16) == 0


def test_a_mask_has_one_to_three_bits_of_2048_for_each_item() -> None:
    for seed in range(200):
        mask = bloom_mask(seed.to_bytes(20, "big"))
        assert 1 <= mask.bit_count() <= 3
        assert mask < 1 << 2048
    assert bloom_mask() == 0


# --- asked again


@pytest.mark.parametrize("by_range", [True, False], ids=["range", "hash"])
async def test_an_empty_answer_that_the_bloom_contradicts_is_asked_again_of_the_second_endpoint_in_one_batch(
    anvil: Anvil, token: str, paid_blocks: tuple[int, int], by_range: bool
) -> None:
    async with (
        ProxyNode(anvil.url, no_logs) as liar,
        ProxyNode(anvil.url) as honest,
        asking(liar.url, honest.url) as [first, second],
    ):
        run = await fetch_run(first, *paid_blocks, [raw(token)], by_range, second)
        assert paid(run) == [5, 7]
        [batch] = honest.bodies
        assert [call["method"] for call in batch] == ["eth_getLogs"] * 2
        hashes = [(await anvil.block(number))["hash"] for number in (paid_blocks[0], paid_blocks[0] + 2)]
        assert [call["params"][0]["blockHash"] for call in batch] == hashes


async def test_without_a_second_endpoint_the_same_one_is_asked_again(
    anvil: Anvil, token: str, paid_blocks: tuple[int, int]
) -> None:
    def no_ranges(call: Call, answer: Call) -> Call:
        return no_logs(call, answer) if "fromBlock" in str(call) else answer

    async with ProxyNode(anvil.url, no_ranges) as node, asking(node.url) as [only]:
        assert paid(await fetch_run(only, *paid_blocks, [raw(token)], True)) == [5, 7]
        assert len(node.calls("eth_getLogs")) == 3


async def test_a_part_of_the_logs_is_completed_and_nothing_comes_twice(
    anvil: Anvil, token: str, paid_blocks: tuple[int, int]
) -> None:
    other = await anvil.deploy("TestToken", "Other", "OTH", 6)
    for each in (token, other):
        await anvil.transact(each, "mint(address,uint256)", PAYEE, 3)
    number = await anvil.mine()

    def half(call: Call, answer: Call) -> Call:
        kept = [log for log in answer["result"] if log["address"] != token.lower()] if "Logs" in call["method"] else 0
        return answer | {"result": kept} if "Logs" in call["method"] else answer

    async with (
        ProxyNode(anvil.url, half) as liar,
        asking(liar.url, anvil.url) as [first, second],
    ):
        run = await fetch_run(first, number, number, [raw(token), raw(other)], True, second)
        assert sorted(transfer.asset for transfer in run.transfers_to({raw(PAYEE)})) == sorted((raw(token), raw(other)))


async def test_a_second_empty_answer_is_believed(anvil: Anvil, token: str, paid_blocks: tuple[int, int]) -> None:
    async with (
        ProxyNode(anvil.url, no_logs) as liar,
        ProxyNode(anvil.url, no_logs) as another,
        asking(liar.url, another.url) as [first, second],
    ):
        assert paid(await fetch_run(first, *paid_blocks, [raw(token)], True, second)) == []
        assert len(another.bodies) == 1
        assert len(liar.calls("eth_getLogs")) == 1


async def test_a_dead_second_endpoint_costs_nothing(anvil: Anvil, token: str, paid_blocks: tuple[int, int]) -> None:
    def no_ranges(call: Call, answer: Call) -> Call:
        return no_logs(call, answer) if "fromBlock" in str(call) else answer

    async with (
        ProxyNode(anvil.url, no_ranges) as node,
        asking(node.url, "http://127.0.0.1:9") as [first, second],
    ):
        assert paid(await fetch_run(first, *paid_blocks, [raw(token)], True, second)) == [5, 7]


@pytest.mark.parametrize("zeros", ["0x" + "00" * 256, "0x0", "0x"])
async def test_a_bloom_of_zeros_never_asks(anvil: Anvil, token: str, paid_blocks: tuple[int, int], zeros: str) -> None:
    def zero_bloom(call: Call, answer: Call) -> Call:
        if call["method"] == "eth_getBlockByNumber":
            return answer | {"result": answer["result"] | {"logsBloom": zeros}}
        return no_logs(call, answer)

    async with (
        ProxyNode(anvil.url, zero_bloom) as node,
        ProxyNode(anvil.url) as unasked,
        asking(node.url, unasked.url) as [first, second],
    ):
        assert paid(await fetch_run(first, *paid_blocks, [raw(token)], True, second)) == []
        assert unasked.bodies == []
        assert len(node.calls("eth_getLogs")) == 1


async def test_blooms_without_the_token_never_ask(anvil: Anvil, token: str, paid_blocks: tuple[int, int]) -> None:
    other = await anvil.deploy("TestToken", "Other", "OTH", 6)
    async with ProxyNode(anvil.url) as node, asking(node.url) as [only]:
        assert paid(await fetch_run(only, *paid_blocks, [raw(other)], True)) == []
        assert len(node.calls("eth_getLogs")) == 1


async def test_with_logs_and_blooms_gone_nothing_is_seen(
    anvil: Anvil, token: str, paid_blocks: tuple[int, int]
) -> None:
    """What is left to the backup pass."""
    async with ProxyNode(anvil.url, hides_payments) as node, asking(node.url) as [only]:
        assert paid(await fetch_run(only, *paid_blocks, [raw(token)], True)) == []


# --- refused

TOKEN = "0x" + "aa" * 20
HASHES = ["0x" + "01" * 32, "0x" + "02" * 32]


def log(**changed: Any) -> dict[str, Any]:
    return {
        "address": TOKEN,
        "topics": [TRANSFER_TOPIC, "0x" + "00" * 32, "0x" + PAYEE[2:].rjust(64, "0")],
        "data": "0x" + "5".rjust(64, "0"),
        "blockNumber": "0x1",
        "blockHash": HASHES[0],
        "transactionHash": "0x" + "09" * 32,
        "transactionIndex": "0x0",
        "logIndex": "0x0",
    } | changed


async def logs_of(answer: Any, blooms: Sequence[str] = ("0x0", "0x0"), by_range: bool = True) -> list[RawLog]:
    """What is believed of a node that answers each query with `answer`."""
    headers = [Header(1, raw(HASHES[0]), bytes(32), 1), Header(2, raw(HASHES[1]), raw(HASHES[0]), 2)]
    blocks = [
        RawBlock(hex(h.number), "0x" + h.hash.hex(), "0x" + h.parent_hash.hex(), "0x1", [], bloom)
        for h, bloom in zip(headers, blooms, strict=True)
    ]

    def script(payload: Any) -> web.Response:
        return answered(payload, lambda _: answer)

    async with ScriptedNode(script) as node, asking(node.url) as [only]:
        return await fetch_logs(only, None, headers, blocks, [raw(TOKEN)], by_range)


async def test_a_log_that_fits_is_believed() -> None:
    assert [each.data[-1] for each in await logs_of([log()])] == ["5"]
    assert len(await logs_of([log(blockNumber="0x01")])) == 1  # an odd way to write it is no lie


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(log(blockHash="0x" + "07" * 32), id="an unknown block"),
        pytest.param(log(blockHash=HASHES[1]), id="another block's hash"),
        pytest.param(log(blockNumber="0x2"), id="another block's number"),
        pytest.param(log(blockNumber="0x7"), id="a number outside"),
        pytest.param(log(address="0x" + "bb" * 20), id="another token"),
        pytest.param(log(topics=["0x" + "33" * 32]), id="another topic"),
        pytest.param(log(topics=[]), id="no topic"),
        pytest.param(log(removed=True), id="removed"),
    ],
)
@pytest.mark.parametrize("by_range", [True, False], ids=["range", "hash"])
async def test_a_log_that_was_not_asked_for_is_refused(wrong: dict[str, Any], by_range: bool) -> None:
    with pytest.raises(InvalidAnswerError, match="a log of"):
        await logs_of([wrong], by_range=by_range)


async def test_no_list_at_all_is_refused() -> None:
    with pytest.raises(InvalidAnswerError, match="null"):
        await logs_of(None)


async def test_transfers_of_an_erc_721_are_left_out() -> None:
    four = [*log()["topics"], "0x" + "00" * 31 + "07"]
    assert await logs_of([log(topics=four, data="0x")]) == []


async def test_what_a_second_answer_holds_is_checked_too() -> None:
    bloom = hex(bloom_mask(raw(TOKEN), raw(TRANSFER_TOPIC)))
    answers = iter([[], [log(blockHash="0x" + "07" * 32)]])

    def script(payload: Any) -> web.Response:
        made = [result(call, next(answers)) for call in calls_of(payload)]
        return web.json_response(made if isinstance(payload, list) else made[0])

    headers = [Header(1, raw(HASHES[0]), bytes(32), 1)]
    blocks = [RawBlock("0x1", HASHES[0], "0x" + "00" * 32, "0x1", [], bloom)]
    async with ScriptedNode(script) as node, asking(node.url) as [only]:
        with pytest.raises(InvalidAnswerError, match="not of the block"):
            await fetch_logs(only, None, headers, blocks, [raw(TOKEN)], True)

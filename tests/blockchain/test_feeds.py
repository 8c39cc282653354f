"""Goal: a price feed's last round is read exactly, and one that is no price is told apart, without spoiling others."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from app.blockchain.errors import NodeError
from app.blockchain.feeds import FeedRound, fetch_rounds
from app.blockchain.rpc import Endpoint
from app.core.evm import to_bytes20
from tests.support.anvil import Anvil
from tests.support.node import ProxyNode, ScriptedNode, answered, calls_of

TOLD_AT = 1_795_000_000


@pytest.fixture
async def endpoint(anvil: Anvil) -> AsyncIterator[Endpoint]:
    it = Endpoint(anvil.url)
    yield it
    await it.close()


async def deploy_feed(
    anvil: Anvil, decimals: int, answer: int, updated_at: int = TOLD_AT, round_id: int = 7, answered_in: int = 7
) -> bytes:
    feed = await anvil.deploy("PriceFeed", decimals)
    call = "set(uint80,int256,uint256,uint80)"
    await anvil.wait_for_receipt(await anvil.transact(feed, call, round_id, answer, updated_at, answered_in))
    return to_bytes20(feed)


async def test_rounds_are_read_exactly_in_one_batch(anvil: Anvil) -> None:
    feeds = [
        await deploy_feed(anvil, 8, 2_512_34567890),
        await deploy_feed(anvil, 18, 1),
        await deploy_feed(anvil, 0, 2**255 - 1, round_id=2**80 - 1, answered_in=2**80 - 1),
    ]
    async with ProxyNode(anvil.url) as node:
        endpoint = Endpoint(node.url)
        found = await fetch_rounds(endpoint, feeds)
        await endpoint.close()
    assert found == {
        feeds[0]: FeedRound(Decimal("2512.34567890"), TOLD_AT),
        feeds[1]: FeedRound(Decimal("0.000000000000000001"), TOLD_AT),
        feeds[2]: FeedRound(Decimal(2**255 - 1), TOLD_AT),
    }
    assert [len(calls_of(body)) for body in node.bodies] == [6]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"answer": 0}, "its answer is 0"),
        ({"answer": -5}, "its answer is -5"),
        ({"answer": 5, "updated_at": 0}, "its round is not complete"),
        ({"answer": 5, "updated_at": 2**200}, "its round is not complete"),
        ({"answer": 5, "answered_in": 6}, "its answer was carried over from an earlier round"),
        ({"answer": 5, "decimals": 78}, "it has 78 decimals"),
    ],
    ids=str,
)
async def test_a_round_that_is_no_price_says_why(
    anvil: Anvil, endpoint: Endpoint, values: dict[str, int], reason: str
) -> None:
    feed = await deploy_feed(anvil, **({"decimals": 8} | values))
    assert await fetch_rounds(endpoint, [feed]) == {feed: reason}


async def test_a_contract_that_is_no_feed_spoils_no_other(anvil: Anvil, endpoint: Endpoint) -> None:
    good = await deploy_feed(anvil, 8, 5)
    empty, token = bytes(19) + b"\x77", to_bytes20(await anvil.deploy("TestToken", "USD Coin", "USDC", 6))
    unborn = to_bytes20(await anvil.deploy("PriceFeed", 8))  # reverts: it has no round yet
    found = await fetch_rounds(endpoint, [empty, token, good, unborn])
    assert found[good] == FeedRound(Decimal("0.00000005"), TOLD_AT)
    assert found[empty] == "the contract is no price feed"
    assert "No data present" in str(found[unborn])
    assert isinstance(found[token], str)


@pytest.mark.parametrize("answer", [None, "0x", "0x" + "00" * 159, "0x" + "11" * 192, "nonsense"], ids=str)
async def test_a_node_that_answers_nonsense_gives_no_rate(answer: str | None) -> None:
    async with ScriptedNode(lambda payload: answered(payload, lambda _: answer)) as node:
        endpoint = Endpoint(node.url)
        try:
            found = await fetch_rounds(endpoint, [bytes(20)])
            assert found == {bytes(20): "the contract is no price feed"}, json.dumps(str(found))
        except NodeError:
            assert answer == "nonsense"
        await endpoint.close()

"""A chain is watched only while its node and chains.yaml agree; what does not is stopped with a clear message."""

from typing import Any
from unittest.mock import AsyncMock

import pytest

from app.blockchain.errors import FatalError
from app.core import limits
from app.core.errors import ChainUnavailable
from app.db.models import ChainState
from app.db.repositories import chains
from app.services.blockchain.chains import require_same_chain
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.watch import Watch
from tests.support.anvil import Anvil
from tests.support.node import Call, ProxyNode, result

NOWHERE = "0x000000000000000000000000000000000000dEaD"


async def test_a_good_chain_gets_its_cursor_at_the_head(watch: Watch, anvil: Anvil) -> None:
    state = await watch.state()
    head = await anvil.block()
    cursor = (state.last_scanned_block, "0x" + state.last_scanned_hash.hex(), state.first_block)
    assert cursor == (int(head["number"], 16), head["hash"], int(head["number"], 16))
    assert state.halt_code is None


async def test_checking_again_never_moves_the_cursor(watch: Watch) -> None:
    before = await watch.state()
    await watch.anvil.mine(5)
    check = await watch.prepare()
    assert check.problem is None
    assert (await watch.state()).last_scanned_block == before.last_scanned_block


async def test_of_two_processes_that_start_at_once_one_makes_the_cursor(
    opened: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second saw no cursor either, at a later block; had it left its header there, no step could ever pass it."""
    async with opened(prepared=False) as first, opened(prepared=False) as second:
        assert (await first.prepare()).problem is None
        payment = await first.create()
        await first.anvil.mine(2)
        with monkeypatch.context() as patch:
            patch.setattr(chains, "lock_state", AsyncMock(return_value=None))  # the first had not committed yet
            assert (await second.prepare()).problem is None
        await first.pay(payment)
        await first.anvil.mine(2)
        await first.scan()
        assert (await first.get(payment)).status == "detected"


async def test_headers_above_the_cursor_are_nobodys(watch: Watch) -> None:
    payment = await watch.create()
    state = await watch.state()
    number = state.last_scanned_block + 1
    async with watch.context.db.write() as session:
        row = {"number": number, "hash": b"\1" * 32, "parent_hash": b"\2" * 32, "time": state.last_scanned_time}
        await chains.insert_headers(session, [row | {"chain_id": watch.chain.chain_id}])
    assert (await watch.prepare()).problem is None
    await watch.pay(payment)
    await watch.mine_and_scan()
    assert (await watch.get(payment)).status == "detected"


async def test_another_chain_of_the_same_name_is_named(watch: Watch, opened: OpenWatch) -> None:
    async with Anvil(chain_id=31338) as node:
        await node.deploy("TestToken", "USD Coin", "USDC", 6)
        async with opened(prepared=False, rpc_urls=[node.url], chain_id=31338) as other:
            check = await other.prepare()
            with pytest.raises(ChainUnavailable):
                await other.create()
    assert check.problem == "'devnet' has chain id 31337 in the database"
    assert check.final
    assert (await watch.state()).halt_code is None


async def test_a_node_that_counts_time_in_milliseconds_is_left_for_another(opened: OpenWatch, anvil: Anvil) -> None:
    def milliseconds(call: Call, answer: Call) -> Call:
        if call["method"] != "eth_getBlockByNumber":
            return answer
        seconds = int(answer["result"]["timestamp"], 16)
        return result(call, answer["result"] | {"timestamp": hex(seconds * 1_000)})

    async with (
        ProxyNode(anvil.url, milliseconds) as node,
        opened(rpc_urls=[node.url, anvil.url], prepared=False) as watch,
    ):
        assert "seconds since 1970" in str((await watch.prepare()).problem)
        assert (await watch.prepare()).problem is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"chain_id": 1}, "has chain id 31337, chains.yaml says 1", id="chain id"),
        pytest.param({"tokens": {"USDC": NOWHERE}}, f"token USDC at {NOWHERE} does not answer", id="no such token"),
        pytest.param({"start_block": 1000}, "start_block 1000 is above the head 1", id="start block"),
    ],
)
async def test_a_mismatch_at_the_first_start_names_what_is_wrong(
    opened: OpenWatch, changed: dict[str, Any], message: str
) -> None:
    async with opened(prepared=False, **changed) as wrong:
        check = await wrong.prepare()
        assert check.problem is not None
        assert message in check.problem
        assert check.final
        assert await wrong.rows(ChainState) == []
        with pytest.raises(ChainUnavailable):
            await wrong.create()
        assert not (await wrong.step()).progressed


@pytest.mark.parametrize("wrong_part", ["chain id", "decimals"])
async def test_a_mismatch_stops_a_chain_that_ran_and_a_good_check_clears_it(
    watch: Watch, opened: OpenWatch, wrong_part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = await watch.create()
    await watch.pay(payment)
    await watch.anvil.mine()
    async with Anvil(chain_id=31338) as other_node:
        await other_node.deploy("TestToken", "USD Coin", "USDC", 6)
        changed = {"rpc_urls": [other_node.url]} if wrong_part == "chain id" else {"decimals": 18}
        async with opened(prepared=False, **changed) as wrong:
            check = await wrong.prepare()
    expected = {
        "chain id": "has chain id 31338, chains.yaml says 31337",
        "decimals": "token USDC has 6 decimals, chains.yaml says 18",
    }
    assert check.problem is not None
    assert check.problem.endswith(expected[wrong_part])
    state = await watch.state()
    assert (state.halt_code, state.halt_detail) == ("config", check.problem)

    outcome = await watch.step()
    assert not outcome.progressed
    assert (await watch.get(payment)).status == "pending"
    monkeypatch.setattr(limits, "WATCHED_AGE_S", 0.0)
    with pytest.raises(ChainUnavailable, match=expected[wrong_part]):
        await watch.create()

    assert (await watch.prepare()).problem is None
    state = await watch.state()
    assert (state.halt_code, state.halt_detail) == (None, None)
    await watch.scan()
    assert (await watch.get(payment)).status == "detected"


async def test_decimals_that_change_under_payments_are_refused(watch: Watch, opened: OpenWatch) -> None:
    """Another contract at the same address; amounts of old payments would mean something else."""
    await watch.create()
    usdc = watch.tokens["USDC"]
    other = await watch.anvil.deploy("TestToken", "USD Coin", "USDC", 18)
    await watch.anvil.rpc("anvil_setCode", usdc, await watch.anvil.rpc("eth_getCode", other, "latest"))
    async with opened(prepared=False, decimals=18) as changed:
        check = await changed.prepare()
    assert check.problem == "USDC had 6 decimals when payments were made, chains.yaml now says 18"
    assert check.final


async def test_a_node_that_cannot_be_reached_is_no_mismatch(watch: Watch, opened: OpenWatch) -> None:
    async with opened(rpc_urls=["http://127.0.0.1:9"], prepared=False) as dead:
        check = await dead.prepare()
    assert check.problem is not None
    assert not check.final
    assert (await watch.state()).halt_code is None


async def test_an_endpoint_that_another_task_refused_first_halts_the_chain_until_it_is_put_right(
    watch: Watch, opened: OpenWatch
) -> None:
    async with (
        Anvil(chain_id=31338) as other,
        ProxyNode(other.url) as node,
        opened(rpc_urls=[node.url], prepared=False) as wrong,
    ):
        [endpoint] = wrong.context.nodes.nodes(wrong.chain).endpoints
        with pytest.raises(FatalError):
            await require_same_chain(wrong.context, wrong.chain, endpoint)
        for _ in range(2):
            check = await wrong.prepare()
            assert (check.problem or "").endswith("has chain id 31338, chains.yaml says 31337")
        state = await watch.state()
        assert (state.halt_code, state.halt_detail) == ("config", check.problem)
        node.target = watch.anvil.url
        assert (await wrong.prepare()).problem is None
        assert (await watch.state()).halt_code is None

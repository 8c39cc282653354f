"""A chain is watched only while its node and chains.yaml agree; what does not is stopped with a clear message."""

from typing import Any

import pytest

from app.core.errors import ChainUnavailable
from app.db.models import ChainState
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.watch import Watch
from tests.support.anvil import Anvil

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
    watch: Watch, opened: OpenWatch, wrong_part: str
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

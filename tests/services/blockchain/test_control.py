"""Goal: an operator stops one chain, lets it go on, and has it read its blocks again: nothing is lost, credited twice,
expired or told for nothing, and what cannot be done safely is refused."""

from typing import Any

import pytest
from sqlalchemy import delete, update

from app.core import limits
from app.core.errors import ChainUnavailable, Conflict
from app.db.models import BlockHeader, ChainState, Event, Outflow, Transaction
from app.services.blockchain import control, scanner
from app.services.blockchain.backup import backup_pass
from app.services.views import PaymentView
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.sweeping import OpenSwept
from tests.services.blockchain.watch import Watch
from tests.support.anvil import Anvil

SHALLOW = {"depth": 2}


async def halt(watch: Watch, reason: str = "maintenance") -> bool:
    return await control.halt(watch.context, watch.chain, reason, "op")


async def resume(watch: Watch) -> None:
    found = await control.find_resumption(watch.context, watch.chain)
    assert found is not None
    await control.resume(watch.context, watch.chain, found, "op")


async def reset(watch: Watch, number: int) -> None:
    way = await control.find_reset(watch.context, watch.chain, number)
    assert way is not None
    await control.reset(watch.context, watch.chain, way, "op")


async def told_count(watch: Watch) -> int:
    return len(await watch.rows(Event))


# --- halt and resume


async def test_a_halted_chain_scans_nothing_takes_no_payment_and_goes_on_where_it_stopped(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WATCHED_AGE_S", 0.0)  # else a payment of the same second may still be made
    payment = await watch.create()
    cursor = (await watch.state()).last_scanned_block
    assert await halt(watch)
    await watch.pay(payment)
    await watch.anvil.mine(3)
    assert (await watch.step()).halted == "operator"
    state = await watch.state()
    assert (state.last_scanned_block, state.halt_code) == (cursor, "operator")
    assert "halted by op since 20" in state.halt_detail
    assert "maintenance; `paywatch chain resume devnet`" in state.halt_detail
    with pytest.raises(ChainUnavailable, match="maintenance"):
        await watch.create()
    assert await backup_pass(watch.context, watch.chain) is None
    assert not await halt(watch, "another reason")  # and the first one stays
    assert "maintenance" in (await watch.state()).halt_detail
    await watch.prepare()  # a good check, or a worker's restart, does not end it
    assert (await watch.state()).halt_code == "operator"
    await resume(watch)
    await watch.scan()
    assert (await watch.get(payment)).status == "confirmed"
    assert await control.find_resumption(watch.context, watch.chain) is None


async def test_a_chain_that_was_halted_anew_meanwhile_is_not_said_to_go_on(watch: Watch) -> None:
    assert await halt(watch)
    found = await control.find_resumption(watch.context, watch.chain)
    await resume(watch)
    assert await halt(watch, "another reason")
    assert found is not None
    with pytest.raises(Conflict, match=r"stays halted: .*another reason"):
        await control.resume(watch.context, watch.chain, found, "op")
    assert (await watch.state()).halt_code == "operator"


async def test_a_step_that_was_under_way_when_the_chain_was_halted_writes_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = await watch.create()
    await watch.pay(payment)
    await watch.anvil.mine()
    gather = scanner.gather

    async def halted_meanwhile(*arguments: Any) -> Any:
        findings = await gather(*arguments)
        await halt(watch)
        return findings

    monkeypatch.setattr(scanner, "gather", halted_meanwhile)
    assert not (await watch.step()).progressed
    assert (await watch.get(payment)).status == "pending"


async def test_nothing_expires_while_a_chain_is_halted(watch: Watch) -> None:
    payment = await watch.create()
    await halt(watch)
    await watch.pay(payment)
    await watch.anvil.mine()
    await watch.anvil.rpc("evm_increaseTime", 7200)
    await watch.anvil.mine()
    await watch.expire_at(payment, 0)
    await watch.step()
    assert (await watch.get(payment)).status == "pending"
    await resume(watch)
    await watch.scan()
    assert (await watch.get(payment)).status in ("detected", "confirmed")


async def test_resume_is_refused_while_the_node_is_wrong_or_away(watch: Watch, opened: OpenWatch, anvil: Anvil) -> None:
    await halt(watch)
    async with Anvil(chain_id=31338) as other_node:
        await other_node.deploy("TestToken", "USD Coin", "USDC", 6)
        async with opened(prepared=False, rpc_urls=[other_node.url]) as wrong:
            with pytest.raises(Conflict, match=r"stays halted: .* has chain id 31338"):
                await control.find_resumption(wrong.context, wrong.chain)
    async with opened(prepared=False, rpc_urls=["http://127.0.0.1:9"]) as away:
        with pytest.raises(Conflict, match=r"stays halted: .*: eth_chainId"):
            await control.find_resumption(away.context, away.chain)
    assert (await watch.state()).halt_code == "operator"


async def test_a_halt_that_a_good_check_ends_becomes_the_operators_or_is_ended_at_once(watch: Watch) -> None:
    async def contradicted() -> None:
        async with watch.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code="config", halt_detail="decimals"))

    await contradicted()
    await resume(watch)
    assert (await watch.state()).halt_code is None
    await contradicted()
    assert await halt(watch)
    await watch.prepare()
    assert (await watch.state()).halt_code == "operator"


async def forked_below_finality(watch: Watch, anvil: Anvil) -> PaymentView:
    """A payment whose block, final already, was replaced by one without it; the chain is halted for it."""
    payment = await watch.create("ETH", confirmations_required=1)
    await watch.pay(payment)
    await watch.mine_and_scan(5)
    await anvil.reorg(5)
    await anvil.mine()
    for _ in range(3):
        await watch.step()
    assert (await watch.state()).halt_code == "reorg"
    return payment


async def test_resume_after_a_fork_below_finality_goes_on_with_the_nodes_chain(opened: OpenWatch, anvil: Anvil) -> None:
    async with opened(finality=SHALLOW) as watch:
        payment = await forked_below_finality(watch, anvil)
        found = await control.find_resumption(watch.context, watch.chain)
        assert found is not None
        assert found.blocks_undone == 5
        assert (await watch.state()).halt_code == "reorg"  # looking changes nothing
        await control.resume(watch.context, watch.chain, found, "op")
        await watch.scan()
        assert (await watch.get(payment)).status == "pending"
        assert (await watch.told(payment)).endswith("reverted")
        await watch.audit()


async def test_resume_after_the_node_came_back_to_the_right_chain_takes_nothing_back(
    opened: OpenWatch, anvil: Anvil
) -> None:
    """The node had followed a fork, and was repaired."""
    async with opened(finality=SHALLOW) as watch:
        payment = await watch.create("ETH", confirmations_required=1)
        await watch.pay(payment)
        await watch.mine_and_scan(5)
        async with watch.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code="reorg", halt_detail="a fork, it seemed"))
        events = await told_count(watch)
        found = await control.find_resumption(watch.context, watch.chain)
        assert found is not None
        assert found.blocks_undone == 0
        await control.resume(watch.context, watch.chain, found, "op")
        await watch.mine_and_scan()
        assert (await watch.state()).halt_code is None
        assert await told_count(watch) == events
        assert (await watch.get(payment)).status == "settled"
        await watch.audit()


async def test_resume_with_no_scanned_block_left_on_the_node_says_how_to_go_on(opened: OpenWatch, anvil: Anvil) -> None:
    async with opened(finality=SHALLOW) as watch:
        await forked_below_finality(watch, anvil)
        cursor = (await watch.state()).last_scanned_block
        async with watch.context.db.write() as session:
            await session.execute(delete(BlockHeader).where(BlockHeader.number < cursor))
        with pytest.raises(Conflict, match="paywatch rescan --chain devnet --from BLOCK"):
            await control.find_resumption(watch.context, watch.chain)


# --- reset


async def test_reset_reads_again_credits_nothing_twice_and_tells_nobody(watch: Watch) -> None:
    first = (await watch.state()).last_scanned_block
    payments = [await watch.create(), await watch.create("ETH"), await watch.create()]
    for payment in payments[:2]:
        await watch.pay(payment)
    await watch.mine_and_scan(4)
    await watch.pay(payments[2])
    await watch.mine_and_scan(2)
    before, events = await watch.rows(Transaction), await told_count(watch)
    top = await watch.state()
    await reset(watch, first)
    state = await watch.state()
    assert (state.last_scanned_block, state.highest_block) == (first, top.last_scanned_block)
    assert [(await watch.get(payment)).status for payment in payments] == ["confirmed", "confirmed", "detected"]
    await watch.step()
    await watch.audit(against_node=False)
    await watch.mine_and_scan()
    assert [row.id for row in await watch.rows(Transaction)] == [row.id for row in before]
    assert [(await watch.get(payment)).status for payment in payments] == ["confirmed"] * 3
    assert await told_count(watch) == events + 1  # the third one's confirmation, which was due
    assert [(await watch.get(payment)).flags for payment in payments] == [[]] * 3


async def test_reset_finds_what_the_scan_had_missed(watch: Watch) -> None:
    first = (await watch.state()).last_scanned_block
    payment = await watch.create()
    await watch.pay(payment)
    await watch.mine_and_scan(4)
    async with watch.context.db.write() as session:  # as a node that kept it from us
        await session.execute(delete(Transaction))
    await reset(watch, first)
    await watch.scan()
    assert [row.canonical for row in await watch.rows(Transaction)] == [True]


async def test_a_fork_while_blocks_are_read_again_takes_back_what_it_replaced(watch: Watch, anvil: Anvil) -> None:
    """Without headers above the cursor nothing shows a fork: the blocks themselves have to."""
    first = (await watch.state()).last_scanned_block
    kept, dropped = await watch.create(), await watch.create()
    await watch.pay(kept)
    await watch.mine_and_scan(1)
    await watch.pay(dropped)
    await watch.mine_and_scan(3)
    assert [(await watch.get(each)).status for each in (kept, dropped)] == ["confirmed"] * 2
    await reset(watch, first)
    await anvil.reorg(3)  # the block of `dropped`, and those above it
    await anvil.mine(2)
    await watch.scan()
    assert [(await watch.get(each)).status for each in (kept, dropped)] == ["confirmed", "pending"]
    assert await watch.told(kept) == "created detected confirmed"
    assert (await watch.told(dropped)).endswith("reverted")


async def test_nothing_expires_before_the_old_height_is_regained(watch: Watch) -> None:
    payment = await watch.create()
    first = (await watch.state()).last_scanned_block
    await watch.mine_and_scan(40)
    await reset(watch, first)
    await watch.expire_at(payment, 3600)
    await watch.step()
    state = await watch.state()
    assert first < state.last_scanned_block < state.highest_block
    assert (await watch.get(payment)).status == "pending"
    await watch.mine_and_scan(1)
    assert (await watch.get(payment)).status == "expired"


async def test_reset_below_the_kept_headers_and_below_what_was_final(opened: OpenWatch) -> None:
    async with opened(finality=SHALLOW) as watch:
        first = (await watch.state()).last_scanned_block
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(8)
        assert (await watch.get(payment)).status == "settled"
        async with watch.context.db.write() as session:
            await session.execute(delete(BlockHeader).where(BlockHeader.number < first + 5))
        events = await told_count(watch)
        await reset(watch, first + 1)
        await watch.step()
        await watch.audit()
        await watch.scan()
        state = await watch.state()
        assert state.finalized_block == state.last_scanned_block - 2
        assert await told_count(watch) == events
        await watch.audit()
        while (again := await backup_pass(watch.context, watch.chain)) is not None:
            assert (again.found, again.problem) == (0, None)


async def test_coin_that_only_balances_show_is_not_credited_twice(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is recorded where it was seen, which may be after the block where it arrived; read again in other runs, that
    block alone would show it as new."""
    async with opened(native="{symbol: ETH, decimals: 18, detect: balances}") as watch:
        first = (await watch.state()).last_scanned_block
        payment = await watch.create("ETH", "2")  # not paid in full, so its address is looked at in every step
        await anvil.set_balance(payment.address, 10**18)
        await anvil.mine(5)
        await watch.scan()
        [row] = await watch.rows(Transaction)
        assert (row.position, row.amount_units) == ("balance", 10**18)
        async with watch.context.db.write() as session:  # as when it was seen at the end of that run
            seen_in = await session.get_one(BlockHeader, (row.chain_id, row.block_number + 3))
            await session.execute(
                update(Transaction).values(
                    block_number=seen_in.number, block_hash=seen_in.hash, block_time=seen_in.time
                )
            )
        monkeypatch.setattr(limits, "LINKED_RUN_BLOCKS", 1)
        events = await told_count(watch)
        await reset(watch, first)
        await watch.mine_and_scan()
        assert [each.id for each in await watch.rows(Transaction)] == [row.id]
        assert (await watch.get(payment)).amount_received == "1"
        assert await told_count(watch) == events


async def test_sweeps_stay_what_they_were(open_swept: OpenSwept) -> None:
    async with open_swept() as swept:
        first = (await swept.watch.state()).last_scanned_block
        payment = await swept.confirmed()
        await swept.settle(payment)
        outflows, told = await swept.watch.rows(Outflow), await swept.watch.told(payment)
        await reset(swept.watch, first)
        await swept.round()
        await swept.watch.step()
        await swept.round()
        await swept.watch.mine_and_scan()
        await swept.round()
        assert [row.id for row in await swept.watch.rows(Outflow, Outflow.canonical)] == [row.id for row in outflows]
        assert await swept.watch.told(payment) == told
        assert not await swept.live()
        await swept.watch.audit(against_node=False)


async def test_reset_refuses_what_is_not_safe(opened: OpenWatch, anvil: Anvil) -> None:
    await anvil.mine(5)
    async with opened() as watch:
        first = (await watch.state()).first_block
        await watch.mine_and_scan(4)
        cursor = (await watch.state()).last_scanned_block
        assert await control.find_reset(watch.context, watch.chain, cursor) is None
        for number, why in [
            (cursor + 1, "going forward to .* would leave blocks out"),
            (first - 1, f"first scanned at block {first}; `paywatch rescan"),
        ]:
            with pytest.raises(Conflict, match=why):
                await control.find_reset(watch.context, watch.chain, number)
        way = await control.find_reset(watch.context, watch.chain, first)
        assert way is not None
        await anvil.reorg(2)
        with pytest.raises(Conflict, match="a fork is undone first"):
            await control.find_reset(watch.context, watch.chain, first)
        await watch.mine_and_scan()
        with pytest.raises(Conflict, match="has changed meanwhile"):
            await control.reset(watch.context, watch.chain, way, "op")
        async with watch.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code="reorg", halt_detail="a fork"))
        with pytest.raises(Conflict, match="`paywatch chain resume devnet` comes first"):
            await control.find_reset(watch.context, watch.chain, first)
        before = await watch.dump()
        await anvil.stop()
        async with watch.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code=None, halt_detail=None))
        with pytest.raises(Conflict, match="the node cannot say"):
            await control.find_reset(watch.context, watch.chain, first)
        after = await watch.dump()
        assert {name for name in after if after[name] != before[name]} == {"chain_states"}


async def test_a_halted_chain_is_reset_and_stays_halted(watch: Watch) -> None:
    first = (await watch.state()).last_scanned_block
    await watch.mine_and_scan(3)
    await halt(watch)
    await reset(watch, first)
    assert (await watch.step()).halted == "operator"
    await resume(watch)
    await watch.scan()
    assert (await watch.state()).last_scanned_block == first + 3

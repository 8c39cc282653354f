"""Reorganisations on a real node: what they take back is taken back and told, what they bring is found."""

import pytest

from app.db.models import BlockHeader, Transaction
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.watch import Watch
from tests.support.anvil import Anvil

FOREVER = 50  # confirmations that no payment of these tests reaches
DEPTHS = range(1, 11)


@pytest.mark.parametrize("confirmations", [1, FOREVER], ids=["after confirmation", "before confirmation"])
@pytest.mark.parametrize("depth", DEPTHS)
async def test_a_payment_is_taken_back_and_credited_once_where_it_is_mined_again(
    watch: Watch, depth: int, confirmations: int
) -> None:
    """The oldest replaced block held four: one is mined in its place again, two in the newest block, one nowhere."""
    before = await watch.create("ETH")  # lies below the fork, and must not move
    await watch.pay(before)
    await watch.mine_and_scan()
    payments = [
        await watch.create(token, confirmations_required=confirmations) for token in ("USDC", "ETH", "USDC", "ETH")
    ]
    same_place, moved, behind, dropped = payments
    hashes = [await watch.pay(payment, payer=payer) for payer, payment in enumerate(payments, start=1)]
    await watch.mine_and_scan(depth)
    status = "confirmed" if confirmations == 1 else "detected"
    assert [(await watch.get(payment)).status for payment in payments] == [status] * 4
    raw = [await watch.raw(tx_hash) for tx_hash in hashes]
    old_head = await watch.state()
    untouched = await watch.told(before)

    newest = depth - 1
    await watch.anvil.reorg(depth, [(raw[0], 0), (raw[2], newest), (raw[1], newest)])
    outcome = await watch.step()
    assert (outcome.progressed, outcome.problem) == (True, None)
    fallen = await watch.state()
    assert fallen.last_scanned_block == old_head.last_scanned_block - depth
    for payment in payments:
        seen = await watch.get(payment)
        assert (seen.status, seen.flags, seen.amount_received_units) == ("pending", ["reorged"], "0")
        assert (seen.detected_in_block, seen.detected_at, seen.confirmed_at) == (None, None, None)
        assert [(each.status, each.confirmations) for each in seen.transactions] == [("orphaned", 0)]

    await watch.scan()
    assert (await watch.state()).last_scanned_block == old_head.last_scanned_block
    first_told = "created detected" + (" confirmed" if confirmations == 1 else "")
    again = first_told.removeprefix("created")
    for payment in (same_place, moved, behind):
        assert await watch.told(payment) == f"{first_told} reverted{again}"
        seen = await watch.get(payment)
        assert (seen.amount_received, seen.flags) == ("25", ["reorged"])
        assert sorted(each.status for each in seen.transactions) == ["canonical", "orphaned"]
    assert await watch.told(dropped) == f"{first_told} reverted"
    assert await watch.told(before) == untouched


async def test_a_replacement_block_may_gain_a_payment(watch: Watch) -> None:
    """Nothing of ours was in the block that was replaced, which is why empty blocks are linked too."""
    payment = await watch.create()
    snapshot = await watch.anvil.snapshot()
    await watch.mine_and_scan(3)
    await watch.anvil.revert(snapshot)
    await watch.pay(payment)
    await watch.mine_and_scan(3)
    assert await watch.told(payment) == "created detected confirmed"
    assert (await watch.get(payment)).flags == []


async def test_a_longer_branch_is_noticed_by_its_first_block(watch: Watch) -> None:
    payment, gained = await watch.create(confirmations_required=1), await watch.create()
    snapshot = await watch.anvil.snapshot()
    await watch.pay(payment)
    await watch.mine_and_scan(2)
    assert (await watch.get(payment)).status == "confirmed"
    await watch.anvil.revert(snapshot)
    await watch.pay(gained)
    await watch.mine_and_scan(8)
    assert await watch.told(payment) == "created detected confirmed reverted"
    assert await watch.told(gained) == "created detected confirmed"


async def test_a_transaction_that_fails_when_it_is_mined_again_pays_no_more(watch: Watch) -> None:
    """The payer had the tokens on the old branch only."""
    payment = await watch.create()
    usdc, payer = watch.tokens["USDC"], 4
    snapshot = await watch.anvil.snapshot()
    await watch.anvil.transact(usdc, "mint(address,uint256)", watch.anvil.accounts[payer], 25_000_000)
    await watch.anvil.transact(usdc, "transfer(address,uint256)", payment.address, 25_000_000, sender_index=payer)
    await watch.mine_and_scan()
    assert (await watch.get(payment)).status == "detected"
    await watch.anvil.revert(snapshot)
    tx_hash = await watch.anvil.transact(
        usdc, "transfer(address,uint256)", payment.address, 25_000_000, sender_index=payer
    )
    await watch.mine_and_scan()
    receipt = await watch.anvil.receipt(tx_hash)
    assert receipt is not None
    assert receipt["status"] == "0x0"
    assert await watch.told(payment) == "created detected reverted"


async def test_nothing_expires_while_the_cursor_regains_its_height(watch: Watch) -> None:
    """The payment was paid in time on the old branch, and is again on the new one, only further up."""
    payment = await watch.create(expires_in_s=600)
    snapshot = await watch.anvil.snapshot()
    await watch.pay(payment)
    await watch.mine_and_scan(20)
    await watch.anvil.revert(snapshot)
    await watch.anvil.increase_time(10_000)
    await watch.mine_and_scan(19)
    assert (await watch.state()).last_scanned_time > (await watch.rows(Transaction))[0].block_time
    assert await watch.told(payment) == "created detected confirmed reverted"
    await watch.mine_and_scan()
    assert await watch.told(payment) == "created detected confirmed reverted expired"


async def test_a_block_that_becomes_canonical_again_is_credited_again_once(
    watch: Watch, opened: OpenWatch, anvil: Anvil
) -> None:
    """Two nodes that disagree about the newest blocks, asked in turn: the second one has forked from the first."""
    fork_block = await anvil.block_number()
    payment, native = await watch.create(confirmations_required=1), await watch.create("ETH")
    await watch.pay(payment)
    await watch.pay(native)
    await watch.mine_and_scan(2)
    [before] = await watch.rows(Transaction, Transaction.position != "tx")
    extra_args = ["--fork-url", anvil.url, "--fork-block-number", str(fork_block)]
    async with Anvil(extra_args=extra_args) as other_node:
        await other_node.mine(2)
        async with opened(rpc_urls=[other_node.url]) as other:
            for round_ in range(1, 4):
                await other.scan()
                seen = await watch.get(payment)
                assert (seen.status, [each.status for each in seen.transactions]) == ("pending", ["orphaned"])
                await watch.scan()
                seen = await watch.get(payment)
                assert (seen.status, [each.status for each in seen.transactions]) == ("confirmed", ["canonical"])
                assert (
                    await watch.told(payment) == "created detected confirmed" + " reverted detected confirmed" * round_
                )
    [after] = await watch.rows(Transaction, Transaction.position != "tx")
    assert (after.id, after.block_hash) == (before.id, before.block_hash)
    assert await watch.told(native) == "created detected" + " reverted detected" * 3


async def test_a_rollback_deletes_the_headers_above_the_common_ancestor(watch: Watch) -> None:
    await watch.mine_and_scan(6)
    head = await watch.anvil.block_number()
    old = {header.number: header.hash for header in await watch.rows(BlockHeader)}
    await watch.anvil.reorg(4)
    await watch.step()
    headers = {header.number: header.hash for header in await watch.rows(BlockHeader)}
    assert headers == {number: hash_ for number, hash_ in old.items() if number <= head - 4}
    await watch.scan()
    headers = {header.number: header.hash for header in await watch.rows(BlockHeader)}
    assert sorted(headers) == sorted(old)
    assert {number for number in old if headers[number] != old[number]} == set(range(head - 3, head + 1))


async def test_the_common_ancestor_of_a_deep_fork_is_found_in_few_requests(watch: Watch, requests: Requests) -> None:
    await watch.mine_and_scan(60)
    await watch.anvil.reorg(40)
    requests.bodies.clear()
    await watch.step()
    assert (await watch.state()).last_scanned_block == await watch.anvil.block_number() - 40
    assert len(requests.bodies) <= 6


# --- where it ends


async def test_a_fork_below_finality_halts_the_chain_and_writes_nothing_else(opened: OpenWatch) -> None:
    async with opened(finality={"depth": 2}, confirmations_required=1) as watch:
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(6)
        assert (await watch.get(payment)).status == "settled"
        before = await watch.dump()
        state = await watch.state()
        await watch.anvil.reorg(3)
        for _ in range(3):
            outcome = await watch.step()
            assert outcome.changes == ()
        halted = await watch.state()
        assert halted.halt_code == "reorg"
        assert halted.halt_detail is not None
        assert f"0x{state.last_scanned_hash.hex()}" in halted.halt_detail
        assert f"final block {state.finalized_block}" in halted.halt_detail
        after = await watch.dump()
        assert {name for name in after if after[name] != before[name]} == {"chain_states"}
        cursor = (state.last_scanned_block, state.last_scanned_hash)
        assert (halted.last_scanned_block, halted.last_scanned_hash) == cursor

        # It stays so when the chain goes on, and a good check of the configuration does not hide it.
        await watch.anvil.mine(5)
        await watch.prepare()
        outcome = await watch.step()
        assert (outcome.progressed, (await watch.state()).halt_code) == (False, "reorg")


async def test_a_fork_down_to_the_final_block_is_an_ordinary_one(opened: OpenWatch) -> None:
    async with opened(finality={"depth": 2}) as watch:
        await watch.mine_and_scan(6)
        payment = await watch.create()
        await watch.anvil.reorg(2)
        await watch.pay(payment)
        await watch.mine_and_scan()
        assert (await watch.state()).halt_code is None
        assert (await watch.get(payment)).status == "detected"
        await watch.audit()


async def test_a_fork_below_the_first_block_ever_scanned_restarts_at_the_last_final_one(
    opened: OpenWatch, anvil: Anvil
) -> None:
    """The payment is mined again below the first block that was ever scanned, and is found there."""
    await anvil.mine(10)
    async with opened() as watch:
        final = (await watch.state()).finalized_block
        payment, dropped = await watch.create(confirmations_required=1), await watch.create()
        tx_hash = await watch.pay(payment)
        await watch.pay(dropped, payer=2)
        await watch.mine_and_scan(2)
        raw = await watch.raw(tx_hash)
        await anvil.reorg(6, [(raw, 0)])
        await watch.step()
        state = await watch.state()
        block = await anvil.block(final)
        assert (state.last_scanned_block, "0x" + state.last_scanned_hash.hex()) == (final, block["hash"])
        assert [header.number for header in await watch.rows(BlockHeader)] == [final]
        await watch.scan()
        assert await watch.told(payment) == "created detected confirmed reverted detected confirmed"
        assert await watch.told(dropped) == "created detected reverted"
        await watch.audit()


async def test_a_node_that_starts_anew_below_everything_scanned_is_waited_for(opened: OpenWatch, anvil: Anvil) -> None:
    """An empty node of the same chain has nothing to contradict us with, so it halts nothing either."""
    await anvil.mine(10)
    async with opened(finality={"depth": 2}) as watch:
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(5)
        before = await watch.dump()
        async with Anvil() as empty, opened(rpc_urls=[empty.url], prepared=False) as other:
            outcome = await other.step()
        assert outcome.problem is not None
        assert await watch.dump() == before

"""Goal: the audit trail says why each change happened: by which transfer, block, reorg, clock, key or command."""

from typing import Any

import pytest

from app.core.evm import hex0x
from app.db.models import Event, Transaction
from app.services.blockchain.backup import backup_pass, rescan_blocks
from app.services.views import PaymentView
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.watch import Watch
from tests.support.anvil import Anvil
from tests.support.node import ProxyNode, hides_payments


async def causes(watch: Watch, payment: PaymentView) -> list[tuple[str, dict[str, Any]]]:
    """A payment's event types, without their prefix, with their causes."""
    events = await watch.rows(Event, Event.payment_id == payment.id)
    return [(row.type.removeprefix("payment."), row.cause) for row in sorted(events, key=lambda row: row.version)]


def named(row: Transaction, kind: str = "transfer", **more: Any) -> dict[str, Any]:
    """The cause that a transfer is."""
    return {
        "kind": kind,
        "chain": "devnet",
        "block_number": row.block_number,
        "block_hash": hex0x(row.block_hash),
        "tx_hash": hex0x(row.tx_hash) if row.tx_hash else None,
        "position": row.position,
        **more,
    }


async def test_money_is_told_by_its_transfer_and_what_follows_by_its_block(opened: OpenWatch) -> None:
    async with opened(finality={"depth": 4}) as watch:
        payment = await watch.create()
        await watch.pay(payment, 10_000_000)
        await watch.mine_and_scan()
        await watch.pay(payment, 15_000_000)  # completes it in the same block in which more than was asked comes
        await watch.pay(payment, 1_000_000, payer=2)
        await watch.mine_and_scan()
        detected_in = await watch.anvil.block_number()
        for _ in range(4):
            await watch.mine_and_scan()
        rows = await watch.rows(Transaction)
        part, rest, extra = sorted(rows, key=lambda row: (row.block_number, row.tx_index))
        told = await causes(watch, payment)
        assert [type_ for type_, _ in told] == ["created", "underpaid", "detected", "overpaid", "confirmed", "settled"]
        created, underpaid, detected, overpaid, confirmed, settled = [cause for _, cause in told]
        assert created["kind"] == "api_key"
        assert underpaid == named(part)
        assert detected in (named(rest), named(extra))
        assert overpaid == named(extra)
        assert confirmed == {"kind": "block", "chain": "devnet", "block_number": detected_in + 2}
        assert settled == {"kind": "block", "chain": "devnet", "block_number": detected_in + 4}


async def test_expiry_is_the_clocks_and_money_that_is_late_the_transfers(watch: Watch) -> None:
    payment = await watch.create()
    await watch.anvil.increase_time(4_000)
    await watch.mine_and_scan()
    expired_by = await watch.anvil.block_number()
    await watch.pay(payment)
    await watch.mine_and_scan()
    [row] = await watch.rows(Transaction)
    _, (type_, expired), *late = await causes(watch, payment)
    assert type_ == "expired"
    assert expired == {
        "kind": "clock",
        "expires_at": payment.expires_at,
        "chain": "devnet",
        "block_number": expired_by,
    }
    assert late == [("late", named(row)), ("detected", named(row))]


async def test_a_reorg_is_what_takes_back(watch: Watch) -> None:
    payment = await watch.create()
    await watch.pay(payment)
    await watch.mine_and_scan()
    [row] = await watch.rows(Transaction)
    await watch.anvil.reorg(1)
    await watch.mine_and_scan()
    assert await causes(watch, payment) == [
        ("created", {"kind": "api_key"}),
        ("detected", named(row)),
        ("reverted", {"kind": "reorg", "chain": "devnet", "depth": 1, "ancestor_block": row.block_number - 1}),
    ]


@pytest.mark.parametrize("by", ["backup", "operator"])
async def test_money_that_was_missed_names_who_found_it_and_the_transfer(
    opened: OpenWatch, anvil: Anvil, by: str
) -> None:
    async with (
        ProxyNode(anvil.url, hides_payments) as liar,
        ProxyNode(anvil.url) as honest,
        opened(rpc_urls=[liar.url, honest.url], finality={"depth": 2}) as watch,
    ):
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(4)
        assert await watch.told(payment) == "created"
        if by == "backup":
            while await backup_pass(watch.context, watch.chain) is not None:
                pass
        else:
            liar.change = None
            assert sum([each.found async for each in rescan_blocks(watch.context, watch.chain, 1, None)]) == 1
        [row] = await watch.rows(Transaction)
        command = {"command": "rescan"} if by == "operator" else {}
        assert (await causes(watch, payment))[1] == ("detected", named(row, by, **command))

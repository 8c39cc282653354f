"""Goal: dust by the thousand costs a chain nothing: what counts for a payment is bounded, and is what matters in it."""

import pytest

from app.core import limits
from app.db.models import Event, Transaction
from app.db.repositories import sweeps
from app.services.blockchain.reconcile import reconcile_chain
from app.services.views import PaymentView
from tests.services.blockchain.killer import kill_at_every_point
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.watch import CONFIRMATIONS, Watch

COUNTING = 3


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAYMENT_TRANSFERS", COUNTING)


async def dust(watch: Watch, payment: PaymentView, *units: int, token: str | None = None) -> None:
    """Transfers of one block."""
    for payer, each in enumerate(units, start=2):
        await watch.pay(payment, each, payer=payer, token=token)
    await watch.mine_and_scan()


async def shown_units(watch: Watch, payment: PaymentView, token: str = "USDC") -> list[int]:
    return sorted(int(each.amount_units) for each in (await watch.get(payment)).transactions if each.token == token)


async def test_the_largest_count_and_no_change_is_told_for_the_others(watch: Watch) -> None:
    payment = await watch.create()
    await dust(watch, payment, 5, 6, 7, 8)
    assert await shown_units(watch, payment) == [6, 7, 8]
    assert (await watch.get(payment)).amount_received_units == "21"
    await dust(watch, payment, 1, 2)
    await dust(watch, payment, 3)
    assert await watch.told(payment) == "created underpaid"
    assert len(await watch.rows(Transaction)) == 7  # all that came is on record
    assert (await reconcile_chain(watch.context, watch.chain)).differences == ()


async def test_dust_does_not_keep_money_from_counting(watch: Watch) -> None:
    payment = await watch.create()
    await dust(watch, payment, 5, 6, 7, 8)
    await watch.pay(payment)
    await watch.mine_and_scan(CONFIRMATIONS)
    assert await watch.told(payment) == "created underpaid detected overpaid confirmed"
    assert await shown_units(watch, payment) == [7, 8, 25_000_000]


async def test_each_asset_has_its_own(watch: Watch) -> None:
    """A unit of ether is worth nothing beside one of a dollar: amounts of two assets are not compared."""
    payment = await watch.create()
    await dust(watch, payment, 10**9, 10**9, 10**9, 10**9, token="ETH")
    await dust(watch, payment, 4, 5)
    assert len(await shown_units(watch, payment, "ETH")) == COUNTING
    assert await shown_units(watch, payment) == [4, 5]


async def test_what_confirmed_a_payment_is_never_set_aside(watch: Watch) -> None:
    payment = await watch.create(amount="0.000006")
    await dust(watch, payment, 1, 2, 3)
    await watch.mine_and_scan(CONFIRMATIONS)
    await dust(watch, payment, 4, 4, 4, 4)
    await dust(watch, payment, 40)
    assert (await watch.get(payment)).status == "confirmed"
    assert await shown_units(watch, payment) == [1, 2, 3, 4, 4, 40]
    assert await watch.told(payment) == "created detected confirmed overpaid overpaid"


async def test_what_confirmed_a_payment_keeps_no_later_money_from_the_treasury(watch: Watch) -> None:
    payment = await watch.create(amount="0.000006")
    await dust(watch, payment, 1, 2, 3)
    await watch.mine_and_scan(CONFIRMATIONS)
    await dust(watch, payment, 1)
    assert (await watch.get(payment)).amount_received_units == "7"
    async with watch.context.db.read() as session:
        waiting = await sweeps.unswept(session, watch.chain.chain_id, 1_000, CONFIRMATIONS, 0)
    assert sorted(each.amount_units for each in waiting) == [1, 1, 2, 3]


async def test_neither_receipts_nor_sweeps_are_asked_for_what_was_set_aside(watch: Watch) -> None:
    payment = await watch.create(amount="0.000009")
    await dust(watch, payment, 9, 1, 1, 1, 1)
    await watch.mine_and_scan(CONFIRMATIONS)
    rows = await watch.rows(Transaction)
    counting = {row.id for row in rows if not row.set_aside}
    assert (len(rows), len(counting)) == (5, COUNTING)
    assert {row.id for row in rows if row.verified} == counting
    async with watch.context.db.read() as session:
        waiting = await sweeps.unswept(session, watch.chain.chain_id, 1_000, CONFIRMATIONS, 0)
    assert {each.id for each in waiting} == counting


async def test_a_reorg_takes_back_what_counted_and_what_did_not(watch: Watch) -> None:
    payment = await watch.create()
    await dust(watch, payment, 5, 6, 7, 8)
    await watch.anvil.reorg(1)
    await watch.mine_and_scan()
    assert (await watch.get(payment)).amount_received == "0"
    assert {row.canonical for row in await watch.rows(Transaction)} == {False}
    await dust(watch, payment, 9)
    [told] = await watch.rows(Event, Event.type == "payment.reverted")
    assert told.data["amount_received"] == "0"
    assert (await watch.get(payment)).amount_received_units == "9"


async def test_a_step_that_sets_aside_may_be_killed_anywhere(watch: Watch, requests: Requests) -> None:
    payment = await watch.create()
    for payer, units in enumerate((5, 6, 7, 8), start=2):
        await watch.pay(payment, units, payer=payer)
    await watch.anvil.mine()
    assert await kill_at_every_point(watch, requests) > 20
    await watch.scan()
    assert await shown_units(watch, payment) == [6, 7, 8]
    assert await watch.told(payment) == "created underpaid"
    assert sorted(row.amount_units for row in await watch.rows(Transaction, Transaction.set_aside)) == [5]

"""Goal: an order that was given a second payment stops nothing when its first one is paid after all."""

import pytest
from sqlalchemy import update

from app.core.errors import DuplicateOrder
from app.db.models import Payment
from tests.services.blockchain.watch import Watch


@pytest.mark.parametrize("closed_by_old_code", [False, True])
async def test_an_expired_payment_is_paid_late_although_its_order_has_another_one_by_now(
    watch: Watch, closed_by_old_code: bool
) -> None:
    """A version that did not know `holds_order` leaves it as it is when it closes a payment."""
    first = await watch.create(order_id="A-1")
    await watch.expire_at(first, 60)
    await watch.mine_and_scan()
    assert (await watch.get(first)).status == "expired"
    async with watch.context.db.write() as session:
        await session.execute(update(Payment).values(holds_order=closed_by_old_code))
    second = await watch.create(order_id="A-1")
    await watch.pay(first)
    await watch.mine_and_scan(3)
    with pytest.raises(DuplicateOrder):
        await watch.create(order_id="A-1")
    late = await watch.get(first)
    assert (late.status, late.flags, late.amount_received) == ("confirmed", ["late"], "25")
    assert (await watch.get(second)).status == "pending"
    await watch.pay(second, payer=2)
    await watch.mine_and_scan(3)
    assert (await watch.get(second)).status == "confirmed"


async def test_a_reorg_that_makes_it_pending_again_stops_nothing_either(watch: Watch) -> None:
    first = await watch.create(order_id="A-1")
    await watch.expire_at(first, 60)
    await watch.mine_and_scan()
    second = await watch.create(order_id="A-1")
    await watch.pay(first)
    await watch.mine_and_scan()
    assert (await watch.get(first)).status == "detected"
    await watch.anvil.reorg(1)
    await watch.mine_and_scan(2)
    assert await watch.told(first) == "created expired late detected reverted expired"
    await watch.pay(second)
    await watch.mine_and_scan(3)
    assert (await watch.get(second)).status == "confirmed"


async def test_a_payment_that_a_reorg_takes_back_keeps_its_order(watch: Watch) -> None:
    payment = await watch.create(order_id="A-1")
    await watch.pay(payment)
    await watch.mine_and_scan()
    await watch.anvil.reorg(1)
    await watch.scan()
    assert (await watch.get(payment)).status == "pending"
    with pytest.raises(DuplicateOrder, match=payment.id):
        await watch.create(order_id="A-1")


async def test_an_order_that_was_paid_late_stays_taken(watch: Watch) -> None:
    """Whoever paid it must not be charged again."""
    payment = await watch.create(order_id="A-1")
    await watch.expire_at(payment, 60)
    await watch.mine_and_scan()
    await watch.pay(payment)
    for blocks, status in ((1, "detected"), (2, "confirmed")):
        await watch.mine_and_scan(blocks)
        assert (await watch.get(payment)).status == status
        with pytest.raises(DuplicateOrder, match=payment.id):
            await watch.create(order_id="A-1")


async def test_of_two_payments_the_one_that_holds_the_order_is_named(watch: Watch) -> None:
    late = await watch.create(order_id="A-1")
    await watch.expire_at(late, 60)
    await watch.mine_and_scan()
    holder = await watch.create(order_id="A-1")
    await watch.pay(late)
    await watch.mine_and_scan(3)
    with pytest.raises(DuplicateOrder, match=holder.id):
        await watch.create(order_id="A-1")
    await watch.cancel(holder)
    with pytest.raises(DuplicateOrder, match=late.id):
        await watch.create(order_id="A-1")

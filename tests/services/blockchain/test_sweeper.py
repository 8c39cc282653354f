"""Goal: confirmed money reaches the treasury, in the cheapest way that the chain and the address allow."""

from app.db.models import Sweep, SweepItem
from tests.services.blockchain.sweeping import OpenSwept, Swept

# --- ways


async def test_tokens_are_collected_in_one_transaction_and_all_of_them_arrives(swept: Swept) -> None:
    payments = await swept.confirmed_many(5)
    await swept.settle(*payments)
    assert await swept.treasury_holds("USDC") == 5 * 25_000_000
    assert [kind for kind, *_ in await swept.story()] == ["deploy", "deploy", "collect"]
    [collect] = await swept.watch.rows(Sweep, Sweep.kind == "collect")
    items = await swept.watch.rows(SweepItem, SweepItem.sweep_id == collect.id)
    assert sorted(item.payment_id for item in items) == sorted(payment.id for payment in payments)
    assert {(item.amount_units, item.moved_units, item.live) for item in items} == {(25_000_000, 25_000_000, False)}
    for payment in payments:
        assert await swept.watch.told(payment) == "created detected confirmed settled"
    await swept.nothing_hangs()


async def test_native_coin_arrives_less_the_fee_that_is_recorded_to_the_wei(swept: Swept) -> None:
    payment = await swept.confirmed("ETH", "1")
    await swept.settle(payment)
    [sweep] = await swept.watch.rows(Sweep)
    assert sweep.kind == "native"
    assert await swept.treasury_holds("ETH") == 10**18 - sweep.fee_units
    assert await swept.holds(payment, "ETH") == 0
    [shown] = (await swept.watch.get(payment)).sweeps
    assert int(shown.amount_units) + int(shown.fee_units) == 10**18
    await swept.nothing_hangs()


async def test_a_token_is_topped_up_and_transferred_where_that_is_the_mode(open_swept: OpenSwept) -> None:
    async with open_swept(mode="topup") as swept:
        payments = await swept.confirmed_many(2)
        await swept.settle(*payments)
        assert await swept.treasury_holds("USDC") == 50_000_000
        assert sorted(kind for kind, *_ in await swept.story()) == ["topup", "topup", "transfer", "transfer"]
        for payment in payments:  # gas that was sent there is no payment
            assert [each.token for each in (await swept.watch.get(payment)).transactions] == ["USDC"]
            assert (await swept.watch.get(payment)).flags == []
        await swept.nothing_hangs()

"""Goal: what is counted is what was committed, and times are those of a chain that is followed as it grows."""

import pytest

from app.core import limits
from app.services.ledger import Cause
from app.services.payments import cancel
from tests.services.blockchain.watch import CONFIRMATIONS, Watch
from tests.support.exposition import counted


def now() -> dict[str, float]:
    chain = {"chain": "devnet"}
    events = {
        event: counted("paywatch_payment_events_total", type=f"payment.{event}")
        for event in ("created", "detected", "confirmed", "cancelled", "reverted")
    }
    return events | {
        "blocks": counted("paywatch_blocks_scanned_total", **chain),
        "transfers": counted("paywatch_transfers_total", **chain),
        "reorgs": counted("paywatch_reorg_depth_blocks_count", **chain),
        "depth": counted("paywatch_reorg_depth_blocks_sum", **chain),
        "detected_s": counted("paywatch_payment_detected_seconds_count", **chain),
        "confirmed_s": counted("paywatch_payment_confirmed_seconds_count", **chain),
    }


def since(before: dict[str, float]) -> dict[str, float]:
    """What has grown, and by how much."""
    return {name: value - before[name] for name, value in now().items() if value != before[name]}


async def test_a_payment_that_is_followed_is_counted_and_timed(watch: Watch) -> None:
    before = now()
    payment = await watch.create("USDC")
    await watch.pay(payment)
    await watch.mine_and_scan()
    blocks = await watch.anvil.block_number() - (await watch.state()).first_block
    counted_until_now = {"created": 1, "detected": 1, "detected_s": 1, "transfers": 1, "blocks": blocks}
    assert since(before) == counted_until_now
    await watch.mine_and_scan(CONFIRMATIONS - 1)
    more = {"confirmed": 1, "confirmed_s": 1, "blocks": blocks + CONFIRMATIONS - 1}
    assert since(before) == counted_until_now | more


async def test_what_is_caught_up_with_says_nothing_of_how_fast_we_are(watch: Watch) -> None:
    payment = await watch.create("USDC")
    await watch.pay(payment)
    before = now()
    await watch.mine_and_scan(limits.NEAR_TIP_BLOCKS + CONFIRMATIONS + 2)
    assert (await watch.get(payment)).status in ("confirmed", "settled")
    grown = since(before)
    assert (grown["detected"], grown["confirmed"]) == (1, 1)
    assert "detected_s" not in grown
    assert "confirmed_s" not in grown


async def test_a_reorg_is_counted_with_its_depth_and_what_it_moves_is_not_timed_again(watch: Watch) -> None:
    payment = await watch.create("ETH")
    raw = await watch.raw(await watch.pay(payment))
    await watch.mine_and_scan(2)
    before = now()
    await watch.anvil.reorg(2, [(raw, 1)])
    await watch.scan()
    assert since(before) == {"reorgs": 1, "depth": 2, "blocks": 2, "transfers": 1, "reverted": 1, "detected": 1}


async def test_what_is_rolled_back_was_never_said(watch: Watch) -> None:
    payment = await watch.create("USDC")
    before = now()

    async def cancel_in_vain() -> None:
        async with watch.context.db.write() as session:
            await cancel(watch.context, session, watch.merchant_id, payment.id, Cause("api_key", {}))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await cancel_in_vain()
    assert since(before) == {}
    await watch.cancel(payment)
    assert since(before) == {"cancelled": 1}

"""Goal: exactly once. Rounds that die between any two awaits, or run side by side, move each payment's money once."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from app.db.models import Sweep
from app.services.views import PaymentView
from tests.services.blockchain.killer import Killed, Killer
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.sweeping import OpenSwept, Swept

KILLS_MAX = 1_500  # of one story: more awaits than that in its rounds would be a story of its own
TRANSFERS_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


@pytest.fixture
async def swept(open_swept: OpenSwept, mode: str) -> AsyncIterator[Swept]:
    async with open_swept(mode=mode) as it:
        yield it


async def payments_of(swept: Swept, mode: str) -> list[PaymentView]:
    """Two of each kind that the mode sweeps in its own way, all confirmed."""
    tokens = ["USDC", "USDC", "ETH"] if mode == "auto" else ["USDC", "ETH"]
    payments = [await swept.watch.create(token, "1") for token in tokens]
    for payment in payments:
        await swept.watch.pay(payment)
    await swept.watch.mine_and_scan(3)
    return payments


async def each_moved_once(swept: Swept, payments: list[PaymentView]) -> None:
    """Every payment is settled once, no money was moved twice, and no nonce is left hanging."""
    for payment in payments:
        assert await swept.watch.told(payment) == "created detected confirmed settled"
        assert len((await swept.watch.get(payment)).sweeps) == 1
    tokens = sum(int(each.amount_units) for each in payments if each.token == "USDC")
    assert await swept.treasury_holds("USDC") == tokens
    native = [each for each in payments if each.token == "ETH"]
    fees = [each.fee_units or 0 for each in await swept.watch.rows(Sweep, Sweep.kind == "native")]
    assert await swept.treasury_holds("ETH") == sum(int(each.amount_units) for each in native) - sum(fees)
    await swept.nothing_hangs()
    assert all(status == "confirmed" for _, status, _, _ in await swept.story())
    await swept.watch.audit(against_node=False)


async def round_until(swept: Swept, killer: Killer, point: int) -> bool:
    """A round that is killed at its `point`-th await; whether it came to that."""
    with killer.at(point), suppress(Killed):
        await swept.round()
    return killer.struck


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "topup"])
async def test_a_round_may_be_killed_between_any_two_awaits(swept: Swept, requests: Requests, mode: str) -> None:
    """In every state that the money passes through, rounds are killed at the first await, the second, and so on."""
    payments = await payments_of(swept, mode)
    kills = 0
    with Killer(swept.watch, requests) as killer:
        for _ in range(60):
            point = 1
            while await round_until(swept, killer, point):
                kills += 1
                assert kills < KILLS_MAX
                point += 1
            await swept.watch.mine_and_scan()
            if await swept.at_rest(payments):
                break
    assert kills > 200
    await swept.settle(*payments)
    await each_moved_once(swept, payments)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "topup"])
async def test_rounds_and_blocks_at_random_with_kills_at_random(swept: Swept, requests: Requests, mode: str) -> None:
    """Mined in between, so that a killed round's transactions are often in a block before anybody asks for them."""
    dice = random.Random(5)
    payments = await payments_of(swept, mode)
    with Killer(swept.watch, requests) as killer:
        for _ in range(150):
            await round_until(swept, killer, dice.randint(1, 120))
            if dice.random() < 0.3:
                await swept.watch.mine_and_scan()
    await swept.settle(*payments)
    await each_moved_once(swept, payments)


@pytest.mark.parametrize("mode", ["auto", "topup"])
async def test_two_sweepers_at_once_do_no_harm(swept: Swept, open_swept: OpenSwept, mode: str) -> None:
    async with open_swept(mode=mode) as twin:
        payments = await payments_of(swept, mode)
        for _ in range(60):
            await asyncio.gather(swept.round(), twin.round(), swept.round(), twin.round())
            await swept.watch.mine_and_scan()
            if await swept.at_rest(payments):
                break
    await each_moved_once(swept, payments)


@pytest.mark.parametrize("mode", ["auto"])
async def test_what_was_signed_and_never_sent_goes_out_when_a_worker_comes_back(
    swept: Swept, requests: Requests, mode: str
) -> None:
    """Killed after the commit, before the broadcast: the same bytes are sent, nothing is signed anew."""
    payment = await swept.confirmed("ETH", "1")

    async def die(methods: set[str]) -> None:
        if "eth_sendRawTransaction" in methods:
            raise Killed

    requests.on_request = die
    with suppress(Killed):
        await swept.round()
    requests.on_request = None
    [unsent] = await swept.attempts()
    assert unsent.broadcast_at is None
    await swept.settle(payment)
    assert [each.raw for each in await swept.attempts()] == [unsent.raw]
    await each_moved_once(swept, [payment])

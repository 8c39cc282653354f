"""Steps that run twice, side by side, or die between any two awaits: each payment is credited once all the same."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from app.db.models import ChainState, Transaction
from app.services.views import PaymentView
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.killer import kill_at_every_point
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.watch import Watch


@pytest.fixture
async def twin(opened: OpenWatch, watch: Watch) -> AsyncIterator[Watch]:
    """A second worker over the same database and node, with a pool of its own."""
    async with opened() as it:
        yield it


async def test_the_same_step_twice_changes_nothing_the_second_time(watch: Watch) -> None:
    payment = await watch.create(confirmations_required=1)
    await watch.pay(payment)
    await watch.mine_and_scan()
    before = await watch.dump()
    for _ in range(3):
        await watch.step()
    assert await watch.dump() == before
    assert await watch.told(payment) == "created detected confirmed"


async def test_two_steps_side_by_side_credit_once(watch: Watch, twin: Watch) -> None:
    payments = [await watch.create(token) for token in ("ETH", "USDC", "USDC")]
    for payment in payments:
        await watch.pay(payment)
        await watch.anvil.mine(3)
        while (await watch.state()).last_scanned_block < await watch.anvil.block_number():
            await asyncio.gather(watch.step(), twin.step(), watch.step(), twin.step())
    await asyncio.gather(watch.scan(), twin.scan())
    for payment in payments:
        assert await watch.told(payment) == "created detected confirmed"
        assert len((await watch.get(payment)).transactions) == 1


async def test_two_steps_side_by_side_roll_back_once(watch: Watch, twin: Watch) -> None:
    payment = await watch.create(confirmations_required=1)
    await watch.pay(payment)
    await watch.mine_and_scan(3)
    await watch.anvil.reorg(3)
    await asyncio.gather(watch.step(), twin.step())
    await asyncio.gather(watch.scan(), twin.scan())
    assert await watch.told(payment) == "created detected confirmed reverted"


@dataclass
class Overtaken:
    """Lets something happen once, while a step waits for the answer to a request with `method`."""

    method: str
    happens: Callable[[], Awaitable[Any]]
    happened: bool = False

    async def __call__(self, methods: set[str]) -> None:
        if self.method in methods and not self.happened:
            self.happened = True
            await self.happens()


async def test_the_step_that_comes_second_drops_its_work(watch: Watch, twin: Watch, requests: Requests) -> None:
    payment = await watch.create()
    await watch.pay(payment)
    await watch.anvil.mine(2)
    stored: list[Any] = []

    async def overtake() -> None:
        await twin.scan()
        stored.append(await twin.dump())

    requests.on_request = Overtaken("eth_getLogs", overtake)
    outcome = await watch.step()
    assert (outcome.progressed, outcome.changes, outcome.problem) == (False, (), None)
    assert stored == [await watch.dump()]
    assert await watch.told(payment) == "created detected"


async def test_a_step_that_was_overtaken_by_a_rollback_drops_its_work(
    watch: Watch, twin: Watch, requests: Requests
) -> None:
    """It read the children of a block that is no longer the cursor."""
    dropped, payment = await watch.create(), await watch.create()
    await watch.pay(dropped)
    await watch.mine_and_scan()
    await watch.pay(payment)
    await watch.anvil.mine()

    async def overtake() -> None:
        await watch.anvil.reorg(2)
        await twin.step()

    requests.on_request = Overtaken("eth_getLogs", overtake)
    outcome = await watch.step()
    assert not outcome.changes
    await watch.scan()
    assert await watch.told(dropped) == "created detected reverted"
    assert await watch.told(payment) == "created"


async def test_a_rollback_that_was_overtaken_drops_its_work(watch: Watch, twin: Watch, requests: Requests) -> None:
    payment = await watch.create(confirmations_required=1)
    await watch.pay(payment)
    await watch.mine_and_scan(2)
    raw = await watch.raw((await watch.get(payment)).transactions[0].tx_hash or "")
    await watch.anvil.reorg(2, [(raw, 1)])
    seen = 0

    async def overtake(methods: set[str]) -> None:
        nonlocal seen
        seen += "eth_getBlockByNumber" in methods
        if seen == 2:  # the head was the first; this one looks for the common ancestor
            seen += 1
            await twin.scan()

    requests.on_request = overtake
    await watch.step()
    assert seen > 2
    await watch.scan()
    assert await watch.told(payment) == "created detected confirmed reverted detected confirmed"


async def test_a_step_that_was_overtaken_by_a_halt_drops_its_work(
    watch: Watch, twin: Watch, requests: Requests
) -> None:
    """Another worker's node showed a fork below finality: from then on an operator decides, whatever ours says."""
    payment = await watch.create()
    await watch.pay(payment)
    await watch.anvil.mine()

    async def halt() -> None:
        async with twin.context.db.write() as session:
            state = await session.get(ChainState, twin.chain.chain_id)
            assert state is not None
            state.halt_code, state.halt_detail = "reorg", "a test says so"

    requests.on_request = Overtaken("eth_getLogs", halt)
    before = await watch.state()
    outcome = await watch.step()
    assert (outcome.progressed, outcome.changes) == (False, ())
    assert (await watch.state()).last_scanned_block == before.last_scanned_block
    assert await watch.told(payment) == "created"


async def test_a_merchant_who_cancels_while_a_step_reads_is_told_that_the_money_is_late(
    watch: Watch, requests: Requests
) -> None:
    payment = await watch.create()
    await watch.pay(payment)
    await watch.anvil.mine()
    requests.on_request = Overtaken("eth_getLogs", lambda: watch.cancel(payment))
    await watch.scan()
    assert await watch.told(payment) == "created cancelled late"


async def test_a_payment_that_is_made_while_a_step_reads_is_not_missed(watch: Watch, requests: Requests) -> None:
    """Its address is given out only after the block that the step reads was mined."""
    made: list[PaymentView] = []

    async def make() -> None:
        made.append(await watch.create())
        await watch.pay(made[0])
        await watch.anvil.mine()

    await watch.anvil.mine()
    requests.on_request = Overtaken("eth_getLogs", make)
    await watch.scan()
    assert await watch.told(made[0]) == "created detected"


# --- killed


Story = Literal["arrival", "confirmation", "reorg", "expiry"]


@pytest.mark.parametrize("story", ["arrival", "confirmation", "reorg", "expiry"])
async def test_a_step_may_be_killed_between_any_two_awaits(watch: Watch, requests: Requests, story: Story) -> None:
    """Killed at its first point, then at its second, and so on until one comes through; then it goes on undisturbed."""
    payments = [await watch.create("ETH"), await watch.create("USDC")]
    idle = await watch.create(expires_in_s=600)
    for payment in payments:
        await watch.pay(payment)
    await watch.anvil.mine()
    if story != "arrival":
        await watch.scan()
    if story == "confirmation":
        await watch.anvil.mine(2)
    elif story == "reorg":
        raw = [await watch.raw((await watch.get(each)).transactions[0].tx_hash or "") for each in payments]
        await watch.anvil.mine()
        await watch.scan()
        await watch.anvil.reorg(2, [(each, 1) for each in raw])
    elif story == "expiry":
        await watch.anvil.increase_time(1_000)
        await watch.anvil.mine()

    kills = await kill_at_every_point(watch, requests)
    assert kills > 20
    await watch.scan()
    expected = {
        "arrival": "created detected",
        "confirmation": "created detected confirmed",
        "reorg": "created detected reverted detected",
        "expiry": "created detected",
    }
    for payment in payments:
        assert await watch.told(payment) == expected[story]
        assert (await watch.get(payment)).amount_received == "25"
    assert await watch.told(idle) == ("created expired" if story == "expiry" else "created")
    canonical = await watch.rows(Transaction, Transaction.canonical)
    assert len(canonical) == 2

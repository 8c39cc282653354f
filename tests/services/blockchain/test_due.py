"""Goal: a step decides what it can bring to an end, a bounded number of payments, and none that waits for others."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise

import pytest
from sqlalchemy import update

from app.core import limits
from app.core.clock import utc_now
from app.db.models import ChainState
from app.db.repositories import chains
from app.services.payments import Accepted, NewPayment, Price
from app.services.views import PaymentView
from app.workers.listener import Listener, listen_for_payments
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.watch import CONFIRMATIONS, Watch
from tests.support.anvil import Anvil

OTHER_ID = 31338


@pytest.fixture
async def two(opened: OpenWatch) -> AsyncIterator[tuple[Watch, Watch]]:
    """Two chains of one gateway. The other one's last block is a day old, and nobody has looked for a newer one."""
    async with Anvil(chain_id=OTHER_ID) as node:
        chain = (
            f"  - name: other\n    chain_id: {OTHER_ID}\n    rpc_urls: [{node.url}]\n"
            f"    confirmations_required: {CONFIRMATIONS}\n    finality: {{depth: 64}}\n    tokens: []\n"
        )
        rates = 'rates:\n  sources:\n    - {kind: fixed, pairs: {ETH/USD: "2500"}}\n'
        async with opened(rates=chain + rates) as watch:
            other = Watch(watch.context, watch.context.chain("other"), node, {}, watch.merchant_id)
            assert (await other.prepare()).problem is None
            async with watch.context.db.write() as session:
                old = {"last_scanned_time": utc_now() - timedelta(days=1), "caught_up_at": None}
                await session.execute(update(ChainState).where(ChainState.chain_id == OTHER_ID).values(old))
            yield watch, other


async def on_both(watch: Watch) -> PaymentView:
    """A payment that either chain's ether pays."""
    ways = [Accepted("devnet", "ETH"), Accepted("other", "ETH")]
    return await watch.create_wanted(
        NewPayment(price=Price("25", "USD"), accept=ways, webhook_url="https://shop.example.com/hook")
    )


async def statuses(watch: Watch, payments: list[PaymentView]) -> list[str]:
    return [(await watch.get(payment)).status for payment in payments]


async def test_a_step_expires_a_bounded_number_and_asks_for_another_one(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DECIDE_PAYMENTS", 2)
    payments = [await watch.create() for _ in range(5)]
    for number, payment in enumerate(payments):
        await watch.expire_at(payment, seconds_ago=100 - number)
    await watch.anvil.mine()
    outcome = await watch.step()
    assert [change.type for change in outcome.changes] == ["payment.expired"] * 2
    assert await statuses(watch, payments) == ["expired"] * 2 + ["pending"] * 3  # those that wait longest come first
    outcome = await watch.step()  # no block is left to be read
    assert (len(outcome.changes), outcome.progressed) == (2, True)
    outcome = await watch.step()
    assert (len(outcome.changes), outcome.progressed) == (1, False)
    assert await statuses(watch, payments) == ["expired"] * 5


async def test_what_another_chain_holds_open_costs_a_step_nothing_and_expires_when_that_one_has_passed(
    two: tuple[Watch, Watch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as a step takes, and older than the one that is this chain's alone."""
    monkeypatch.setattr(limits, "DECIDE_PAYMENTS", 2)
    monkeypatch.setattr(limits, "HEAD_SEEN_EVERY_S", 3_600)  # else a step writes that it saw the head
    watch, other = two
    held = [await on_both(watch) for _ in range(3)]
    for payment in held:
        await watch.expire_at(payment, seconds_ago=200)
    own = await watch.create()
    await watch.expire_at(own, seconds_ago=100)
    await watch.mine_and_scan()
    assert await statuses(watch, [own, *held]) == ["expired"] + ["pending"] * 3

    stored = await watch.dump()
    outcome = await watch.step()
    assert (outcome.progressed, outcome.changes, outcome.problem) == (False, (), None)
    assert await watch.dump() == stored  # not even the time of the last look

    await other.mine_and_scan()
    assert await statuses(watch, held) == ["expired"] * 3


async def test_a_chain_that_regains_its_height_holds_open_what_it_could_be_paid_by(two: tuple[Watch, Watch]) -> None:
    watch, other = two
    payment = await on_both(watch)
    await other.mine_and_scan()
    async with watch.context.db.write() as session:
        of_other = update(ChainState).where(ChainState.chain_id == OTHER_ID)
        await session.execute(of_other.values(highest_block=ChainState.highest_block + 1))
    await watch.expire_at(payment, seconds_ago=100)
    await watch.mine_and_scan()
    assert (await watch.get(payment)).status == "pending"
    await other.mine_and_scan()
    assert (await watch.get(payment)).status == "expired"


async def test_payments_of_which_a_part_is_never_proved_hold_up_no_other(
    watch: Watch, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at in turn. The node never has the receipts of their second parts."""
    monkeypatch.setattr(limits, "DECIDE_PAYMENTS", 2)
    unknown: set[str] = set()

    async def forget(methods: set[str], body: bytes) -> bytes:
        if methods != {"eth_getTransactionReceipt"}:
            return body
        answers = json.loads(body)
        for answer in answers:
            if answer["result"] and answer["result"]["transactionHash"] in unknown:
                answer["result"] = None
        return json.dumps(answers).encode()

    requests.on_answer = forget
    partly = [await watch.create() for _ in range(4)]
    for payment in partly:
        await watch.pay(payment, 20_000_000)
        unknown.add(await watch.pay(payment, 5_000_000))
    await watch.mine_and_scan(CONFIRMATIONS)
    later = [await watch.create() for _ in range(3)]
    for payment in later:
        await watch.pay(payment)
    await watch.mine_and_scan(CONFIRMATIONS)
    for _ in range(4):  # seven, two in a step
        await watch.mine_and_scan()
    assert await statuses(watch, partly + later) == ["detected"] * 4 + ["confirmed"] * 3


async def test_finality_settles_a_bounded_number_in_a_step(opened: OpenWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DECIDE_PAYMENTS", 2)
    monkeypatch.setattr(limits, "HEAD_SEEN_EVERY_S", 3_600)  # else a step without a block may settle the next two
    async with opened(finality="{depth: 5}") as watch:
        payments = [await watch.create() for _ in range(5)]
        for payment in payments:
            await watch.pay(payment)
        for _ in range(CONFIRMATIONS + 2):
            await watch.mine_and_scan()
        assert await statuses(watch, payments) == ["confirmed"] * 5
        settled = []
        for _ in range(3):
            await watch.mine_and_scan()
            settled.append((await statuses(watch, payments)).count("settled"))
        assert settled == [2, 4, 5]
        await watch.audit()


async def test_a_step_that_takes_too_long_is_tried_with_half_of_its_blocks(
    opened: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody holds the chain's row, which takes as long as writing blocks that are full of transfers."""
    monkeypatch.setattr(limits, "SQLITE_BUSY_TIMEOUT_S", 1.0)  # its thread goes on to wait, whoever was cancelled
    async with opened(block_batch_size=8, finality="{depth: 1}") as watch:
        await watch.anvil.mine(40)
        start = (await watch.state()).last_scanned_block
        listener = Listener(watch.context, wake_ups=None, ready={watch.chain.name})
        async with watch.context.db.write() as session:
            await chains.lock_state(session, watch.chain.chain_id)
            monkeypatch.setattr(limits, "STEP_TIMEOUT_S", 0.3)
            await listen_for_payments({"listener": listener}, watch.chain.name)
        reached = [start]
        for _ in range(5):
            await watch.step()
            reached.append((await watch.state()).last_scanned_block)
        widths = [after - before for before, after in pairwise(reached)]
        assert (widths[0], widths[-1]) == (4, 8)  # and the time comes when all of them are taken again

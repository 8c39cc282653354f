"""Goal: the sending loop starts what is due at once, waits for no receiver on behalf of another, needs no Redis, and
leaves nothing leased when it is stopped."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from app.core import limits
from app.core.netguard import guarded_client
from app.services.gateway import Gateway
from app.services.webhook import Attempt
from app.workers import webhook
from app.workers.webhook import Sender, housekeeping, send_webhook_task
from tests.support.gateway import create_payment, row_counts
from tests.support.outbox import attempts, rows
from tests.support.receiver import HANG, Receiver

DEADLINE_S = 90.0


@asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[Sender]:
    """A sender's loop, stopped as a worker stops it."""
    async with guarded_client(gateway.context.guard) as http:
        sender, stop = Sender(gateway.context, http), asyncio.Event()
        loop = asyncio.create_task(sender.run(stop))
        try:
            yield sender
        finally:
            stop.set()
            await loop


async def statuses(gateway: Gateway, done: Callable[[Counter[str]], bool]) -> Counter[str]:
    """How many deliveries have each status, once that is `done`."""
    async with asyncio.timeout(DEADLINE_S):
        while not done(found := Counter(row.status for row in await rows(gateway))):
            await asyncio.sleep(0.05)
    return found


async def test_one_that_hangs_and_one_that_fails_delay_none_of_the_other_eight(
    gateway: Gateway, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 deliveries to ten endpoints. The eight have all of theirs while the ninth still holds its first four."""
    monkeypatch.setattr(limits, "WEBHOOK_TIMEOUT_S", 600.0)
    monkeypatch.setattr(limits, "WEBHOOK_LEASE_S", 600.0)
    monkeypatch.setattr(limits, "WORKER_STOP_S", 0.0)
    events = 100
    async with Receiver() as good, Receiver() as broken, Receiver() as hanging:
        broken.answer(then=500)
        hanging.answer(then=HANG)
        urls = [hanging.url, broken.url, *(good.url_for(f"/{number}") for number in range(8))]
        for url in urls:
            assert (await client.post("/v1/webhook_endpoints", json={"url": url})).status_code == 201
        for _ in range(events):
            await create_payment(client)
        async with running(gateway):
            await statuses(gateway, lambda found: found["delivered"] == 8 * events)
            assert len(hanging.requests) == limits.WEBHOOK_ENDPOINT_CONCURRENCY
            most = limits.WEBHOOK_BREAKER_FAILURES + limits.WEBHOOK_ENDPOINT_CONCURRENCY + DEADLINE_S
            assert len(broken.requests) < most  # and of the pauses that follow, none is shorter than a second
        assert Counter(row.status for row in await rows(gateway)) == {"delivered": 8 * events, "pending": 2 * events}
    assert set(Counter(request.path for request in good.requests).values()) == {events}
    assert len({(request.path, request.webhook_id) for request in good.requests}) == 8 * events
    assert [row.leased_until for row in await rows(gateway) if row.leased_until] == []  # given back at the stop


async def test_a_process_has_so_many_requests_under_way_and_no_more(
    gateway: Gateway, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_CONNECTIONS", 3)
    monkeypatch.setattr(limits, "WEBHOOK_TIMEOUT_S", 600.0)
    monkeypatch.setattr(limits, "WEBHOOK_LEASE_S", 600.0)
    monkeypatch.setattr(limits, "WORKER_STOP_S", 0.0)
    async with Receiver() as one, Receiver() as two:
        for receiver in (one, two):
            receiver.answer(then=HANG)
            for _ in range(4):
                await create_payment(client, webhook_url=receiver.url)
        async with running(gateway) as sender:
            async with asyncio.timeout(DEADLINE_S):
                while len(one.requests) + len(two.requests) < 3:
                    await asyncio.sleep(0.02)
            for _ in range(3):
                await send_webhook_task({"sender": sender})
                await asyncio.sleep(0.05)
            assert len(one.requests) + len(two.requests) == 3
            assert min(len(one.requests), len(two.requests)) == 1  # they take turns
            assert len([row for row in await rows(gateway) if row.leased_until]) == 3


async def test_a_wake_up_starts_it_at_once_and_a_lost_one_is_made_up_for(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_TICK_S", 600.0)
    async with running(gateway) as sender:
        await create_payment(client, webhook_url=receiver.url)
        await send_webhook_task({"sender": sender})
        await receiver.wait_for_count(1)
        monkeypatch.setattr(limits, "WEBHOOK_TICK_S", 0.05)
        await statuses(gateway, lambda found: found["delivered"] == 1)  # which wakes it once more, to the short tick
        await create_payment(client, webhook_url=receiver.url)
        await receiver.wait_for_count(2)


@pytest.mark.parametrize("work", ["claim", "record"])
async def test_a_database_that_is_away_for_a_while_is_waited_for(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_TICK_S", 0.05)
    real, calls = getattr(webhook, work), 0

    async def away(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 4:
            raise OperationalError("SELECT", {}, OSError("away"))
        return await real(*args)

    monkeypatch.setattr(webhook, work, away)
    await create_payment(client, webhook_url=receiver.url)
    async with running(gateway):
        await statuses(gateway, lambda found: found["delivered"] == 1)
    assert calls >= 4
    assert len(receiver.requests) == 1  # what was sent is remembered until it can be recorded
    assert len(await attempts(gateway)) == 1


async def test_a_stop_lets_the_receivers_answer_that_do_so_in_time(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    send = webhook.send

    async def slowly(*args: Any) -> Attempt:
        started.set()
        await go_on.wait()
        return await send(*args)

    monkeypatch.setattr(webhook, "send", slowly)
    await create_payment(client, webhook_url=receiver.url)
    async with guarded_client(gateway.context.guard) as http:
        sender, stop = Sender(gateway.context, http), asyncio.Event()
        loop = asyncio.create_task(sender.run(stop))
        await started.wait()
        stop.set()
        go_on.set()
        await loop
    assert [row.status for row in await rows(gateway)] == ["delivered"]


async def test_the_backlog_of_a_closed_endpoint_is_ended_beside_the_sending(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 1)
    monkeypatch.setattr(limits, "BATCH_PAUSE_S", 0.0)
    closed = (await client.post("/v1/webhook_endpoints", json={"url": receiver.url_for("/closed")})).json()["id"]
    for _ in range(5):
        await create_payment(client)
    await client.delete(f"/v1/webhook_endpoints/{closed}")
    await create_payment(client, webhook_url=receiver.url)
    async with running(gateway):
        found = await statuses(gateway, lambda found: found["pending"] == 0)
    assert found == {"dead": 5, "delivered": 1}
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("trouble", [TimeoutError(), ZeroDivisionError()], ids=["outage", "mistake"])
async def test_a_backlog_that_cannot_be_ended_stops_no_sending_and_is_tried_again(
    gateway: Gateway,
    client: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_TICK_S", 0.05)
    tried, may_work, real = 0, asyncio.Event(), webhook.end_some

    async def fails(*args: Any) -> int:
        nonlocal tried
        tried += 1
        if may_work.is_set():
            return await real(*args)
        raise trouble

    monkeypatch.setattr(webhook, "end_some", fails)
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 1)
    closed = (await client.post("/v1/webhook_endpoints", json={"url": receiver.url_for("/closed")})).json()["id"]
    for _ in range(3):
        await create_payment(client)
    await client.delete(f"/v1/webhook_endpoints/{closed}")
    with capture_logs() as logs:
        async with running(gateway):
            async with asyncio.timeout(DEADLINE_S):
                while tried < 3:
                    await asyncio.sleep(0.02)
            await create_payment(client, webhook_url=receiver.url)
            await receiver.wait_for_count(1)
            may_work.set()
            await statuses(gateway, lambda found: found == {"dead": 3, "delivered": 1})
    assert len([entry for entry in logs if entry["log_level"] == "error"]) >= 3


async def test_a_stop_does_not_wait_for_a_backlog(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    began = asyncio.Event()

    async def hang(*args: Any) -> int:
        began.set()
        await asyncio.sleep(600)
        return 0

    monkeypatch.setattr(webhook, "end_some", hang)
    monkeypatch.setattr(limits, "WORKER_STOP_S", 600.0)
    async with asyncio.timeout(60):
        async with running(gateway):
            await began.wait()


async def test_housekeeping_forgets_in_batches_until_nothing_old_is_left_or_its_time_is_up(
    gateway: Gateway, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def left() -> int:
        return (await row_counts(gateway.context.db))["idempotency_keys"]

    monkeypatch.setattr(limits, "HOUSEKEEPING_ROWS", 2)
    monkeypatch.setattr(limits, "BATCH_PAUSE_S", 0.0)
    monkeypatch.setattr(limits, "IDEMPOTENCY_KEEP_S", 0)
    for number in range(5):
        body = {"chain": "devnet", "token": "USDC", "amount": "1"}
        await client.post("/v1/payments", json=body, headers={"Idempotency-Key": str(number)})
    async with guarded_client(gateway.context.guard) as http:
        ctx = {"sender": Sender(gateway.context, http)}
        with monkeypatch.context() as patch:
            patch.setattr(limits, "HOUSEKEEPING_S", 0.0)
            await housekeeping(ctx)
        assert await left() == 5
        monkeypatch.setattr(limits, "HOUSEKEEPING_S", 600.0)
        await housekeeping(ctx)
    assert await left() == 0

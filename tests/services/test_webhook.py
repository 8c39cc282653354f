"""Goal: every event reaches its receiver, signed, in order, under one id however often it is sent, and no sender's
death, slowness or company loses or doubles it."""

import asyncio
import json
from collections import Counter
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from app.core import limits
from app.core.clock import utc_now
from app.core.netguard import guarded_client
from app.db.models import WebhookDelivery
from app.services.context import Context, open_context
from app.services.gateway import Gateway
from app.services.webhook import claim, retry_delay_s, send
from tests.support.gateway import WEBHOOK_SECRET, create_payment
from tests.support.outbox import add_events, attempts, end_leases, killed, make_due, rows, send_all, send_due, version
from tests.support.receiver import HANG, Receiver, Reply


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs does so for longer than any test here, on a busy machine too."""
    monkeypatch.setattr(limits, "WEBHOOK_TIMEOUT_S", 600.0)


# --- what is sent


async def test_a_delivery_is_signed_and_carries_the_payment(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    payment = await create_payment(client, webhook_url=receiver.url, description="Mugs ☕")
    assert await send_due(gateway.context, sender) == 1
    [request] = receiver.requests
    Webhook(WEBHOOK_SECRET).verify(request.body, dict(request.headers))
    [event] = (await client.get(f"/v1/payments/{payment['id']}/events")).json()["data"]
    assert (request.method, request.path) == ("POST", "/webhooks")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == event["id"]
    assert abs(int(request.headers["webhook-timestamp"]) - utc_now().timestamp()) < 60
    assert request.headers["webhook-signature"].startswith("v1,")
    assert json.loads(request.body) == {
        "type": "payment.created",
        "timestamp": event["created_at"],
        "data": payment,
    }


async def test_a_changed_body_or_a_wrong_secret_does_not_verify(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    await create_payment(client, webhook_url=receiver.url)
    await send_due(gateway.context, sender)
    [request] = receiver.requests
    for secret, body in [
        (WEBHOOK_SECRET, request.body.replace(b'"25"', b'"26"')),
        ("whsec_" + "QUFB" * 8, request.body),
    ]:
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, dict(request.headers))


async def test_an_endpoints_deliveries_are_signed_with_its_own_secret(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = (await client.post("/v1/webhook_endpoints", json={"url": receiver.url})).json()
    receiver.secret = endpoint["secret"]
    await create_payment(client)
    await send_due(gateway.context, sender)
    assert [request.verified for request in receiver.requests] == [True]
    with pytest.raises(WebhookVerificationError):
        Webhook(WEBHOOK_SECRET).verify(receiver.requests[0].body, dict(receiver.requests[0].headers))


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_answer_is_delivered(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver, status: int
) -> None:
    receiver.answer(then=status)
    await create_payment(client, webhook_url=receiver.url)
    await send_due(gateway.context, sender)
    [delivery] = (await client.get("/v1/webhook_deliveries")).json()["data"]
    assert (delivery["status"], delivery["attempt_count"], delivery["next_attempt_at"]) == ("delivered", 1, None)
    assert delivery["delivered_at"]
    [attempt] = delivery["attempts"]
    assert (attempt["status_code"], attempt["error"], attempt["manual"]) == (status, None, False)
    assert await send_due(gateway.context, sender) == 0
    assert len(receiver.requests) == 1


# --- what fails


@pytest.mark.parametrize(
    ("reply", "status_code", "body"),
    [
        (Reply(500, body=b"out of order"), 500, "out of order"),
        (Reply(503), 503, ""),
        (Reply(400), 400, ""),
        (Reply(301, {"location": "http://127.0.0.1:9/"}), 301, ""),
        (Reply(307, {"location": "/elsewhere"}), 307, ""),
        (Reply(500, body=b"\xff\x00" * 100_000), 500, "\ufffd" * 2048),
        (Reply(500, {"content-encoding": "gzip"}, b"not gzip"), 500, "not gzip"),
        (HANG, None, None),
    ],
    ids=["500", "503", "400", "301", "307", "a large answer of rubbish", "unasked-for gzip", "no answer"],
)
async def test_a_failed_attempt_is_recorded_and_planned_again(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    reply: Reply,
    status_code: int | None,
    body: str | None,
) -> None:
    if reply is HANG:
        monkeypatch.setattr(limits, "WEBHOOK_TIMEOUT_S", 2.0)  # long enough to arrive on a busy machine
    receiver.answer(then=reply)
    await create_payment(client, webhook_url=receiver.url)
    assert await send_due(gateway.context, sender) == 1
    recorded = utc_now()
    [row] = await rows(gateway)
    [attempt] = await attempts(gateway)
    assert attempt.error == (f"http_{status_code}" if status_code else "timeout")
    assert (attempt.status_code, attempt.response_body) == (status_code, body)
    assert attempt.error_detail
    assert attempt.next_attempt_at == row.next_attempt_at
    assert (row.status, row.attempt_count, row.leased_until, row.delivered_at) == ("pending", 1, None, None)
    assert row.next_attempt_at is not None
    took_s = attempt.duration_ms / 1000
    assert (row.next_attempt_at - attempt.at).total_seconds() - took_s >= 4  # five, and a fifth more or less
    assert row.next_attempt_at <= recorded + timedelta(seconds=6)
    assert len(receiver.requests) == 1  # a redirect is not followed
    assert await send_due(gateway.context, sender) == 0  # its time has not come


async def test_a_receiver_that_is_not_there_is_a_failed_attempt(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    await create_payment(client, webhook_url=receiver.url)
    await receiver.stop()
    await send_due(gateway.context, sender)
    [attempt] = await attempts(gateway)
    assert (attempt.status_code, attempt.error, attempt.response_body) == (None, "connect_failed", None)
    await receiver.start()
    await make_due(gateway)
    await send_due(gateway.context, sender)
    assert [row.status for row in await rows(gateway)] == ["delivered"]


async def test_retries_follow_the_schedule_under_one_id_until_the_last_one(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.secret = WEBHOOK_SECRET
    receiver.answer(then=500)
    await create_payment(client, webhook_url=receiver.url)
    schedule = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
    for number, delay_s in enumerate(schedule, start=1):
        assert await send_due(gateway.context, sender) == 1
        [row] = await rows(gateway)
        at = (await attempts(gateway))[-1].at
        assert row.next_attempt_at is not None
        assert (row.status, row.attempt_count) == ("pending", number)
        assert 0.8 * delay_s <= (row.next_attempt_at - at).total_seconds() <= 1.2 * delay_s + 1
        await make_due(gateway)
    await send_due(gateway.context, sender)
    [row] = await rows(gateway)
    assert (row.status, row.attempt_count, row.next_attempt_at) == ("dead", 10, None)
    assert row.dead_reason == "attempts_used_up"
    assert len(await attempts(gateway)) == 10
    assert await send_due(gateway.context, sender) == 0
    assert len(receiver.requests) == 10
    assert len({request.webhook_id for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert all(request.verified for request in receiver.requests)


def test_the_jitter_spreads_both_ways_and_stays_within_a_fifth() -> None:
    delays = [retry_delay_s(2) or 0 for _ in range(1_000)]
    assert 240 <= min(delays) < 260
    assert 340 < max(delays) <= 360


async def test_a_url_that_has_become_forbidden_is_never_dialled(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    """The operator took the network back, or the name now leads elsewhere."""
    await create_payment(client, webhook_url=receiver.url)
    strict = replace_settings(gateway, webhook_allow_networks=())
    try:
        async with guarded_client(strict.guard) as http:
            assert await send_due(strict, http) == 1
    finally:
        await strict.close()
    assert receiver.requests == []
    [attempt] = await attempts(gateway)
    assert attempt.error == "refused_address"
    assert [row.status for row in await rows(gateway)] == ["pending"]


def replace_settings(gateway: Gateway, **changed: Any) -> Context:
    settings = gateway.context.settings.model_copy(update=changed)
    return open_context(settings, gateway.context.chains)


@pytest.mark.parametrize("url", ["http://127.0.0.1/\x7f", "http://127.0.0.1:99999/", "nonsense", "http://[::1", ""])
async def test_a_stored_url_that_no_client_can_read_holds_up_nobody(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver, url: str
) -> None:
    broken = await create_payment(client, webhook_url=receiver.url)
    async with gateway.context.db.write() as session:
        await session.execute(update(WebhookDelivery).values(url=url))
    await create_payment(client, webhook_url=receiver.url)
    assert await send_due(gateway.context, sender) == 2
    assert Counter(row.status for row in await rows(gateway)) == {"delivered": 1, "pending": 1}
    [row] = [row for row in await rows(gateway) if row.payment_id == broken["id"]]
    assert (row.attempt_count, row.leased_until) == (1, None)


# --- several senders, and their deaths


async def test_a_leased_delivery_is_taken_by_nobody_else_until_the_lease_ended(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.answer(HANG)
    await create_payment(client, webhook_url=receiver.url)
    first = asyncio.create_task(send_due(gateway.context, sender))
    await receiver.wait_for_count(1)
    [row] = await rows(gateway)
    assert row.leased_until is not None
    assert 0 < (row.leased_until - utc_now()).total_seconds() <= limits.WEBHOOK_LEASE_S
    assert await send_due(*other) == 0

    await killed(first)
    assert await attempts(gateway) == []
    assert await send_due(*other) == 0
    await end_leases(gateway)
    assert await send_due(*other) == 1
    assert len(receiver.requests) == 2
    assert len({request.webhook_id for request in receiver.requests}) == 1
    assert [row.status for row in await rows(gateway)] == ["delivered"]


async def test_a_sender_that_dies_between_the_answer_and_its_record_sends_again_under_the_same_id(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await create_payment(client, webhook_url=receiver.url)
    [doomed] = await claim(gateway.context, 50)
    assert (await send(gateway.context, sender, doomed)).status_code == 200
    assert await send_due(gateway.context, sender) == 0
    await end_leases(gateway)
    assert await send_due(gateway.context, sender) == 1
    [row] = await rows(gateway)
    assert [request.webhook_id for request in receiver.requests] == [row.event_id] * 2
    assert (row.status, row.attempt_count) == ("delivered", 1)


async def test_a_slow_sender_whose_lease_ended_does_not_undo_what_a_second_one_delivered(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
) -> None:
    receiver.answer(HANG)
    await create_payment(client, webhook_url=receiver.url)
    slow = asyncio.create_task(send_due(gateway.context, sender))
    await receiver.wait_for_count(1)
    await end_leases(gateway)
    assert await send_due(*other) == 1
    await receiver.stop()  # which ends the slow one's request
    await slow
    [row] = await rows(gateway)
    assert (row.status, row.attempt_count, row.next_attempt_at) == ("delivered", 2, None)
    assert await send_due(gateway.context, sender) == 0


async def test_senders_side_by_side_never_send_one_delivery_twice(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
) -> None:
    for number in range(24):
        await create_payment(client, webhook_url=receiver.url_for(f"/{number % 6}"))
    senders = [(gateway.context, sender), other, (gateway.context, sender), other]
    while sum(await asyncio.gather(*(send_all(*each) for each in senders))):
        pass
    times = Counter(request.webhook_id for request in receiver.requests)
    assert set(times.values()) == {1}
    assert len(times) == 24
    assert {row.status for row in await rows(gateway)} == {"delivered"}


# --- order, and one receiver among many


async def test_a_payments_events_arrive_in_order_although_several_send(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
) -> None:
    made = [await create_payment(client, webhook_url=receiver.url_for(f"/{number}")) for number in range(5)]
    for payment in made:
        await add_events(gateway, payment["id"], 5)
    senders = [(gateway.context, sender), other, (gateway.context, sender), other]
    while sum(await asyncio.gather(*(send_all(*each) for each in senders))):
        pass
    for number in range(5):
        arrived = [version(request) for request in receiver.requests if request.path == f"/{number}"]
        assert arrived == [1, 2, 3, 4, 5, 6]


async def test_a_later_event_waits_while_the_first_attempt_of_an_earlier_one_is_in_flight(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
) -> None:
    receiver.answer(HANG)
    payment = await create_payment(client, webhook_url=receiver.url)
    await add_events(gateway, payment["id"], 1)
    first = asyncio.create_task(send_due(gateway.context, sender))
    await receiver.wait_for_count(1)
    assert await send_due(*other) == 0
    await killed(first)
    assert [version(request) for request in receiver.requests] == [1]


async def test_a_first_attempt_that_failed_does_not_hold_up_the_later_events(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answer(500)
    payment = await create_payment(client, webhook_url=receiver.url)
    await add_events(gateway, payment["id"], 2)
    await send_all(gateway.context, sender)
    assert [version(request) for request in receiver.requests] == [1, 2, 3]
    assert [row.status for row in await rows(gateway)] == ["pending", "delivered", "delivered"]
    await make_due(gateway)
    await send_all(gateway.context, sender)
    assert [version(request) for request in receiver.requests] == [1, 2, 3, 1]


async def test_the_order_is_each_receivers_own(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    """A receiver that hangs holds up its own later events, and nobody else's."""
    await client.post("/v1/webhook_endpoints", json={"url": receiver.url_for("/endpoint")})
    async with Receiver() as dead:
        dead.answer(then=HANG)
        payment = await create_payment(client, webhook_url=dead.url)
        await add_events(gateway, payment["id"], 2)
        first = asyncio.create_task(send_due(gateway.context, sender))
        await dead.wait_for_count(1)
        await receiver.wait_for_count(1)
        async with asyncio.timeout(60):
            while len(receiver.requests) < 3:
                await send_due(gateway.context, sender)
        await killed(first)
    assert [version(request) for request in receiver.requests] == [1, 2, 3]
    assert [version(request) for request in dead.requests] == [1]


async def test_a_slow_receiver_gets_so_many_at_once_and_keeps_nobody_waiting(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
) -> None:
    async with Receiver() as slow:
        slow.answer(then=HANG)
        for _ in range(12):
            await create_payment(client, webhook_url=slow.url)
        stuck = asyncio.create_task(send_due(gateway.context, sender))
        await slow.wait_for_count(limits.WEBHOOK_ENDPOINT_CONCURRENCY)
        for _ in range(3):
            await create_payment(client, webhook_url=receiver.url)
        assert await send_due(*other) == 3  # what the others are owed, and nothing more for the slow one
        assert await send_due(*other) == 0
        await killed(stuck)
    assert len(slow.requests) == limits.WEBHOOK_ENDPOINT_CONCURRENCY
    assert len(receiver.requests) == 3


async def test_a_backlog_of_one_receiver_does_not_fill_a_claim(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Receivers take turns; payments' own URLs are one receiver where they lead to one host, whatever their paths."""
    monkeypatch.setattr(limits, "WEBHOOK_CLAIM_ROWS", 3)
    async with Receiver() as quiet:
        for number in range(12):
            await create_payment(client, webhook_url=receiver.url_for(f"/busy/{number}"))
        await create_payment(client, webhook_url=quiet.url)
        assert await send_due(gateway.context, sender) == 3
        assert len(quiet.requests) == 1
        monkeypatch.setattr(limits, "WEBHOOK_CLAIM_ROWS", 50)
        assert await send_due(gateway.context, sender) == limits.WEBHOOK_ENDPOINT_CONCURRENCY

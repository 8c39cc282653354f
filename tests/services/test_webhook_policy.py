"""Goal: a receiver that asks for patience gets it, one that is dead costs nobody anything, one that is gone is left
alone and its merchant told; and whatever is not sent is there to be replayed."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.netguard import NetGuard, guarded_client
from app.db.models import Merchant, Pause, WebhookDelivery, WebhookEndpoint, WebhookReceiver
from app.db.repositories import delivery_log, webhook_backlog, webhook_claims, webhooks
from app.services import endpoints, pauses, webhook
from app.services.context import Context
from app.services.endpoints import send_test
from app.services.gateway import Gateway
from app.services.webhook import Outcome, claim, forget_silent, probe_delay_s, record, retry_delay_s, send
from app.services.webhook_backlog import end_some
from app.services.webhook_post import retry_after_s
from tests.core.test_netguard import Listener, resolve_as
from tests.support.gateway import add_merchant, client_of, create_payment
from tests.support.outbox import attempts, end_leases, killed, make_due, rows, send_all, send_due
from tests.support.receiver import HANG, Receiver, Reply

ENDPOINTS = "/v1/webhook_endpoints"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs does so for longer than any test here, on a busy machine too."""
    monkeypatch.setattr(limits, "WEBHOOK_TIMEOUT_S", 600.0)


async def add_endpoint(client: httpx.AsyncClient, url: str) -> str:
    response = await client.post(ENDPOINTS, json={"url": url})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def failing(gateway: Gateway) -> WebhookReceiver:
    """The one receiver that fails."""
    async with gateway.context.db.read() as session:
        return (await session.scalars(select(WebhookReceiver))).one()


async def change_failing(gateway: Gateway, **values: Any) -> None:
    async with gateway.context.db.write() as session:
        await session.execute(update(WebhookReceiver).values(**values))


async def probe_now(gateway: Gateway) -> None:
    """As if the pause before the next probe, and every retry's, had passed."""
    await change_failing(gateway, probe_at=utc_now() - timedelta(seconds=1))
    await make_due(gateway)


# --- Retry-After


@pytest.mark.parametrize("status", [429, 503, 500, 404, 302])
async def test_a_receiver_that_says_when_to_come_back_is_left_alone_until_then(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver, status: int
) -> None:
    receiver.answer(Reply(status, {"retry-after": "900"}))
    await create_payment(client, webhook_url=receiver.url)
    await send_due(gateway.context, sender)
    [row], [attempt] = await rows(gateway), await attempts(gateway)
    assert row.next_attempt_at is not None
    assert 900 <= (row.next_attempt_at - attempt.at).total_seconds() < 930
    assert attempt.next_attempt_at == row.next_attempt_at


def test_what_a_receiver_asks_for_puts_the_schedule_off_and_never_brings_it_forward() -> None:
    assert 240 <= (retry_delay_s(2, retry_after_s=1) or 0) <= 360
    assert retry_delay_s(2, retry_after_s=900) == 900
    assert retry_delay_s(len(limits.WEBHOOK_RETRY_DELAYS_S) + 1, retry_after_s=900) is None


def test_retry_after_is_seconds_or_a_date_and_has_a_bound() -> None:
    now = utc_now().replace(microsecond=0)
    assert retry_after_s("120", now) == 120
    assert retry_after_s(" 120 ", now) == 120
    assert retry_after_s(format_datetime(now + timedelta(minutes=3), usegmt=True), now) == 180
    day_s = limits.WEBHOOK_RETRY_AFTER_MAX_S
    assert retry_after_s("9" * 400, now) == day_s
    assert retry_after_s(format_datetime(now + timedelta(days=900), usegmt=True), now) == day_s
    for nothing in (None, "", "0", "-5", "1.5", "soon", "²", "Thu, 99 Nov 2026 00:00:00 GMT"):
        assert retry_after_s(nothing, now) is None
    assert retry_after_s(format_datetime(now - timedelta(minutes=3), usegmt=True), now) is None


# --- typed errors


async def test_a_receiver_that_breaks_the_connection_has_lost_it(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient
) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await create_payment(client, webhook_url=f"http://127.0.0.1:{port}/")
    await send_due(gateway.context, sender)
    server.close()
    [attempt] = await attempts(gateway)
    assert (attempt.status_code, attempt.error) == (None, "connection_lost")


async def test_a_receiver_without_tls_where_it_is_asked_for_is_a_tls_error(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    await create_payment(client, webhook_url=receiver.url.replace("http:", "https:"))
    await send_due(gateway.context, sender)
    [attempt] = await attempts(gateway)
    assert (attempt.status_code, attempt.error) == (None, "tls")
    assert receiver.requests == []


async def test_the_beginning_of_every_answer_is_kept_also_of_a_good_one(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answer(Reply(200, body=b"thanks\x00" + b"x" * 10_000))
    await create_payment(client, webhook_url=receiver.url)
    await send_due(gateway.context, sender)
    [attempt] = await attempts(gateway)
    assert (attempt.error, attempt.error_detail) == (None, None)
    assert attempt.response_body == "thanks" + "x" * (limits.WEBHOOK_RESPONSE_BYTES - 7)


async def test_a_good_answer_whose_body_never_ends_is_delivered(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_ANSWER_TIMEOUT_S", 0.2)

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nthank")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    await create_payment(client, webhook_url=f"http://127.0.0.1:{port}/")
    await send_due(gateway.context, sender)
    server.close()
    [row], [attempt] = await rows(gateway), await attempts(gateway)
    assert (row.status, attempt.status_code, attempt.error) == ("delivered", 200, None)
    assert (attempt.response_body or "").startswith("thank")


# --- leases


async def test_a_lease_that_is_given_back_is_free_at_once(
    gateway: Gateway,
    client: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
) -> None:
    await create_payment(client, webhook_url=receiver.url)
    [claimed] = await claim(gateway.context, 50)
    assert await send_due(*other) == 0
    await record(gateway.context, [Outcome(claimed, None)])
    assert await attempts(gateway) == []
    assert await send_due(*other) == 1


async def test_a_sender_whose_lease_ended_does_not_end_the_next_ones(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    await create_payment(client, webhook_url=receiver.url)
    [first] = await claim(gateway.context, 50)
    await end_leases(gateway)
    [second] = await claim(gateway.context, 50)
    await record(gateway.context, [Outcome(first, None)])
    assert [row.leased_until for row in await rows(gateway)] == [second.leased_until]


async def test_a_dead_senders_leases_block_a_receivers_slots_no_longer_than_they_last(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    for _ in range(limits.WEBHOOK_ENDPOINT_CONCURRENCY + 1):
        await create_payment(client, webhook_url=receiver.url)
    async with gateway.context.db.write() as session:  # a sender that took all slots and died
        until = utc_now() + timedelta(seconds=limits.WEBHOOK_LEASE_S)
        assert len(await webhook_claims.claim_due(session, utc_now(), until, 50)) == limits.WEBHOOK_ENDPOINT_CONCURRENCY
    assert await send_due(gateway.context, sender) == 0
    await end_leases(gateway)
    assert await send_all(gateway.context, sender) == limits.WEBHOOK_ENDPOINT_CONCURRENCY + 1


# --- the breaker


async def fail_until_it_is_only_probed(gateway: Gateway, sender: httpx.AsyncClient) -> None:
    for _ in range(limits.WEBHOOK_BREAKER_FAILURES):
        await send_all(gateway.context, sender)
        if (await failing(gateway)).probe_at is not None:
            return
        await make_due(gateway)
    raise AssertionError("the breaker never opened")


@pytest.mark.parametrize("reply", [Reply(500), Reply(429), None], ids=["500", "429", "nobody there"])
async def test_a_receiver_that_keeps_failing_is_only_probed_until_it_answers(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
    reply: Reply | None,
) -> None:
    await add_endpoint(client, receiver.url)
    for _ in range(16):
        await create_payment(client)
    if reply is None:
        await receiver.stop()
    else:
        receiver.answer(then=reply)
    await fail_until_it_is_only_probed(gateway, sender)
    tried = len(await attempts(gateway))
    assert tried < limits.WEBHOOK_BREAKER_FAILURES + limits.WEBHOOK_ENDPOINT_CONCURRENCY

    await make_due(gateway)
    assert await send_due(gateway.context, sender) == 0  # until the probe's time has come
    assert await send_due(*other) == 0  # whichever worker asks: the state is the database's
    await probe_now(gateway)
    assert await send_all(gateway.context, sender) == 1  # one, and then another pause
    await probe_now(gateway)
    if reply is None:
        await receiver.start()
    receiver.answer(then=200)
    assert await send_due(*other) == 1
    assert await send_due(gateway.context, sender) == limits.WEBHOOK_ENDPOINT_CONCURRENCY
    await send_all(gateway.context, sender)
    assert {row.status for row in await rows(gateway)} == {"delivered"}
    async with gateway.context.db.read() as session:
        assert list(await session.scalars(select(WebhookReceiver))) == []


async def test_a_probe_that_hangs_is_the_only_one(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    other: tuple[Context, httpx.AsyncClient],
    receiver: Receiver,
) -> None:
    await add_endpoint(client, receiver.url)
    for _ in range(16):
        await create_payment(client)
    receiver.answer(then=500)
    await fail_until_it_is_only_probed(gateway, sender)
    await probe_now(gateway)
    before = len(receiver.requests)
    receiver.answer(then=HANG)
    probe = asyncio.create_task(send_due(gateway.context, sender))
    await receiver.wait_for_count(before + 1)
    assert await send_due(*other) == 0
    await killed(probe)


async def test_an_answer_that_refuses_is_an_answer(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    """A receiver that answers 400 fails, and is there."""
    await add_endpoint(client, receiver.url)
    for _ in range(limits.WEBHOOK_BREAKER_FAILURES + 2):
        await create_payment(client)
    receiver.answer(then=400)
    await send_all(gateway.context, sender)
    row = await failing(gateway)
    assert (row.failure_count, row.probe_at) == (0, None)
    assert len(receiver.requests) == limits.WEBHOOK_BREAKER_FAILURES + 2


async def test_one_receivers_breaker_is_nobody_elses(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    """Two endpoints of one host, one of which is broken."""
    await add_endpoint(client, receiver.url_for("/good"))
    broken = await add_endpoint(client, receiver.url.replace("http:", "https:"))
    for _ in range(16):
        await create_payment(client)
    await send_all(gateway.context, sender)
    assert len(receiver.requests) == 16
    assert (await failing(gateway)).receiver == broken


def test_probes_come_after_growing_pauses_with_a_bound() -> None:
    first = limits.WEBHOOK_BREAKER_FAILURES
    assert probe_delay_s(first - 1) is None
    assert [probe_delay_s(first + beyond) for beyond in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert probe_delay_s(1_000_000) == limits.WEBHOOK_PROBE_MAX_S


# --- disabling


async def test_a_receiver_that_is_gone_is_disabled_and_says_so(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    gone = await add_endpoint(client, receiver.url_for("/gone"))
    async with Receiver() as well:
        await add_endpoint(client, well.url)
        for _ in range(6):
            await create_payment(client)
        receiver.answer(then=410)
        with capture_logs() as logs:
            await send_all(gateway.context, sender)
        assert len(well.requests) == 6
        assert len(receiver.requests) <= limits.WEBHOOK_ENDPOINT_CONCURRENCY

        endpoint = (await client.get(f"{ENDPOINTS}/{gone}")).json()
        assert (endpoint["status"], endpoint["disabled_reason"]) == ("disabled", "gone")
        assert endpoint["disabled_at"]
        [said] = [entry for entry in logs if entry["event"] == "webhook endpoint disabled"]
        assert (said["log_level"], said["endpoint"], said["reason"]) == ("error", gone, "gone")
        events = (await client.get("/v1/events")).json()["data"]
        [told] = [event for event in events if event["type"] == "webhook_endpoint.disabled"]
        assert (told["payment_id"], told["version"], told["data"]) == (None, 0, endpoint)
        assert told["cause"]["reason"] == "gone"
        assert told["cause"]["delivery_id"].startswith("dlv_")
        async with gateway.context.db.read() as session:
            counts = await delivery_log.counts(session, utc_now())
        assert (counts.endpoints_disabled, counts.pending, counts.due) == (1, 0, 0)

        await create_payment(client)  # its event is kept for the disabled one, and sent to the other
        await send_all(gateway.context, sender)
        assert len(well.requests) == 7
        found = (await client.get("/v1/webhook_deliveries", params={"endpoint_id": gone, "limit": 100})).json()["data"]
        assert {each["status"] for each in found} == {"dead"}
        reasons = Counter(each["dead_reason"] for each in found)
        assert set(reasons) == {"gone", "endpoint_disabled"}
        assert reasons.total() == 7
        assert counts.dead == reasons["gone"]  # what was not even sent was not given up
        assert all(request.type.startswith("payment.") for request in well.requests)


async def test_a_payments_own_url_that_is_gone_gets_that_event_no_more(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answer(410)
    await create_payment(client, webhook_url=receiver.url)
    await send_due(gateway.context, sender)
    [row] = await rows(gateway)
    assert (row.status, row.dead_reason, row.next_attempt_at) == ("dead", "gone", None)
    await create_payment(client, webhook_url=receiver.url)
    assert await send_due(gateway.context, sender) == 1
    assert len(receiver.requests) == 2


async def test_an_endpoint_is_disabled_after_five_days_without_success_and_not_before(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, receiver.url)
    for _ in range(3):
        await create_payment(client)
    receiver.answer(500, then=500)
    await send_due(gateway.context, sender)
    almost = timedelta(seconds=limits.WEBHOOK_GIVE_UP_S - 60)
    await change_failing(gateway, failing_since=utc_now() - almost)
    await make_due(gateway)
    await send_due(gateway.context, sender)
    assert (await client.get(f"{ENDPOINTS}/{endpoint}")).json()["status"] == "enabled"

    receiver.answer(200)  # a success begins the count anew
    await make_due(gateway)
    await send_due(gateway.context, sender)
    await make_due(gateway)
    await send_due(gateway.context, sender)
    assert utc_now() - (await failing(gateway)).failing_since < timedelta(days=1)

    await change_failing(gateway, failing_since=utc_now() - timedelta(seconds=limits.WEBHOOK_GIVE_UP_S))
    await make_due(gateway)
    await send_due(gateway.context, sender)
    shown = (await client.get(f"{ENDPOINTS}/{endpoint}")).json()
    assert (shown["status"], shown["disabled_reason"]) == ("disabled", "failing")
    assert Counter(row.status for row in await rows(gateway)) == {"delivered": 1, "dead": 2}
    assert await send_due(gateway.context, sender) == 0


async def test_a_host_of_payments_own_urls_is_given_up_after_five_days_and_new_events_still_try_it(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answer(then=500)
    for number in range(6):
        await create_payment(client, webhook_url=receiver.url_for(f"/{number}"))
    await send_due(gateway.context, sender)
    await change_failing(
        gateway, failing_since=utc_now() - timedelta(seconds=limits.WEBHOOK_GIVE_UP_S), failure_count=50
    )
    await make_due(gateway)
    await send_due(gateway.context, sender)
    assert {row.status for row in await rows(gateway)} == {"dead"}
    assert {row.dead_reason for row in await rows(gateway)} == {"failing"}
    await create_payment(client, webhook_url=receiver.url)
    async with gateway.context.db.read() as session:
        assert list(await session.scalars(select(WebhookReceiver))) == []
    receiver.answer(then=200)
    assert await send_due(gateway.context, sender) == 1
    assert Counter(row.status for row in await rows(gateway)) == {"dead": 6, "delivered": 1}


async def test_what_a_deleted_or_disabled_endpoint_was_owed_is_dead_and_is_not_sent(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    deleted = await add_endpoint(client, receiver.url_for("/deleted"))
    disabled = await add_endpoint(client, receiver.url_for("/disabled"))
    await create_payment(client)
    assert (await client.delete(f"{ENDPOINTS}/{deleted}")).status_code == 204
    answer = await client.patch(f"{ENDPOINTS}/{disabled}", json={"enabled": False})
    assert (answer.json()["status"], answer.json()["disabled_reason"]) == ("disabled", "merchant")
    assert await send_due(gateway.context, sender) == 0
    assert {row.dead_reason for row in await rows(gateway)} == {"endpoint_deleted", "endpoint_disabled"}

    answer = await client.patch(f"{ENDPOINTS}/{disabled}", json={"enabled": True})
    assert (answer.json()["status"], answer.json()["disabled_at"]) == ("enabled", None)
    await create_payment(client)
    await send_all(gateway.context, sender)
    assert [request.path for request in receiver.requests] == ["/disabled"]


async def test_an_answer_that_comes_while_the_endpoint_is_deleted_is_recorded(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    """What arrived has arrived; what failed is not tried again."""
    endpoint = await add_endpoint(client, receiver.url)
    for status in (200, 500):
        payment = await create_payment(client)
        receiver.answer(status)
        [claimed] = await claim(gateway.context, 50)
        assert claimed.payment_id == payment["id"]
        async with gateway.context.db.write() as session:
            await webhook_backlog.end_pending(session, endpoint, "endpoint_deleted")
        await record(gateway.context, [Outcome(claimed, await send(gateway.context, sender, claimed))])
    assert [(row.status, row.leased_until) for row in await rows(gateway)] == [("delivered", None), ("dead", None)]


async def test_a_new_url_takes_along_what_is_pending_and_the_old_ones_bad_name_is_forgotten(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, receiver.url_for("/old"))
    await create_payment(client)
    receiver.answer(500)
    await send_due(gateway.context, sender)
    assert (await failing(gateway)).receiver == endpoint
    await client.patch(f"{ENDPOINTS}/{endpoint}", json={"url": receiver.url_for("/new")})
    async with gateway.context.db.read() as session:
        assert list(await session.scalars(select(WebhookReceiver))) == []
    await make_due(gateway)
    await send_due(gateway.context, sender)
    assert [request.path for request in receiver.requests] == ["/old", "/new"]


async def test_events_written_while_an_endpoint_is_disabled_leave_nothing_pending(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    """The writer of an event and whoever disables the endpoint at that moment wait for each other."""
    ids = [await add_endpoint(client, receiver.url_for(f"/{number}")) for number in range(6)]

    async def disable(endpoint: str) -> None:
        assert (await client.patch(f"{ENDPOINTS}/{endpoint}", json={"enabled": False})).status_code == 200

    await asyncio.gather(*(create_payment(client) for _ in range(10)), *(disable(endpoint) for endpoint in ids))
    assert {row.status for row in await rows(gateway)} == {"dead"}
    assert len(await rows(gateway)) == 60
    async with gateway.context.db.read() as session:
        query = select(WebhookEndpoint.id).where(WebhookEndpoint.disabled_at.is_(None))
        assert list(await session.scalars(query)) == []
        assert list(await session.scalars(select(WebhookDelivery.leased_until).distinct())) == [None]


# --- backlogs


async def end_all(gateway: Gateway) -> list[int]:
    """As the worker does beside its sending: how many each turn has ended, until there is nothing left."""
    ended: list[int] = []
    while number := await end_some(gateway.context):
        ended.append(number)
    return ended


async def reasons(gateway: Gateway) -> Counter[str]:
    return Counter(row.dead_reason or row.status for row in await rows(gateway))


@pytest.mark.parametrize("how", ["disabled", "deleted", "gone"])
async def test_a_large_backlog_of_a_closed_endpoint_is_ended_in_batches_and_not_sent_meanwhile(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 2)
    endpoint = await add_endpoint(client, receiver.url)
    for _ in range(limits.WEBHOOK_ENDPOINT_CONCURRENCY + 5):
        await create_payment(client)
    if how == "disabled":
        await client.patch(f"{ENDPOINTS}/{endpoint}", json={"enabled": False})
    elif how == "deleted":
        await client.delete(f"{ENDPOINTS}/{endpoint}")
    else:
        receiver.answer(then=410)
        await send_due(gateway.context, sender)
        receiver.requests.clear()
    reason = "endpoint_deleted" if how == "deleted" else "endpoint_disabled"
    left = (await reasons(gateway))["pending"]
    assert left >= 3
    assert (await reasons(gateway))[reason] == 2

    assert await send_due(gateway.context, sender) == 0
    async with gateway.context.db.read() as session:
        assert await delivery_log.oldest_due(session, utc_now()) is None  # they wait for no sender
    assert await end_all(gateway) == [*[2] * (left // 2), *[1] * (left % 2)]
    assert (await reasons(gateway))[reason] == left + 2
    assert (await reasons(gateway))["pending"] == 0
    assert receiver.requests == []


async def test_an_endpoint_that_is_enabled_before_its_backlog_is_ended_gets_what_is_left(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 1)
    path = f"{ENDPOINTS}/{await add_endpoint(client, receiver.url)}"
    for _ in range(3):
        await create_payment(client)
    await client.patch(path, json={"enabled": False})
    assert await end_some(gateway.context) == 1
    await client.patch(path, json={"enabled": True})
    assert await end_some(gateway.context) == 0
    async with gateway.context.db.write() as session:  # by somebody who saw it disabled
        assert await webhook_backlog.hold_closed(session, path.rpartition("/")[2]) is None
    assert await send_all(gateway.context, sender) == 1
    assert await reasons(gateway) == {"endpoint_disabled": 2, "delivered": 1}


async def test_what_another_transaction_holds_is_ended_later_and_waited_for_by_nobody(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    if gateway.context.db.is_sqlite:
        pytest.skip("one writer at a time")
    endpoint = await add_endpoint(client, receiver.url)
    for _ in range(3):
        await create_payment(client)
    first, *_ = await rows(gateway)
    async with gateway.context.db.write() as session:
        await webhooks.lock_deliveries(session, [first.id])
        async with asyncio.timeout(60):
            await client.patch(f"{ENDPOINTS}/{endpoint}", json={"enabled": False})
            assert await end_some(gateway.context) == 0
            assert await reasons(gateway) == {"endpoint_disabled": 2, "pending": 1}
    assert await end_all(gateway) == [1]


async def test_a_batch_of_a_closed_endpoint_keeps_no_payment_waiting(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gateway.context.db.is_sqlite:
        pytest.skip("one writer at a time")
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 1)
    endpoint = await add_endpoint(client, receiver.url)
    for _ in range(2):
        await create_payment(client)
    await client.patch(f"{ENDPOINTS}/{endpoint}", json={"enabled": False})
    async with gateway.context.db.write() as session:
        assert await webhook_backlog.hold_closed(session, endpoint) == "endpoint_disabled"
        assert await webhook_backlog.end_pending(session, endpoint, "endpoint_disabled") == 1
        async with asyncio.timeout(60):
            await create_payment(client)
    assert await reasons(gateway) == {"endpoint_disabled": 3}


async def give_up(gateway: Gateway, sender: httpx.AsyncClient) -> None:
    """As if the one receiver that fails had done so for five days, and does again."""
    await send_due(gateway.context, sender)
    await change_failing(gateway, failing_since=utc_now() - timedelta(seconds=limits.WEBHOOK_GIVE_UP_S))
    await make_due(gateway)
    [claimed] = await claim(gateway.context, 1)
    await record(gateway.context, [Outcome(claimed, await send(gateway.context, sender, claimed))])


async def test_a_large_backlog_of_a_host_that_is_given_up_is_ended_in_batches_and_later_payments_try_it_afterwards(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 2)
    receiver.answer(then=400)
    for _ in range(8):
        await create_payment(client, webhook_url=receiver.url)
    await give_up(gateway, sender)
    assert await reasons(gateway) == {"failing": 3, "pending": 5}

    await create_payment(client, webhook_url=receiver.url)
    assert await send_due(gateway.context, sender) == 0  # nothing while the rest is being ended
    assert await end_all(gateway) == [2, 2, 1]
    assert await reasons(gateway) == {"failing": 8, "pending": 1}
    async with gateway.context.db.read() as session:
        assert list(await session.scalars(select(WebhookReceiver))) == []
    receiver.answer(then=200)
    assert await send_all(gateway.context, sender) == 1


async def test_what_fails_late_ends_nothing_that_was_made_after_a_host_was_given_up(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither an answer that was under way nor the time of a pause puts off when it was given up."""
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 1)
    receiver.answer(then=400)
    for _ in range(5):
        await create_payment(client, webhook_url=receiver.url)
    [late, *others] = await claim(gateway.context, 50)
    await record(gateway.context, [Outcome(other, None) for other in others])
    attempt = await send(gateway.context, sender, late)
    await give_up(gateway, sender)
    assert await pauses.pause(gateway.context, pauses.WEBHOOKS, "receivers move", "op")
    async with gateway.context.db.write() as session:  # what gave it up was under way when the pause began
        await session.execute(update(Pause).values(since=utc_now() - timedelta(minutes=1)))
    newer = await create_payment(client, webhook_url=receiver.url)
    assert await pauses.resume(gateway.context, pauses.WEBHOOKS, "op")
    await record(gateway.context, [Outcome(late, attempt)])
    await end_all(gateway)
    assert [row.payment_id for row in await rows(gateway) if row.status == "pending"] == [newer["id"]]


async def test_a_host_that_answers_before_its_backlog_is_ended_gets_what_is_left(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_END_ROWS", 1)
    receiver.answer(then=400)
    for _ in range(5):
        await create_payment(client, webhook_url=receiver.url)
    await give_up(gateway, sender)
    receiver.answer(then=200)
    left = [row for row in await rows(gateway) if row.status == "pending"]
    await client.post(f"/v1/webhook_deliveries/{left[0].id}/replay")
    assert await send_due(gateway.context, sender) == 1  # a person asked for it
    assert await end_some(gateway.context) == 0
    await make_due(gateway)
    await send_all(gateway.context, sender)
    assert await reasons(gateway) == {"failing": 2, "delivered": 3}


async def test_a_new_url_is_where_a_backlog_goes_and_none_of_its_rows_is_touched_before(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    old, new = receiver.url_for("/old"), receiver.url_for("/new")
    endpoint = await add_endpoint(client, old)
    for _ in range(2):
        await create_payment(client)
    await client.patch(f"{ENDPOINTS}/{endpoint}", json={"url": new})
    log = (await client.get("/v1/webhook_deliveries")).json()["data"]
    assert {each["url"] for each in log} == {new}
    assert {row.url for row in await rows(gateway)} == {old}
    await send_due(gateway.context, sender)
    await client.patch(f"{ENDPOINTS}/{endpoint}", json={"url": old})
    log = (await client.get("/v1/webhook_deliveries")).json()["data"]
    assert {(each["status"], each["url"]) for each in log} == {("delivered", new)}  # where they were sent


# --- silence


async def test_a_receiver_that_was_silent_for_long_is_forgotten_and_one_that_fails_now_and_then_is_not(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOUSEKEEPING_ROWS", 2)
    silence, now = timedelta(seconds=limits.WEBHOOK_SILENCE_S), utc_now()
    times = {name: now - silence - timedelta(minutes=1) for name in ("a", "b", "c")}
    times["fails"] = now - silence + timedelta(minutes=1)
    async with gateway.context.db.write() as session:
        for name, at in times.items():
            session.add(WebhookReceiver(receiver=name, failure_count=50, failing_since=at, last_failed_at=at))
    for expected in (2, 1, 0):
        async with gateway.context.db.write() as session:
            assert await forget_silent(session) == expected
    assert (await failing(gateway)).receiver == "fails"


async def test_a_pause_is_no_silence(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answer(500)
    await create_payment(client, webhook_url=receiver.url)
    await send_due(gateway.context, sender)
    assert await pauses.pause(gateway.context, pauses.WEBHOOKS, "receivers move", "op")
    lasted = timedelta(seconds=2 * limits.WEBHOOK_SILENCE_S)
    async with gateway.context.db.write() as session:
        await session.execute(update(Pause).values(since=utc_now() - lasted))
    await change_failing(gateway, failing_since=utc_now() - lasted, last_failed_at=utc_now() - lasted)
    for _ in range(2):
        async with gateway.context.db.write() as session:
            assert await forget_silent(session) == 0
        await pauses.resume(gateway.context, pauses.WEBHOOKS, "op")
    assert utc_now() - (await failing(gateway)).last_failed_at < timedelta(minutes=5)


# --- turns


async def test_a_merchant_with_many_hosts_that_hang_leaves_another_ones_turn(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    for number in range(1, 9):
        for _ in range(2):
            await create_payment(client, webhook_url=f"http://127.0.1.{number}:9/")
    assert len(await claim(gateway.context, 6)) == 6
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as another:
        for number in range(1, 5):
            await create_payment(another, webhook_url=f"http://127.0.2.{number}:9/")
        mine = {each["id"] for each in (await another.get("/v1/payments")).json()["data"]}
    claimed = await claim(gateway.context, 5)
    assert sum(each.payment_id in mine for each in claimed) == 4  # the first one has six under way
    assert len(await claim(gateway.context, 50)) == 16 - 7  # and takes all that nobody else wants


async def test_one_hosts_backlog_does_not_put_its_merchants_turn_off(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    """What is beyond a receiver's share is in no line."""
    for _ in range(10):
        await create_payment(client, webhook_url="http://127.0.1.1:9/")
    last = await create_payment(client, webhook_url="http://127.0.1.2:9/")
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as another:
        for number in range(1, 4):
            await create_payment(another, webhook_url=f"http://127.0.2.{number}:9/")
    claimed = {each.payment_id for each in await claim(gateway.context, 4)}
    assert last["id"] in claimed
    assert len(claimed) == 4


# --- no way inside


async def test_a_name_that_turns_to_loopback_is_never_connected_to_at_delivery_or_by_a_test(
    gateway: Gateway, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public when it was registered, loopback when it is dialled."""
    public = ["93.184.215.14"]
    strict = replace(gateway.context, guard=NetGuard(()))
    async with Listener() as listener, guarded_client(strict.guard) as http:
        url = f"https://rebind.test:{listener.port}/"
        for inside in (["127.0.0.1"], ["::ffff:127.0.0.1"], ["10.0.0.1"], [*public, "127.0.0.1"]):
            resolve_as(monkeypatch, "rebind.test", public)
            endpoint = await add_endpoint(client, url)
            await create_payment(client)
            resolve_as(monkeypatch, "rebind.test", inside)
            assert await send_due(strict, http) == 1
            assert (await attempts(gateway))[-1].error == "refused_address"
            resolve_as(monkeypatch, "rebind.test", inside)
            async with strict.db.read() as session:
                [merchant] = await session.scalars(select(Merchant.id))
            tested = await send_test(strict, http, merchant, endpoint)
            assert (tested.delivered, tested.error) == (False, "refused_address")
            await client.delete(f"{ENDPOINTS}/{endpoint}")
        assert listener.connections == 0


async def test_a_name_without_an_address_is_a_failed_connection(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_as(monkeypatch, "hooks.test", [])
    await create_payment(client, webhook_url="https://hooks.test/")
    await send_due(gateway.context, sender)
    [attempt] = await attempts(gateway)
    assert (attempt.error, attempt.error_detail) == ("connect_failed", "hooks.test cannot be resolved")


# --- what must not follow


async def test_a_disable_that_fails_leaves_the_attempts_recorded_once(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(*args: Any) -> None:
        raise OperationalError("SELECT", {}, OSError("away"))

    endpoint = await add_endpoint(client, receiver.url)
    await create_payment(client)
    receiver.answer(410, 410)
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(endpoints, "disable_failed", away)
        await send_due(gateway.context, sender)
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == [
        "disabling a webhook endpoint failed"
    ]
    assert len(await attempts(gateway)) == 1
    await create_payment(client)
    await send_due(gateway.context, sender)
    assert (await client.get(f"{ENDPOINTS}/{endpoint}")).json()["disabled_reason"] == "gone"


async def test_what_an_old_url_answers_late_does_not_disable_the_new_one(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, receiver.url_for("/old"))
    await create_payment(client)
    receiver.answer(410)
    [claimed] = await claim(gateway.context, 50)
    attempt = await send(gateway.context, sender, claimed)
    await client.patch(f"{ENDPOINTS}/{endpoint}", json={"url": receiver.url_for("/new")})
    await record(gateway.context, [Outcome(claimed, attempt)])
    assert (await client.get(f"{ENDPOINTS}/{endpoint}")).json()["status"] == "enabled"
    await make_due(gateway)
    await send_due(gateway.context, sender)
    assert [request.path for request in receiver.requests] == ["/old", "/new"]
    assert [row.status for row in await rows(gateway)] == ["delivered"]


async def test_one_failure_after_a_long_silence_disables_nothing(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, receiver.url)
    await create_payment(client)
    receiver.answer(500, 500)
    await send_due(gateway.context, sender)
    silence = timedelta(seconds=limits.WEBHOOK_SILENCE_S)
    long_ago = utc_now() - timedelta(seconds=2 * limits.WEBHOOK_GIVE_UP_S)
    await change_failing(gateway, failing_since=long_ago, last_failed_at=utc_now() - silence)
    await make_due(gateway)
    await send_due(gateway.context, sender)
    assert (await client.get(f"{ENDPOINTS}/{endpoint}")).json()["status"] == "enabled"
    assert utc_now() - (await failing(gateway)).failing_since < silence


async def test_a_mistake_of_ours_is_an_attempt_and_is_not_held_against_the_receiver(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def wrong(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(webhook, "post", wrong)
    await create_payment(client, webhook_url=receiver.url)
    await send_due(gateway.context, sender)
    [row], [attempt] = await rows(gateway), await attempts(gateway)
    assert (attempt.error, row.status, row.attempt_count, row.leased_until) == ("internal", "pending", 1, None)
    async with gateway.context.db.read() as session:
        assert list(await session.scalars(select(WebhookReceiver))) == []


async def test_an_old_secret_that_cannot_be_decrypted_does_not_sign_and_stops_nothing(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    await add_endpoint(client, receiver.url)
    until = rfc3339(utc_now() + timedelta(hours=1))
    async with gateway.context.db.write() as session:
        await session.execute(update(WebhookEndpoint).values(old_secrets=[{"secret": "another key's", "until": until}]))
    await create_payment(client)
    await send_due(gateway.context, sender)
    [request] = receiver.requests
    assert request.headers["webhook-signature"].count("v1,") == 1
    assert [row.status for row in await rows(gateway)] == ["delivered"]

"""The outbox: claims due deliveries, signs and sends them, records every attempt."""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from datetime import timedelta

import httpx
from standardwebhooks import Webhook

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.errors import PaywatchError
from app.core.logger import get_logger
from app.db.models import WebhookAttempt
from app.db.repositories import webhooks
from app.db.repositories.webhooks import DueDelivery
from app.services.context import Context

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending. `error` is None for a 2xx answer."""

    duration_ms: int
    status_code: int | None
    error: str | None


async def send_due(context: Context, client: httpx.AsyncClient) -> int:
    """Send what is due now, one claim's worth; returns how many were sent, successfully or not.

    The claim commits before anything is sent, and no session is held while a receiver is waited for. A sender that
    dies after sending leaves a lease that ends by itself; the receiver then gets the event again under the same id.
    """
    now = utc_now()
    async with context.db.write() as session:
        due = await webhooks.claim_due(session, now, now + timedelta(seconds=limits.WEBHOOK_LEASE_S))
    await asyncio.gather(*(_deliver(context, client, delivery) for delivery in due))
    return len(due)


async def _deliver(context: Context, client: httpx.AsyncClient, delivery: DueDelivery) -> None:
    attempt = await send(context, client, delivery)
    await _record(context, delivery, attempt)
    log.info(
        "webhook failed" if attempt.error else "webhook delivered",
        payment=delivery.payment_id,
        event_type=delivery.event_type,
        delivery=delivery.id,
        status_code=attempt.status_code,
        error=attempt.error,
    )


async def send(context: Context, client: httpx.AsyncClient, delivery: DueDelivery) -> Attempt:
    """One signed POST (Standard Webhooks 1.0). Never raises for what a receiver can do."""
    started = time.monotonic()
    status_code: int | None = None
    error: str | None = None
    try:
        headers, body = sign(context.box.decrypt(delivery.secret), delivery)
        await context.guard.check_url(delivery.url)
        async with (
            asyncio.timeout(limits.WEBHOOK_TIMEOUT_S),
            client.stream("POST", delivery.url, headers=headers, content=body) as response,
        ):
            status_code = response.status_code
            if not response.is_success:
                error = f"HTTP {status_code}: {await _beginning(response)}".strip(": ")
    except (httpx.HTTPError, TimeoutError, OSError) as failure:
        error = f"{type(failure).__name__}: {failure}".strip(": ")
    except PaywatchError as failure:
        error = f"{failure.code}: {failure}"
    duration_ms = int((time.monotonic() - started) * 1000)
    return Attempt(duration_ms, status_code, error[: limits.WEBHOOK_RESPONSE_BYTES] if error else None)


def sign(secret: str, delivery: DueDelivery) -> tuple[dict[str, str], bytes]:
    """Headers and body of a delivery; the body is the same at every attempt, the id is the event's."""
    body = json.dumps(
        {
            "type": delivery.event_type,
            "timestamp": rfc3339(delivery.event_created_at),
            "data": delivery.data,
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    now = utc_now()
    headers = {
        "content-type": "application/json",
        "user-agent": "Paywatch",
        "accept-encoding": "identity",  # a few compressed bytes could be a gigabyte
        "webhook-id": delivery.event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign(delivery.event_id, now, body),
    }
    return headers, body.encode()


def retry_delay_s(attempt_count: int) -> float | None:
    """Seconds until the next attempt after `attempt_count` failed ones, ±20 %; None when there is none left."""
    if attempt_count > len(limits.WEBHOOK_RETRY_DELAYS_S):
        return None
    jitter = random.uniform(-1, 1) * limits.WEBHOOK_RETRY_JITTER_PERCENT / 100  # noqa: S311 spreads load, no secret
    return limits.WEBHOOK_RETRY_DELAYS_S[attempt_count - 1] * (1 + jitter)


async def _beginning(response: httpx.Response) -> str:
    """The first few KiB of an answer; the rest is never read."""
    body = b""
    async for chunk in response.aiter_raw(limits.WEBHOOK_RESPONSE_BYTES):
        body += chunk
        if len(body) >= limits.WEBHOOK_RESPONSE_BYTES:
            break
    return body[: limits.WEBHOOK_RESPONSE_BYTES].decode(errors="replace").replace("\x00", "")


async def _record(context: Context, delivery: DueDelivery, attempt: Attempt) -> None:
    now = utc_now()
    async with context.db.write() as session:
        row = await webhooks.lock_delivery(session, delivery.id)
        session.add(
            WebhookAttempt(
                delivery_id=row.id,
                at=now,
                duration_ms=attempt.duration_ms,
                status_code=attempt.status_code,
                error=attempt.error,
                manual=False,
            )
        )
        row.attempt_count += 1
        row.leased_until = None
        if row.status == "delivered":
            return  # a second sender, after this one's lease had ended, was quicker
        if attempt.error is None:
            row.status = "delivered"
            row.delivered_at = now
            row.next_attempt_at = None
            return
        delay_s = retry_delay_s(row.attempt_count)
        row.next_attempt_at = now + timedelta(seconds=delay_s) if delay_s is not None else None
        if delay_s is None:
            row.status = "dead"

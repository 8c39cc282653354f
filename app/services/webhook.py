"""The outbox: claims due deliveries, sends them, records every attempt, and judges their receivers."""

import asyncio
import random
from datetime import datetime, timedelta

import httpx

from app.core import limits
from app.core.clock import utc_now
from app.core.logger import get_logger, redact_url
from app.core.secrets import signing_secrets
from app.db.models import WebhookAttempt, WebhookDelivery
from app.db.repositories import webhooks
from app.db.repositories.webhooks import DueDelivery
from app.services import endpoints
from app.services.context import Context
from app.services.webhook_post import GONE, Attempt, Message, post

__all__ = ["DueDelivery", "claim", "deliver", "probe_delay_s", "retry_delay_s"]

log = get_logger(__name__)


async def claim(context: Context, rows: int) -> list[DueDelivery]:
    """Lease at most `rows` of what is due now.

    The claim commits before anything is sent, and no session is held while a receiver is waited for. A sender that
    dies after sending leaves a lease that ends by itself; the receiver then gets the event again under the same id.
    """
    now = utc_now()
    rows = min(rows, limits.WEBHOOK_CLAIM_ROWS)
    async with context.db.write() as session:
        return await webhooks.claim_due(session, now, now + timedelta(seconds=limits.WEBHOOK_LEASE_S), rows)


async def deliver(context: Context, client: httpx.AsyncClient, delivery: DueDelivery) -> None:
    """Send a claimed delivery and record what came of it; a sender that is cancelled gives its lease back."""
    secrets = signing_secrets(delivery.secret, delivery.old_secrets, utc_now())
    message = Message(delivery.event_id, delivery.event_type, delivery.event_created_at, delivery.data)
    try:
        attempt = await post(context, client, delivery.url, secrets, message)
        disable = await _record(context, delivery, attempt)
    except asyncio.CancelledError:
        await asyncio.shield(_give_back(context, delivery))
        raise
    log.info(
        "webhook failed" if attempt.error else "webhook delivered",
        payment=delivery.payment_id,
        event_type=delivery.event_type,
        delivery=delivery.id,
        status_code=attempt.status_code,
        error=attempt.error,
        detail=attempt.error_detail,
    )
    if disable is not None and delivery.endpoint_id is not None:
        async with context.db.write() as session:
            await endpoints.disable_failed(session, delivery.endpoint_id, disable, delivery.id)


def retry_delay_s(failure_count: int, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next attempt after `failure_count` failed ones, ±20 %; None when there is none left.

    A receiver's `Retry-After` can put it off, never bring it forward.
    """
    if failure_count > len(limits.WEBHOOK_RETRY_DELAYS_S):
        return None
    jitter = random.uniform(-1, 1) * limits.WEBHOOK_RETRY_JITTER_PERCENT / 100  # noqa: S311 spreads load, no secret
    return max(limits.WEBHOOK_RETRY_DELAYS_S[failure_count - 1] * (1 + jitter), retry_after_s or 0)


def probe_delay_s(failure_count: int) -> float | None:
    """Seconds that a receiver is left alone after so many failures in a row; None: not at all."""
    beyond = failure_count - limits.WEBHOOK_BREAKER_FAILURES
    if beyond < 0:
        return None
    return min(limits.WEBHOOK_PROBE_MIN_S * (1 << min(beyond, 16)), limits.WEBHOOK_PROBE_MAX_S)


async def _record(context: Context, delivery: DueDelivery, attempt: Attempt) -> endpoints.DisabledReason | None:
    """Store an attempt and what follows for delivery and receiver; returns why its endpoint is to be disabled, if so.

    Locks the receiver, then the delivery. Disabling, which begins with the endpoint, is left to a transaction of its
    own.
    """
    now = utc_now()
    disable: endpoints.DisabledReason | None = None
    async with context.db.write() as session:
        if attempt.error is None:
            await webhooks.forget_failures(session, delivery.receiver)
        elif attempt.error != "signing_failed":
            receiver = await webhooks.note_failure(session, delivery.receiver, now, attempt.is_unavailable)
            pause_s = probe_delay_s(receiver.failure_count)
            receiver.probe_at = now + timedelta(seconds=pause_s) if pause_s is not None else None
            if now - receiver.failing_since >= timedelta(seconds=limits.WEBHOOK_GIVE_UP_S):
                disable = "failing"
            elif attempt.status_code == GONE:
                disable = "gone"
        row = await webhooks.lock_delivery(session, delivery.id)
        _apply(row, delivery, attempt, disable, now)
        session.add(
            WebhookAttempt(
                delivery_id=row.id,
                at=attempt.at,
                duration_ms=attempt.duration_ms,
                status_code=attempt.status_code,
                error=attempt.error,
                error_detail=attempt.error_detail,
                response_body=attempt.response_body,
                next_attempt_at=row.next_attempt_at,
                manual=delivery.manual,
            )
        )
        if disable == "failing" and delivery.endpoint_id is None:  # an address that nobody can disable
            await session.flush()
            ended = await webhooks.end_pending(session, delivery.receiver, disable)
            log.error("webhook receiver given up", receiver=redact_url(delivery.url), ended=ended)
    return disable


def _apply(
    row: WebhookDelivery,
    delivery: DueDelivery,
    attempt: Attempt,
    disable: endpoints.DisabledReason | None,
    now: datetime,
) -> None:
    """What an attempt makes of its delivery."""
    row.attempt_count += 1
    if row.leased_until == delivery.leased_until:  # else a second sender has it by now
        row.leased_until = None
    if row.status == "delivered" or (row.status == "dead" and attempt.error is not None):
        return  # a second sender, after this one's lease had ended, was quicker; or the endpoint was disabled
    if attempt.error is None:
        row.status, row.dead_reason, row.failure_count = "delivered", None, 0
        row.delivered_at, row.next_attempt_at, row.manual = now, None, False
        return
    row.manual = False
    row.failure_count += 1
    delay_s = None if disable else retry_delay_s(row.failure_count, attempt.retry_after_s)
    if delay_s is None:
        row.status, row.dead_reason, row.next_attempt_at = "dead", disable or "attempts_used_up", None
    else:
        row.next_attempt_at = now + timedelta(seconds=delay_s)


async def _give_back(context: Context, delivery: DueDelivery) -> None:
    async with context.db.write() as session:
        await webhooks.give_back(session, delivery.id, delivery.leased_until)

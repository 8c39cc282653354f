"""The outbox: claims due deliveries, sends them, records every attempt, and judges their receivers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import httpx
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits, metrics
from app.core.clock import utc_now
from app.core.logger import get_logger, report_error
from app.core.secrets import signing_secrets
from app.db.models import WebhookAttempt, WebhookDelivery
from app.db.repositories import pauses, receivers, webhook_claims, webhooks
from app.db.repositories.webhook_claims import DueDelivery
from app.services import endpoints
from app.services.context import Context
from app.services.endpoints import DisabledReason
from app.services.webhook_backlog import end_given_up
from app.services.webhook_post import GONE, OUR_MISTAKES, Attempt, Message, post

__all__ = [
    "Attempt",
    "DueDelivery",
    "Outcome",
    "claim",
    "forget_silent",
    "probe_delay_s",
    "record",
    "retry_delay_s",
    "send",
]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a claimed delivery; without an attempt its lease is given back."""

    delivery: DueDelivery
    attempt: Attempt | None


async def claim(context: Context, rows: int) -> list[DueDelivery]:
    """Lease at most `rows` of what is due now; nothing while webhooks are paused.

    The claim commits before anything is sent, and no session is held while a receiver is waited for. A sender that
    dies after sending leaves a lease that ends by itself; the receiver then gets the event again under the same id.
    """
    now = utc_now()
    rows = min(rows, limits.WEBHOOK_CLAIM_ROWS)
    async with context.db.write() as session:
        if await pauses.webhooks_paused(session):
            return []
        return await webhook_claims.claim_due(session, now, now + timedelta(seconds=limits.WEBHOOK_LEASE_S), rows)


async def send(context: Context, client: httpx.AsyncClient, delivery: DueDelivery) -> Attempt:
    """Send a claimed delivery once. Nothing of it is stored yet."""
    secrets = signing_secrets(delivery.secret, delivery.old_secrets, utc_now())
    message = Message(delivery.event_id, delivery.event_type, delivery.event_created_at, delivery.data)
    try:
        attempt = await post(context, client, delivery.url, secrets, message)
    except Exception as error:  # noqa: BLE001 it is reported
        report = report_error(log, error, delivery=delivery.id)
        attempt = Attempt(utc_now(), 0, error="internal", error_detail=f"our mistake; the log has it as {report}")
    _measure(delivery, attempt)
    log.info(
        "webhook failed" if attempt.error else "webhook delivered",
        payment=delivery.payment_id,
        event_type=delivery.event_type,
        delivery=delivery.id,
        status_code=attempt.status_code,
        error=attempt.error,
        detail=attempt.error_detail,
    )
    return attempt


def _measure(delivery: DueDelivery, attempt: Attempt) -> None:
    metrics.WEBHOOK_ATTEMPT_SECONDS.labels(attempt.outcome).observe(attempt.duration_ms / 1000)
    tells = delivery.event_type in ("payment.detected", "payment.confirmed")
    if attempt.error is None and tells and delivery.mined_at is not None and not delivery.manual:
        seconds = (utc_now() - delivery.mined_at).total_seconds()
        metrics.PAYMENT_TOLD_SECONDS.labels(delivery.event_type).observe(max(seconds, 0.0))


async def record(context: Context, outcomes: Sequence[Outcome]) -> None:
    """Store attempts and what follows for deliveries and receivers; give back what was not sent.

    What an endpoint's old URL answered says nothing of its new one.

    One transaction for all that has come together: on SQLite, where writers do not queue, one for each starved some
    for ten seconds. Locks receivers, then deliveries, each in order. Disabling, which begins with the endpoint, is
    left to transactions of its own.
    """
    now = utc_now()
    disable: dict[str, tuple[DisabledReason, DueDelivery]] = {}
    async with context.db.write() as session:
        verdicts = await _judge_receivers(session, outcomes, now)
        locked = await webhooks.lock_deliveries(session, [outcome.delivery.id for outcome in outcomes])
        urls = await webhooks.urls_of(session, {outcome.delivery.receiver for outcome in outcomes})
        for outcome in outcomes:
            row, delivery, attempt = locked[outcome.delivery.id], outcome.delivery, outcome.attempt
            if row.leased_until == delivery.leased_until:  # else a second sender has it by now
                row.leased_until = None
            if attempt is None:
                continue
            verdict: DisabledReason | None = "gone" if attempt.status_code == GONE else verdicts.get(delivery.receiver)
            if attempt.error is None or urls.get(delivery.receiver, delivery.url) != delivery.url:
                verdict = None
            _apply(row, attempt, verdict, now)
            session.add(_attempt_row(row, delivery, attempt))
            if verdict is not None and delivery.endpoint_id is not None:
                disable[delivery.endpoint_id] = verdict, delivery
        await session.flush()
        for receiver in sorted({each.delivery.receiver for each in outcomes if each.delivery.endpoint_id is None}):
            if verdicts.get(receiver) is not None:  # an address that nobody can disable
                ended = await end_given_up(session, receiver, now)
                log.error("webhook receiver given up", receiver=receiver, ended=ended)
    for endpoint_id, (reason, delivery) in disable.items():
        try:
            async with context.db.write() as session:
                await endpoints.disable_failed(session, endpoint_id, reason, delivery.url, delivery.id)
        except (SQLAlchemyError, OSError, TimeoutError) as error:  # the attempts are stored; the next failure disables
            log.error("disabling a webhook endpoint failed", endpoint=endpoint_id, reason=f"{type(error).__name__}")


async def forget_silent(session: AsyncSession) -> int:
    """Delete what is known of receivers that have not failed for `WEBHOOK_SILENCE_S`, whose next failure begins anew;
    returns how many, `HOUSEKEEPING_ROWS` at most.

    None while webhooks are paused: a pause is no silence, and its end puts the receivers' times off by as much.
    """
    if await pauses.webhooks_paused(session):
        return 0
    before = utc_now() - timedelta(seconds=limits.WEBHOOK_SILENCE_S)
    return await receivers.forget_silent(session, before, limits.HOUSEKEEPING_ROWS)


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


async def _judge_receivers(
    session: AsyncSession, outcomes: Sequence[Outcome], now: datetime
) -> dict[str, DisabledReason]:
    """Note who answered and who did not; returns those that have had no success for too long.

    What was given up before is told nothing more: a later failure would end what was made since then.
    """
    attempts = [(each.delivery.receiver, each.attempt) for each in outcomes if each.attempt is not None]
    locked = await receivers.lock_receivers(session, {receiver for receiver, _ in attempts})
    given_up = {row.receiver for row in locked if receivers.is_given_up(row)}
    well = {receiver for receiver, attempt in attempts if attempt.error is None}
    await receivers.forget_failures(session, *sorted(well))
    verdicts: dict[str, DisabledReason] = {}
    for receiver, attempt in sorted(attempts, key=lambda each: each[0]):
        if receiver in well or receiver in given_up or attempt.error in OUR_MISTAKES:
            continue
        state = await receivers.note_failure(session, receiver, now, attempt.is_unavailable)
        pause_s = probe_delay_s(state.failure_count)
        state.probe_at = now + timedelta(seconds=pause_s) if pause_s is not None else None
        if now - state.failing_since >= timedelta(seconds=limits.WEBHOOK_GIVE_UP_S):
            verdicts[receiver] = "failing"
        await session.flush()
    return verdicts


def _apply(row: WebhookDelivery, attempt: Attempt, verdict: DisabledReason | None, now: datetime) -> None:
    """What an attempt makes of its delivery; with a `verdict` it was the last one."""
    row.attempt_count += 1
    if row.status == "delivered" or (row.status == "dead" and attempt.error is not None):
        return  # a second sender, after this one's lease had ended, was quicker; or the endpoint was disabled
    if attempt.error is None:
        row.status, row.dead_reason, row.failure_count = "delivered", None, 0
        row.delivered_at, row.next_attempt_at, row.manual = now, None, False
        return
    row.manual = False
    row.failure_count += 1
    delay_s = None if verdict else retry_delay_s(row.failure_count, attempt.retry_after_s)
    if delay_s is None:
        row.status, row.dead_reason, row.next_attempt_at = "dead", verdict or "attempts_used_up", None
    else:
        row.next_attempt_at = now + timedelta(seconds=delay_s)


def _attempt_row(row: WebhookDelivery, delivery: DueDelivery, attempt: Attempt) -> WebhookAttempt:
    return WebhookAttempt(
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

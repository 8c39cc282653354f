"""The delivery log, and sending again what is in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.errors import Conflict, NotFound
from app.db.models import WebhookAttempt, WebhookDelivery
from app.db.repositories import delivery_log, webhooks
from app.db.repositories.webhooks import HeldEndpoint
from app.services.decide import EventType
from app.services.views import View

DeadReason = Literal["attempts_used_up", "gone", "failing", "endpoint_disabled", "endpoint_deleted"]


class AttemptView(View):
    """One request. `error` is null for a 2xx answer, else a code such as `timeout` or `http_500`."""

    at: str
    duration_ms: int
    status_code: int | None
    error: str | None
    error_detail: str | None
    response_body: str | None
    next_attempt_at: str | None
    manual: bool


class DeliveryView(View):
    """One event to one receiver; `endpoint_id` is null for a payment's own `webhook_url`."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str
    event_type: EventType
    payment_id: str
    endpoint_id: str | None
    url: str
    status: Literal["pending", "delivered", "dead"]
    dead_reason: DeadReason | None
    attempt_count: int
    next_attempt_at: str | None
    delivered_at: str | None
    created_at: str
    attempts: list[AttemptView]


class Replayed(View):
    """How many deliveries are to be sent again. At most 1,000 in one call: call again until it is 0."""

    replayed: int


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Where a delivery stands. `manual`: it is to be sent again already, on a person's word."""

    merchant_id: str
    status: str
    manual: bool
    delivered_at: str | None


async def list_deliveries(
    session: AsyncSession,
    merchant_id: str,
    status: str | None,
    payment_id: str | None,
    endpoint_id: str | None,
    before_id: str | None,
    limit: int,
) -> tuple[list[DeliveryView], str | None]:
    """The delivery log, newest first, each with its attempts."""
    rows = await delivery_log.list_deliveries(
        session, merchant_id, status, payment_id, endpoint_id, before_id, limit + 1
    )
    attempts = await delivery_log.list_attempts(session, [row.id for row, _, _ in rows[:limit]])
    views = [_delivery_view(row, event_type, url, attempts.get(row.id, [])) for row, event_type, url in rows[:limit]]
    return views, rows[limit - 1][0].id if len(rows) > limit else None


async def replay(session: AsyncSession, merchant_id: str, delivery_id: str) -> DeliveryView:
    """Send a delivery again, now, whatever became of it, under its old id; its schedule begins anew.

    Raises NotFound; Conflict while it is under way, and for an endpoint that is disabled or deleted.
    """
    held = {endpoint.id: endpoint for endpoint in await webhooks.hold_endpoints(session, merchant_id)}
    found = await delivery_log.lock_own_delivery(session, merchant_id, delivery_id)
    if found is None:
        raise NotFound(f"there is no webhook delivery {delivery_id!r}")
    row, event_type = found
    endpoint = None if row.endpoint_id is None else _usable(held, row.endpoint_id)
    now = utc_now()
    if row.leased_until is not None and row.leased_until >= now:
        raise Conflict("the delivery is being sent at this moment")
    _send_again(row, endpoint, now)
    attempts = await delivery_log.list_attempts(session, [row.id])
    return _delivery_view(row, event_type, row.url, attempts.get(row.id, []))


async def replay_dead(session: AsyncSession, merchant_id: str, since: datetime, endpoint_id: str | None) -> Replayed:
    """Send dead deliveries again that were made since then, oldest first, at most `WEBHOOK_REPLAY_ROWS` of them.

    Those of disabled and deleted endpoints stay. Raises NotFound, or Conflict for an `endpoint_id` that is disabled.
    """
    held = {endpoint.id: endpoint for endpoint in await webhooks.hold_endpoints(session, merchant_id)}
    if endpoint_id is not None:
        if endpoint_id not in held:
            raise NotFound(f"there is no webhook endpoint {endpoint_id!r}")
        held = {endpoint_id: _usable(held, endpoint_id)}
    usable = {endpoint.id for endpoint in held.values() if endpoint.disabled_at is None}
    rows = await delivery_log.lock_dead(
        session, merchant_id, since, usable, endpoint_id is None, limits.WEBHOOK_REPLAY_ROWS
    )
    now = utc_now()
    for row in rows:
        _send_again(row, held[row.endpoint_id] if row.endpoint_id is not None else None, now)
    return Replayed(replayed=len(rows))


async def count_dead(session: AsyncSession, merchant_id: str, since: datetime) -> int:
    """How many `replay_dead` would send again, in as many calls as it takes."""
    endpoints = await webhooks.list_endpoints(session, merchant_id)
    usable = {endpoint.id for endpoint in endpoints if endpoint.disabled_at is None}
    return await delivery_log.count_dead(session, merchant_id, since, usable)


async def find(session: AsyncSession, delivery_id: str) -> Outgoing:
    """A delivery of any merchant. Raises NotFound."""
    row = await delivery_log.get_delivery(session, delivery_id)
    if row is None:
        raise NotFound(f"there is no webhook delivery {delivery_id!r}")
    return Outgoing(row.merchant_id, row.status, row.manual, _time(row.delivered_at))


def _usable(held: Mapping[str, HeldEndpoint], endpoint_id: str) -> HeldEndpoint:
    if endpoint_id not in held:
        raise Conflict(f"the webhook endpoint {endpoint_id} was deleted")
    if held[endpoint_id].disabled_at is not None:
        raise Conflict(f"the webhook endpoint {endpoint_id} is disabled; enable it first")
    return held[endpoint_id]


def _send_again(row: WebhookDelivery, endpoint: HeldEndpoint | None, now: datetime) -> None:
    row.status, row.dead_reason, row.failure_count = "pending", None, 0
    row.manual, row.next_attempt_at = True, now
    if endpoint is not None:
        row.url = endpoint.url


def _delivery_view(row: WebhookDelivery, event_type: str, url: str, attempts: list[WebhookAttempt]) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        event_id=row.event_id,
        event_type=event_type,  # type: ignore[arg-type]
        payment_id=row.payment_id,
        endpoint_id=row.endpoint_id,
        url=url,
        status=row.status,  # type: ignore[arg-type]
        dead_reason=row.dead_reason,  # type: ignore[arg-type]
        attempt_count=row.attempt_count,
        next_attempt_at=_time(row.next_attempt_at),
        delivered_at=_time(row.delivered_at),
        created_at=rfc3339(row.created_at),
        attempts=[
            AttemptView(
                at=rfc3339(attempt.at),
                duration_ms=attempt.duration_ms,
                status_code=attempt.status_code,
                error=attempt.error,
                error_detail=attempt.error_detail,
                response_body=attempt.response_body,
                next_attempt_at=_time(attempt.next_attempt_at),
                manual=attempt.manual,
            )
            for attempt in attempts
        ],
    )


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)

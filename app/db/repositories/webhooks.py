"""Endpoints, and the outbox with its leases."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Integer, bindparam, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.core import limits
from app.db.models import Event, Merchant, WebhookAttempt, WebhookDelivery, WebhookEndpoint

# Made once: every change of a payment runs it.
_ENDPOINTS: Final = (
    select(WebhookEndpoint)
    .where(WebhookEndpoint.merchant_id == bindparam("merchant_id"), WebhookEndpoint.deleted_at.is_(None))
    .order_by(WebhookEndpoint.id.desc())
    .limit(bindparam("limit", type_=Integer))
)


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A claimed delivery with all that sending needs; no session is held while it is sent."""

    id: str
    url: str
    attempt_count: int
    event_id: str
    event_type: str
    payment_id: str
    event_created_at: datetime
    data: dict[str, object]
    secret: bytes


async def get_endpoint(session: AsyncSession, merchant_id: str, endpoint_id: str) -> WebhookEndpoint | None:
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id,
        WebhookEndpoint.merchant_id == merchant_id,
        WebhookEndpoint.deleted_at.is_(None),
    )
    return await session.scalar(query)


async def list_endpoints(
    session: AsyncSession, merchant_id: str, before_id: str | None = None, limit: int = limits.ENDPOINTS_PER_MERCHANT
) -> Sequence[WebhookEndpoint]:
    query = _ENDPOINTS if before_id is None else _ENDPOINTS.where(WebhookEndpoint.id < before_id)
    return (await session.scalars(query, {"merchant_id": merchant_id, "limit": limit})).all()


async def claim_due(session: AsyncSession, now: datetime, leased_until: datetime) -> list[DueDelivery]:
    """Lease due deliveries so that no other sender takes them, oldest first.

    A receiver never gets more than `WEBHOOK_ENDPOINT_CONCURRENCY` at once, so that a slow one keeps no others waiting.
    A payment's events reach a receiver in order while it answers: a later one waits for the first attempt of an
    earlier one, and no longer.
    """
    free = (WebhookDelivery.leased_until.is_(None)) | (WebhookDelivery.leased_until < now)
    earlier, busy = aliased(WebhookDelivery), aliased(WebhookDelivery)
    waits_for_earlier = exists().where(
        earlier.payment_id == WebhookDelivery.payment_id,
        earlier.endpoint_id.is_not_distinct_from(WebhookDelivery.endpoint_id),
        earlier.event_version < WebhookDelivery.event_version,
        earlier.status == "pending",
        earlier.attempt_count == 0,
    )
    in_flight = (
        select(func.count())
        .where(busy.url == WebhookDelivery.url, busy.status == "pending", busy.leased_until >= now)
        .scalar_subquery()
    )
    rank = func.row_number().over(partition_by=WebhookDelivery.url, order_by=WebhookDelivery.id) + in_flight
    due = (
        select(WebhookDelivery.id, rank.label("rank"))
        .where(WebhookDelivery.status == "pending", WebhookDelivery.next_attempt_at <= now, free, ~waits_for_earlier)
        .subquery()
    )
    chosen = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.id.in_(select(due.c.id).where(due.c.rank <= limits.WEBHOOK_ENDPOINT_CONCURRENCY)), free)
        .order_by(WebhookDelivery.id)
        .limit(limits.WEBHOOK_CLAIM_ROWS)
        .with_for_update(skip_locked=True)
    )
    ids = list(await session.scalars(chosen))
    if not ids:
        return []
    await session.execute(update(WebhookDelivery).where(WebhookDelivery.id.in_(ids)).values(leased_until=leased_until))
    rows = await session.execute(
        select(WebhookDelivery, Event, WebhookEndpoint.secret, Merchant.webhook_secret)
        .join(Event, Event.id == WebhookDelivery.event_id)
        .join(Merchant, Merchant.id == WebhookDelivery.merchant_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id.in_(ids))
        .order_by(WebhookDelivery.id)
    )
    return [
        DueDelivery(
            id=delivery.id,
            url=delivery.url,
            attempt_count=delivery.attempt_count,
            event_id=event.id,
            event_type=event.type,
            payment_id=event.payment_id,
            event_created_at=event.created_at,
            data=event.data,
            secret=endpoint_secret or merchant_secret,
        )
        for delivery, event, endpoint_secret, merchant_secret in rows
    ]


async def lock_delivery(session: AsyncSession, delivery_id: str) -> WebhookDelivery:
    query = select(WebhookDelivery).where(WebhookDelivery.id == delivery_id).with_for_update()
    return (await session.scalars(query)).one()


async def list_deliveries(
    session: AsyncSession,
    merchant_id: str,
    status: str | None,
    payment_id: str | None,
    endpoint_id: str | None,
    before_id: str | None,
    limit: int,
) -> list[tuple[WebhookDelivery, str]]:
    """Deliveries with the type of their event, newest first."""
    query = (
        select(WebhookDelivery, Event.type)
        .join(Event, Event.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.merchant_id == merchant_id)
    )
    for column, value in (
        (WebhookDelivery.status, status),
        (WebhookDelivery.payment_id, payment_id),
        (WebhookDelivery.endpoint_id, endpoint_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if before_id is not None:
        query = query.where(WebhookDelivery.id < before_id)
    rows = await session.execute(query.order_by(WebhookDelivery.id.desc()).limit(limit))
    return [(delivery, event_type) for delivery, event_type in rows]


async def list_attempts(session: AsyncSession, delivery_ids: list[str]) -> dict[str, list[WebhookAttempt]]:
    query = select(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(delivery_ids)).order_by(WebhookAttempt.id)
    found: dict[str, list[WebhookAttempt]] = {}
    for attempt in await session.scalars(query):
        found.setdefault(attempt.delivery_id, []).append(attempt)
    return found


async def count_due(session: AsyncSession, now: datetime) -> int:
    query = select(func.count()).where(WebhookDelivery.status == "pending", WebhookDelivery.next_attempt_at <= now)
    return int(await session.scalar(query) or 0)

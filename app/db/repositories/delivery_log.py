"""The log of webhook deliveries, and how many of them wait or were given up."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Event, WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookReceiver
from app.db.repositories import receivers
from app.db.repositories.webhooks import IS_DEAD, IS_PENDING, is_closed


@dataclass(frozen=True, slots=True)
class WebhookCounts:
    """`due` are those of `pending` whose time has come, under way or waiting; `dead` those that were given up."""

    endpoints_disabled: int
    pending: int
    due: int
    dead: int


async def lock_own_delivery(
    session: AsyncSession, merchant_id: str, delivery_id: str
) -> tuple[WebhookDelivery, str] | None:
    """A delivery of the merchant's, locked, with its event's type."""
    query = (
        select(WebhookDelivery, Event.type)
        .join(Event, Event.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.id == delivery_id, WebhookDelivery.merchant_id == merchant_id)
        .with_for_update(of=WebhookDelivery)
    )
    row = (await session.execute(query)).first()
    return None if row is None else (row[0], row[1])


async def lock_dead(
    session: AsyncSession,
    merchant_id: str,
    since: datetime,
    endpoint_ids: Collection[str],
    own_urls: bool,
    rows: int,
) -> list[WebhookDelivery]:
    """Dead deliveries made since then to these endpoints, and to payments' own URLs if asked for; oldest first."""
    query = (
        select(WebhookDelivery)
        .where(_dead(merchant_id, since, endpoint_ids, own_urls))
        .order_by(WebhookDelivery.id)
        .limit(rows)
        .with_for_update(skip_locked=True)
    )
    return list(await session.scalars(query))


async def count_dead(session: AsyncSession, merchant_id: str, since: datetime, endpoint_ids: Collection[str]) -> int:
    """How many `lock_dead` would find, payments' own URLs included."""
    query = select(func.count()).select_from(WebhookDelivery).where(_dead(merchant_id, since, endpoint_ids, True))
    return await session.scalar(query) or 0


def _dead(merchant_id: str, since: datetime, endpoint_ids: Collection[str], own_urls: bool) -> ColumnElement[bool]:
    receives = WebhookDelivery.endpoint_id.in_(endpoint_ids)
    return and_(
        WebhookDelivery.merchant_id == merchant_id,
        IS_DEAD,
        WebhookDelivery.created_at >= since,
        or_(receives, WebhookDelivery.endpoint_id.is_(None)) if own_urls else receives,
    )


async def get_delivery(session: AsyncSession, delivery_id: str) -> WebhookDelivery | None:
    """Any merchant's."""
    return await session.get(WebhookDelivery, delivery_id)


async def list_deliveries(
    session: AsyncSession,
    merchant_id: str,
    status: str | None,
    payment_id: str | None,
    endpoint_id: str | None,
    before_id: str | None,
    limit: int,
) -> list[tuple[WebhookDelivery, str, str]]:
    """Deliveries with the type of their event and the URL that they went to, or will; newest first."""
    url_now = func.coalesce(WebhookEndpoint.url, WebhookDelivery.url)
    query = (
        select(
            WebhookDelivery, Event.type, case((WebhookDelivery.status == "pending", url_now), else_=WebhookDelivery.url)
        )
        .join(Event, Event.id == WebhookDelivery.event_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.merchant_id == merchant_id)
    )
    if status is not None:
        query = query.where({"pending": IS_PENDING, "dead": IS_DEAD}.get(status, WebhookDelivery.status == status))
    for column, value in (
        (WebhookDelivery.payment_id, payment_id),
        (WebhookDelivery.endpoint_id, endpoint_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if before_id is not None:
        query = query.where(WebhookDelivery.id < before_id)
    rows = await session.execute(query.order_by(WebhookDelivery.id.desc()).limit(limit))
    return [(delivery, event_type, url) for delivery, event_type, url in rows]


async def list_attempts(session: AsyncSession, delivery_ids: list[str]) -> dict[str, list[WebhookAttempt]]:
    query = select(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(delivery_ids)).order_by(WebhookAttempt.id)
    found: dict[str, list[WebhookAttempt]] = {}
    for attempt in await session.scalars(query):
        found.setdefault(attempt.delivery_id, []).append(attempt)
    return found


async def count_due(session: AsyncSession, now: datetime) -> int:
    query = select(func.count()).where(IS_PENDING, WebhookDelivery.next_attempt_at <= now)
    return int(await session.scalar(query) or 0)


async def oldest_due(session: AsyncSession, now: datetime) -> datetime | None:
    """Since when the delivery that waits longest is due, without those that wait for a receiver that is only probed,
    or for their end."""
    query = select(func.min(WebhookDelivery.next_attempt_at)).where(
        IS_PENDING,
        WebhookDelivery.next_attempt_at <= now,
        WebhookDelivery.receiver.not_in(select(WebhookReceiver.receiver).where(receivers.is_probed())),
        WebhookDelivery.receiver.not_in(select(WebhookEndpoint.id).where(is_closed())),
    )
    return await session.scalar(query)


async def count_probed(session: AsyncSession) -> int:
    """Receivers that have failed so often that they are only probed."""
    return await session.scalar(select(func.count()).select_from(WebhookReceiver).where(receivers.is_probed())) or 0


def given_up() -> ColumnElement[bool]:
    """Dead deliveries that were tried; what is not sent because its endpoint is disabled or deleted is none of them."""
    not_wanted = ("endpoint_disabled", "endpoint_deleted")
    return and_(IS_DEAD, WebhookDelivery.dead_reason.not_in(not_wanted))


async def counts(session: AsyncSession, now: datetime) -> WebhookCounts:
    """What a gauge shows, of all merchants."""
    disabled = select(func.count()).where(
        WebhookEndpoint.disabled_at.is_not(None), WebhookEndpoint.deleted_at.is_(None)
    )
    pending = select(func.count()).where(IS_PENDING)
    dead = select(func.count()).where(given_up())
    row = await session.execute(select(disabled.scalar_subquery(), pending.scalar_subquery(), dead.scalar_subquery()))
    endpoints_disabled, pending_count, dead_count = row.one()
    return WebhookCounts(endpoints_disabled, pending_count, await count_due(session, now), dead_count)

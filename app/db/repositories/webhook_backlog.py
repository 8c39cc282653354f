"""What is pending for receivers that get nothing more: ended in batches, for there may be any number of it."""

from datetime import datetime
from typing import Literal

from sqlalchemy import Select, select, true, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.core import limits
from app.db.models import WebhookDelivery, WebhookEndpoint, WebhookReceiver
from app.db.repositories.receivers import is_given_up, may_be_given_up
from app.db.repositories.webhooks import IS_PENDING, is_closed


async def end_pending(session: AsyncSession, receiver: str, reason: str, made_until: datetime | None = None) -> int:
    """Make at most `WEBHOOK_END_ROWS` of a receiver's pending deliveries dead; returns how many.

    Whoever needs all of them asks again. Those that a transaction of somebody else holds are passed over, so that no
    two wait for each other. One under way may still be recorded as delivered.
    """
    some = _owed(receiver, made_until).limit(limits.WEBHOOK_END_ROWS).with_for_update(skip_locked=True)
    ended = await session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(list(await session.scalars(some))))
        .values(status="dead", dead_reason=reason, next_attempt_at=None, manual=False)
        .returning(WebhookDelivery.id)
    )
    return len(ended.all())


async def is_owed(session: AsyncSession, receiver: str, made_until: datetime) -> bool:
    """Whether anything that was made by then is pending."""
    return await session.scalar(_owed(receiver, made_until).limit(1)) is not None


async def closed_and_owed(session: AsyncSession) -> list[str]:
    """Endpoints that are disabled or deleted and still have something pending."""
    first = _owed(WebhookEndpoint.id).limit(1).correlate(WebhookEndpoint).scalar_subquery()
    return list(await session.scalars(select(WebhookEndpoint.id).where(is_closed(), first.is_not(None))))


def _owed(receiver: str | InstrumentedAttribute[str], made_until: datetime | None = None) -> Select[str]:
    """A receiver's pending deliveries, out of their index.

    In its order: for an equality and a LIMIT alone, PostgreSQL reads the whole table as soon as its statistics know of
    a backlog, which they do long after it has gone. Measured: a seq scan of all deliveries for each empty answer.
    """
    made = true() if made_until is None else WebhookDelivery.created_at <= made_until
    query = select(WebhookDelivery.id).where(WebhookDelivery.receiver == receiver, IS_PENDING, made)
    return query.order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id)


async def hold_closed(
    session: AsyncSession, endpoint_id: str
) -> Literal["endpoint_disabled", "endpoint_deleted"] | None:
    """Why an endpoint gets nothing; it stays so until the transaction ends. None: it was enabled, or is changed now."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, is_closed())
    row = await session.scalar(query.with_for_update(read=True, skip_locked=True))
    if row is None:
        return None
    return "endpoint_disabled" if row.deleted_at is None else "endpoint_deleted"


async def given_up(session: AsyncSession, now: datetime) -> list[str]:
    """Addresses of payments' own that were given up and still have something pending."""
    rows = await session.scalars(select(WebhookReceiver).where(may_be_given_up(now)))
    return [row.receiver for row in rows if is_given_up(row)]


async def lock_given_up(session: AsyncSession, receiver: str) -> datetime | None:
    """When an address was given up; it stays so until the transaction ends. None: it is not, or somebody holds it."""
    query = select(WebhookReceiver).where(WebhookReceiver.receiver == receiver).with_for_update(skip_locked=True)
    row = await session.scalar(query)
    return row.last_failed_at if row is not None and is_given_up(row) else None

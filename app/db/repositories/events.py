"""The audit trail."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Event


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What the list of events is narrowed by; None means all."""

    type: str | None = None
    payment_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


async def list_of_payment(session: AsyncSession, payment_id: str, after_version: int, limit: int) -> Sequence[Event]:
    """A payment's events by version, above `after_version`."""
    query = select(Event).where(Event.payment_id == payment_id, Event.version > after_version)
    return (await session.scalars(query.order_by(Event.version).limit(limit))).all()


async def list_of_merchant(
    session: AsyncSession, merchant_id: str, wanted: EventFilter, before_id: str | None, limit: int
) -> Sequence[Event]:
    """A merchant's events, newest first, below `before_id`."""
    query = select(Event).where(Event.merchant_id == merchant_id)
    if before_id is not None:
        query = query.where(Event.id < before_id)
    if wanted.type is not None:
        query = query.where(Event.type == wanted.type)
    if wanted.payment_id is not None:
        query = query.where(Event.payment_id == wanted.payment_id)
    if wanted.created_after is not None:
        query = query.where(Event.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(Event.created_at < wanted.created_before)
    return (await session.scalars(query.order_by(Event.id.desc()).limit(limit))).all()


async def list_all(
    session: AsyncSession, merchant_id: str | None, since: datetime | None, until: datetime, after_id: str, limit: int
) -> Sequence[Event]:
    """Events of a merchant, or of all, made from `since` on and before `until`, by id above `after_id`."""
    query = select(Event).where(Event.id > after_id, Event.created_at < until)
    if merchant_id is not None:
        query = query.where(Event.merchant_id == merchant_id)
    if since is not None:
        query = query.where(Event.created_at >= since)
    return (await session.scalars(query.order_by(Event.id).limit(limit))).all()


async def version_of(session: AsyncSession, payment_id: str, event_id: str) -> int | None:
    """The version of a payment's event; None when the payment has no such event."""
    return await session.scalar(select(Event.version).where(Event.id == event_id, Event.payment_id == payment_id))

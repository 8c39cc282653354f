"""The audit trail."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Event


async def list_events(
    session: AsyncSession, merchant_id: str, payment_id: str | None, after: tuple[int, str] | None, limit: int
) -> list[Event]:
    """A payment's events by version, or all of a merchant's, newest first.

    `after` is the (version, id) of the last one seen.
    """
    query = select(Event).where(Event.merchant_id == merchant_id)
    if payment_id is not None:
        query = query.where(Event.payment_id == payment_id).order_by(Event.version)
        if after is not None:
            query = query.where(Event.version > after[0])
    else:
        query = query.order_by(Event.id.desc())
        if after is not None:
            query = query.where(Event.id < after[1])
    return list(await session.scalars(query.limit(limit)))

"""What a merchant sees of sweeps: those that hold money of payments of its own, and of them nothing of others."""

from collections.abc import Collection

from sqlalchemy import Select, exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Payment, Sweep, SweepAttempt, SweepItem


async def list_sweeps(
    session: AsyncSession,
    merchant_id: str,
    status: str | None,
    payment_id: str | None,
    before_id: str | None,
    limit: int,
) -> list[Sweep]:
    """A merchant's sweeps, newest first, below `before_id`."""
    query = _own(merchant_id, payment_id)
    if status is not None:
        query = query.where(Sweep.status == status)
    if before_id is not None:
        query = query.where(Sweep.id < before_id)
    return list(await session.scalars(query.order_by(Sweep.id.desc()).limit(limit)))


async def get_sweep(session: AsyncSession, merchant_id: str, sweep_id: str) -> Sweep | None:
    sweep: Sweep | None = await session.scalar(_own(merchant_id, None).where(Sweep.id == sweep_id))
    return sweep


async def list_items(session: AsyncSession, merchant_id: str, sweep_ids: Collection[str]) -> dict[str, list[SweepItem]]:
    """The merchant's own items of sweeps."""
    query = (
        select(SweepItem)
        .join(Payment, Payment.id == SweepItem.payment_id)
        .where(SweepItem.sweep_id.in_(sweep_ids), Payment.merchant_id == merchant_id)
        .order_by(SweepItem.id)
    )
    found: dict[str, list[SweepItem]] = {}
    for item in await session.scalars(query):
        found.setdefault(item.sweep_id, []).append(item)
    return found


async def list_attempts(session: AsyncSession, sweep_ids: Collection[str]) -> dict[str, list[SweepAttempt]]:
    """The oldest first."""
    query = (
        select(SweepAttempt)
        .where(SweepAttempt.sweep_id.in_(sweep_ids))
        .order_by(SweepAttempt.created_at, SweepAttempt.max_fee_units)
    )
    found: dict[str, list[SweepAttempt]] = {}
    for attempt in await session.scalars(query):
        found.setdefault(attempt.sweep_id, []).append(attempt)
    return found


def _own(merchant_id: str, payment_id: str | None) -> Select[Sweep]:
    """Of one payment by its items; of all of a merchant's by looking at each sweep, newest first."""
    items = (
        select(SweepItem.sweep_id)
        .join(Payment, Payment.id == SweepItem.payment_id)
        .where(Payment.merchant_id == merchant_id)
    )
    if payment_id is not None:
        return select(Sweep).where(Sweep.id.in_(items.where(SweepItem.payment_id == payment_id)))
    return select(Sweep).where(exists(items.where(SweepItem.sweep_id == Sweep.id)))

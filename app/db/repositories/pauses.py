"""What is paused."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Pause
from app.db.repositories.chains import upsert

WEBHOOKS: Final = "webhooks"
SWEEPING: Final = "sweep"


def sweeping_of(chain_name: str) -> str:
    """The name of the pause of one chain's sweeping."""
    return f"{SWEEPING}:{chain_name}"


async def webhooks_paused(session: AsyncSession) -> bool:
    return bool(await session.scalar(select(exists().where(Pause.what == WEBHOOKS))))


async def sweeping_paused(session: AsyncSession, chain_name: str) -> bool:
    """Whether nothing is to be signed for the chain, by a pause of its own or of all."""
    return bool(await session.scalar(select(exists().where(Pause.what.in_((SWEEPING, sweeping_of(chain_name)))))))


async def list_pauses(session: AsyncSession) -> Sequence[Pause]:
    return (await session.scalars(select(Pause).order_by(Pause.what))).all()


async def add(session: AsyncSession, what: str, reason: str, paused_by: str, since: datetime) -> bool:
    """False when it is paused already; that pause stays as it is."""
    values = {"what": what, "reason": reason, "paused_by": paused_by, "since": since}
    made = await session.execute(upsert(session, Pause).values(values).on_conflict_do_nothing().returning(Pause.what))
    return made.first() is not None


async def remove(session: AsyncSession, what: str) -> Pause | None:
    """The pause that was ended; None when there was none."""
    row = await session.scalar(select(Pause).where(Pause.what == what).with_for_update())
    if row is not None:
        await session.delete(row)
    return row

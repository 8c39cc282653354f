"""What was pending for a receiver when it was disabled, deleted or given up, ended batch by batch."""

import random
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import utc_now
from app.core.logger import get_logger
from app.db.repositories import receivers, webhook_backlog
from app.services.context import Context

log = get_logger(__name__)


async def end_some(context: Context) -> int:
    """End one batch of one such receiver, in a transaction of its own; returns how many deliveries are dead by it.

    Any of them, so that one whose batches fail or are held by somebody keeps no others waiting. Nothing of theirs is
    sent meanwhile: claims pass them over.
    """
    async with context.db.read() as session:
        closed = await webhook_backlog.closed_and_owed(session)
        given_up = await webhook_backlog.given_up(session, utc_now())
    owed = [(_end_closed, endpoint) for endpoint in closed] + [(_end_given_up, address) for address in given_up]
    if not owed:
        return 0
    end, receiver = random.choice(owed)  # noqa: S311 no secret
    async with context.db.write() as session:
        ended = await end(session, receiver)
    log.info("pending webhooks ended", receiver=receiver, ended=ended)
    return ended


async def end_given_up(session: AsyncSession, receiver: str, made_until: datetime) -> int:
    """End a batch of what was pending for an address that is given up; returns how many.

    The address is forgotten, so that later payments try it anew, once nothing is left of it.
    """
    ended = await webhook_backlog.end_pending(session, receiver, "failing", made_until)
    if not await webhook_backlog.is_owed(session, receiver, made_until):
        await receivers.forget_failures(session, receiver)
    return ended


async def _end_closed(session: AsyncSession, endpoint_id: str) -> int:
    reason = await webhook_backlog.hold_closed(session, endpoint_id)
    return 0 if reason is None else await webhook_backlog.end_pending(session, endpoint_id, reason)


async def _end_given_up(session: AsyncSession, receiver: str) -> int:
    made_until = await webhook_backlog.lock_given_up(session, receiver)
    return 0 if made_until is None else await end_given_up(session, receiver, made_until)

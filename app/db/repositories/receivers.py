"""How receivers of webhooks are: those that fail at present."""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, case, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.db.models import WebhookReceiver
from app.db.repositories.chains import upsert


async def lock_receivers(session: AsyncSession, receivers: Collection[str]) -> list[WebhookReceiver]:
    """Those of them that fail, locked in order."""
    query = select(WebhookReceiver).where(WebhookReceiver.receiver.in_(receivers))
    return list(await session.scalars(query.order_by(WebhookReceiver.receiver).with_for_update()))


async def note_failure(session: AsyncSession, receiver: str, now: datetime, unavailable: bool) -> WebhookReceiver:
    """Count a failed attempt; the row stays locked until the transaction ends. `unavailable` is what a breaker counts;
    another failure is an answer, and ends such a row. After a long silence failing begins anew."""
    insert = upsert(session, WebhookReceiver).values(
        receiver=receiver, failure_count=int(unavailable), failing_since=now, last_failed_at=now, probe_at=None
    )
    silent = WebhookReceiver.last_failed_at < now - timedelta(seconds=limits.WEBHOOK_SILENCE_S)
    changes = {
        "failure_count": WebhookReceiver.failure_count + 1 if unavailable else 0,
        "failing_since": case((silent, insert.excluded.failing_since), else_=WebhookReceiver.failing_since),
        "last_failed_at": now,
        "probe_at": None,
    }
    await session.execute(insert.on_conflict_do_update(index_elements=[WebhookReceiver.receiver], set_=changes))
    return await session.get_one(WebhookReceiver, receiver, populate_existing=True)


async def forget_failures(session: AsyncSession, *receivers: str) -> None:
    if receivers:
        await session.execute(delete(WebhookReceiver).where(WebhookReceiver.receiver.in_(receivers)))


async def forget_silent(session: AsyncSession, before: datetime, rows: int) -> int:
    """Forget at most so many receivers whose last failure was before then; returns how many."""
    silent = select(WebhookReceiver.receiver).where(WebhookReceiver.last_failed_at < before).limit(rows)
    receivers = list(await session.scalars(silent.with_for_update(skip_locked=True)))  # others lock them in order
    await forget_failures(session, *receivers)
    return len(receivers)


async def forgive_pause(session: AsyncSession, since: datetime, until: datetime) -> None:
    """Let the time of a pause count for nothing in how long receivers have been failing: nobody asked them then.

    One that was given up stays as it is: what was made for it in the pause is not to be ended with the rest.
    """
    query = select(WebhookReceiver).order_by(WebhookReceiver.receiver).with_for_update()
    for row in await session.scalars(query):
        if is_given_up(row):
            continue
        row.failing_since += until - max(row.failing_since, since)
        row.last_failed_at += until - max(row.last_failed_at, since)


def is_given_up(row: WebhookReceiver) -> bool:
    """Whether it is an address of payments' own that had no success for too long. It stays so until all that was
    pending then is dead; an endpoint is disabled instead."""
    is_own = " " in row.receiver
    return is_own and row.last_failed_at - row.failing_since >= timedelta(seconds=limits.WEBHOOK_GIVE_UP_S)


def may_be_given_up(now: datetime) -> ColumnElement[bool]:
    """All that `is_given_up` is true of, and a few more."""
    return WebhookReceiver.failing_since <= now - timedelta(seconds=limits.WEBHOOK_GIVE_UP_S)


def is_probed() -> ColumnElement[bool]:
    return WebhookReceiver.failure_count >= limits.WEBHOOK_BREAKER_FAILURES

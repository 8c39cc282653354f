"""What the doctor asks the database: of itself, and of rows that contradict each other."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.db.engine import Database
from app.db.models import (
    BlockHeader,
    ChainState,
    DepositAddress,
    Event,
    Merchant,
    Payment,
    Sweep,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)
from app.db.repositories import delivery_log
from app.db.repositories.webhooks import IS_PENDING

OPEN = ("pending", "detected", "confirmed")


@dataclass(frozen=True, slots=True)
class Session:
    """Another session of a PostgreSQL server. `blocked_by`: the session that it waits for."""

    pid: int
    application: str
    state: str
    transaction_s: float
    statement_s: float
    blocked_by: int | None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """Webhooks that were not delivered. `due_since`: of those whose receivers are not only probed. `dead` were given
    up, `dead_lately` of them made within DOCTOR_DEAD_S.
    """

    due: int
    due_since: datetime | None
    dead: int
    dead_lately: int


@asynccontextmanager
async def snapshot(db: Database) -> AsyncIterator[AsyncSession]:
    """A session whose queries all see one moment, as SQLite's do by themselves."""
    async with db.read() as session:
        if not db.is_sqlite:
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield session


async def writer_is_free(url: str, wait_s: float) -> bool:
    """Whether SQLite's one writer's place can be had within `wait_s`. On a connection of its own, which is closed."""
    path = make_url(url).database or ":memory:"

    def try_it() -> bool:
        connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) and "busy" not in str(error):
                raise
            return False
        finally:
            connection.close()
        return True

    return await asyncio.to_thread(try_it)


async def clock(session: AsyncSession) -> datetime:
    """The time by PostgreSQL's clock."""
    moment: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return moment


async def other_sessions(session: AsyncSession) -> list[Session]:
    """The sessions of this database in a transaction, the oldest first; PostgreSQL alone."""
    query = text(
        """
        SELECT pid, coalesce(application_name, ''), coalesce(state, ''),
               coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0),
               CASE WHEN state = 'active' THEN coalesce(extract(epoch FROM clock_timestamp() - query_start), 0)
                    ELSE 0 END,
               (pg_blocking_pids(pid))[1]
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
              AND xact_start IS NOT NULL
        ORDER BY xact_start
        LIMIT :rows
        """
    )
    rows = await session.execute(query, {"rows": limits.DOCTOR_ROWS})
    return [Session(pid, name, state, float(age), float(running), by) for pid, name, state, age, running, by in rows]


async def slow_statements(session: AsyncSession) -> list[tuple[float, int]] | None:
    """(mean milliseconds, calls) of this database's slowest statements that run often; None without
    pg_stat_statements.
    """
    installed = text("SELECT count(*) FROM pg_extension WHERE extname = 'pg_stat_statements'")
    if not (await session.execute(installed)).scalar_one():
        return None
    query = text(
        """
        SELECT mean_exec_time, calls FROM pg_stat_statements
        WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND mean_exec_time > :least
              AND calls >= :calls
        ORDER BY mean_exec_time DESC LIMIT :rows
        """
    )
    values = {
        "least": limits.DOCTOR_STATEMENT_MS,
        "calls": limits.DOCTOR_STATEMENT_CALLS,
        "rows": limits.DOCTOR_ROWS,
    }
    try:
        return [(float(mean), int(calls)) for mean, calls in await session.execute(query, values)]
    except DBAPIError:  # installed and not loaded
        return None


async def orphan_rows(session: AsyncSession) -> list[tuple[str, str]]:
    """(table, the table that it refers to) of rows whose reference is gone, the first few. SQLite alone: PostgreSQL
    has none, while SQLite lets whoever forgets its PRAGMA write them.
    """
    query = text('SELECT "table", parent FROM pragma_foreign_key_check LIMIT :rows')
    return [(table, parent) for table, parent in await session.execute(query, {"rows": limits.DOCTOR_ROWS})]


async def payments_to_audit(session: AsyncSession) -> list[str]:
    """Ids of the newest payments, and of the newest ones that are open."""
    newest = select(Payment.id).order_by(Payment.id.desc()).limit(limits.DOCTOR_PAYMENTS)
    is_open = select(Payment.id).where(Payment.status.in_(OPEN)).order_by(Payment.id.desc())
    ids = set(await session.scalars(newest))
    ids.update(await session.scalars(is_open.limit(limits.DOCTOR_PAYMENTS)))
    return sorted(ids)


async def event_versions(session: AsyncSession, payment_ids: Collection[str]) -> dict[str, tuple[int, int]]:
    """(events, the highest version) of each payment."""
    query = (
        select(Event.payment_id, func.count(), func.max(Event.version))
        .where(Event.payment_id.in_(payment_ids))
        .group_by(Event.payment_id)
    )
    return {payment_id: (count, highest) for payment_id, count, highest in await session.execute(query) if payment_id}


async def newest_headers(session: AsyncSession, chain_id: int) -> Sequence[BlockHeader]:
    """The newest kept headers of a chain, at most DOCTOR_HEADERS, from the highest down."""
    query = select(BlockHeader).where(BlockHeader.chain_id == chain_id).order_by(BlockHeader.number.desc())
    return list(await session.scalars(query.limit(limits.DOCTOR_HEADERS)))


async def newest_address(session: AsyncSession) -> DepositAddress | None:
    return await session.scalar(select(DepositAddress).order_by(DepositAddress.id.desc()).limit(1))


async def any_secret(session: AsyncSession) -> bytes | None:
    """One ciphertext under SECRET_KEY."""
    return await session.scalar(select(Merchant.webhook_secret).order_by(Merchant.created_at).limit(1))


async def deliveries(session: AsyncSession, now: datetime, lately: datetime) -> Deliveries:
    dead = select(func.count()).where(delivery_log.given_up())
    return Deliveries(
        due=await delivery_log.count_due(session, now),
        due_since=await delivery_log.oldest_due(session, now),
        dead=await session.scalar(dead) or 0,
        dead_lately=await session.scalar(dead.where(WebhookDelivery.created_at >= lately)) or 0,
    )


async def disabled_endpoints(session: AsyncSession) -> list[tuple[str, str]]:
    """(id, reason) of endpoints that are disabled and not deleted."""
    query = select(WebhookEndpoint.id, WebhookEndpoint.disabled_reason).where(
        WebhookEndpoint.disabled_at.is_not(None), WebhookEndpoint.deleted_at.is_(None)
    )
    return [
        (endpoint_id, reason or "") for endpoint_id, reason in await session.execute(query.limit(limits.DOCTOR_ROWS))
    ]


async def failing_receivers(session: AsyncSession) -> list[tuple[str, str]]:
    """(URL, error of the last attempt) of deliveries that failed and will be tried again, the first few."""
    failing = (
        select(WebhookDelivery.id, WebhookDelivery.url)
        .where(IS_PENDING, WebhookDelivery.failure_count > 0)
        .limit(limits.DOCTOR_ROWS)
        .subquery()
    )
    last = (
        select(failing.c.url, func.max(WebhookAttempt.id).label("attempt_id"))
        .join(WebhookAttempt, WebhookAttempt.delivery_id == failing.c.id)
        .group_by(failing.c.id, failing.c.url)
        .subquery()
    )
    query = select(last.c.url, WebhookAttempt.error).join(WebhookAttempt, WebhookAttempt.id == last.c.attempt_id)
    return [(url, error) for url, error in await session.execute(query) if error is not None]


# --- for a bundle


async def count_by(session: AsyncSession, what: str) -> dict[str, int]:
    """How many `deliveries` or `sweeps` have each status."""
    column = {"deliveries": WebhookDelivery.status, "sweeps": Sweep.status}[what]
    rows = await session.execute(select(column, func.count()).group_by(column))
    return {status: count for status, count in rows}


async def cursors(session: AsyncSession) -> list[dict[str, Any]]:
    """Every column of every chain's state, as it can be printed."""
    rows = (await session.execute(select(ChainState.__table__).order_by(ChainState.chain_id))).mappings()
    return [{name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()} for row in rows]


async def last_events(session: AsyncSession) -> list[tuple[str, datetime]]:
    """(type, when) of the newest events, of whomever they are."""
    query = select(Event.type, Event.created_at).order_by(Event.id.desc()).limit(limits.DOCTOR_EVENTS)
    return [(type_, at) for type_, at in await session.execute(query)]

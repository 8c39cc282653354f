"""One engine, two kinds of session: `read()` for looking, `write()` for a transaction that commits at its end."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiosqlite
from sqlalchemy import QueuePool, event, make_url
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_fixed

from app.core import limits, metrics
from app.core.errors import ConfigError
from app.db.driver import Driver, QuickSession

_AFTER_COMMIT: Final = "paywatch_after_commit"


class Database:
    """The connection pool of one process.

    On SQLite every writing transaction begins IMMEDIATE: one that began as a reader and then wrote could fail half-way
    with "database is locked", whatever the busy timeout.
    """

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self._aside = create_engine(url, limits.DB_ASIDE_POOL_SIZE)
        self._writer = self.engine.execution_options(paywatch_write=True)
        metrics.DB_POOL_CONNECTIONS.watch(self._connections)
        metrics.DB_POOL_LIMIT.watch(self._limit)
        metrics.DB_POOL_USE.watch(self._use)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for reading; whatever it did is rolled back."""
        async with AsyncSession(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    @asynccontextmanager
    async def read_aside(self) -> AsyncIterator[AsyncSession]:
        """As `read()`, on connections that no request or job takes: for what is told while all those are in use."""
        async with AsyncSession(self._aside, expire_on_commit=False, autoflush=False) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed when the block ends, rolled back when it raises or is cancelled."""
        async with AsyncSession(self._writer, expire_on_commit=False) as session:
            async with session.begin():
                yield session
            for act in session.info.get(_AFTER_COMMIT, ()):
                act()

    def _connections(self) -> Iterator[metrics.Sample]:
        pool = self.engine.pool
        if isinstance(pool, QueuePool):  # a database in memory has none
            yield ("in_use",), pool.checkedout()
            yield ("idle",), pool.checkedin()

    def _limit(self) -> Iterator[metrics.Sample]:
        yield (), limits.DB_POOL_SIZE + limits.DB_POOL_OVERFLOW

    def _use(self) -> Iterator[metrics.Sample]:
        in_use = dict(self._connections()).get(("in_use",), 0.0)
        for _, limit in self._limit():
            yield (), in_use / limit

    @asynccontextmanager
    async def quick_read(self) -> AsyncIterator[QuickSession]:
        """As `read()`, for what each request asks: on PostgreSQL without a transaction."""
        async with self.read() if self.is_sqlite else self._driver() as session:
            yield session

    @asynccontextmanager
    async def quick_write(self, one_statement: bool = False) -> AsyncIterator[QuickSession]:
        """As `write()`, for a new payment. `one_statement`: PostgreSQL commits each by itself, without a BEGIN."""
        if self.is_sqlite:
            async with self.write() as session:
                yield session
            return
        async with self._driver() as driver:
            if one_statement:
                yield driver
                return
            await driver.say("BEGIN")
            try:
                yield driver
            except IntegrityError:  # a client's doing; any other error costs the connection
                await driver.say("ROLLBACK")
                raise
            await driver.say("COMMIT")

    @asynccontextmanager
    async def _driver(self) -> AsyncIterator[Driver]:
        try:
            connection = await self.engine.raw_connection()
        except self.engine.dialect.loaded_dbapi.Error as error:  # as a session would say it
            raise DBAPIError("connect", None, error) from error
        driver = Driver(connection.driver_connection)
        try:
            yield driver
        finally:
            if not driver.is_clean:
                connection.invalidate()
            connection.close()

    async def close(self) -> None:
        # Shielded: a cancelled shutdown must still give the connections back.
        await asyncio.shield(asyncio.gather(self.engine.dispose(), self._aside.dispose()))


def after_commit(session: AsyncSession, act: Callable[[], None]) -> None:
    """Have `act` called once a `write()` has committed, for what is not to be said of work that is rolled back."""
    session.info.setdefault(_AFTER_COMMIT, []).append(act)


async def roll_back(session: AsyncSession) -> None:
    """Undo what a `write()` has done so far, and forget what was to be said of it."""
    session.info.pop(_AFTER_COMMIT, None)
    await session.rollback()


def create_engine(url: str, pool_size: int = limits.DB_POOL_SIZE) -> AsyncEngine:
    """Engine for `sqlite+aiosqlite://…` or `postgresql+asyncpg://…`; makes the folder of a SQLite file."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_async_engine(
            url,
            hide_parameters=True,  # they would stand in the log of an error
            pool_size=pool_size,
            max_overflow=limits.DB_POOL_OVERFLOW,
            pool_timeout=limits.DB_POOL_TIMEOUT_S,
            connect_args={
                "timeout": limits.DB_CONNECT_TIMEOUT_S,
                "command_timeout": limits.DB_COMMAND_TIMEOUT_S,
            },
        )
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        return engine
    if parsed.database and parsed.database != ":memory:":
        _make_folder(Path(parsed.database).parent)
    engine = create_async_engine(
        url,
        hide_parameters=True,
        pool_size=pool_size,
        max_overflow=limits.DB_POOL_OVERFLOW,
        pool_timeout=limits.DB_POOL_TIMEOUT_S,
        connect_args={"timeout": limits.SQLITE_BUSY_TIMEOUT_S, "factory": _SqliteConnection},
    )
    event.listen(engine.sync_engine, "connect", _configure_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _refuse_closed(connection: DBAPIConnection, _record: Any, _proxy: Any) -> None:
    """Let the pool make a new connection for one that the server has closed. asyncpg knows; a ping is a round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"PAYWATCH_DATABASE_URL: cannot make the folder {folder}: {error.strerror}") from None


class _SqliteConnection(sqlite3.Connection):
    """Rolls back before it closes.

    SQLAlchemy closes the connection of a statement that was cancelled. SQLite only half closes one whose cursors still
    exist, in the traceback of the CancelledError for one, and keeps its transaction: measured, every fifth cancelled
    write left the database locked for all others until the garbage collector came.
    """

    def close(self) -> None:
        if self.in_transaction:
            self.rollback()
        super().close()


def _configure_sqlite(connection: DBAPIConnection, _record: Any) -> None:
    # The driver's own BEGIN handling is switched off; `_begin_sqlite` says BEGIN.
    connection.isolation_level = None
    connection.run_async(_switch_to_wal)
    cursor = connection.cursor()
    # FULL: a commit that was answered for is on disk. WAL with NORMAL loses the last ones when the power goes.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


async def _switch_to_wal(driver: aiosqlite.Connection) -> None:
    """A file's first switch wants it alone, and SQLite fails it at once where any other statement waits its turn."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception(_is_busy),
        stop=stop_after_delay(limits.SQLITE_BUSY_TIMEOUT_S),
        wait=wait_fixed(limits.SQLITE_WAL_RETRY_S),
        reraise=True,
    ):
        with attempt:
            await driver.execute_fetchall("PRAGMA journal_mode=WAL")


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("paywatch_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

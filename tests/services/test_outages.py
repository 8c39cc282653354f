"""Goal: a database that is away or too busy is told apart from a mistake of ours, by what it really raises."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.driver import QuickSession
from app.db.engine import Database
from app.services.outages import is_outage
from tests.support.postgres import Postgres


async def raised(url: str, *statements: str) -> Exception:
    db = Database(url)

    async def run() -> None:
        async with db.read() as session:
            for statement in statements:
                await session.execute(text(statement))

    try:
        with pytest.raises((SQLAlchemyError, OSError)) as caught:
            await run()
    finally:
        await db.close()
    return caught.value


@pytest.mark.parametrize(
    "statements",
    [
        ["SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 1"],
        ["SET statement_timeout = 1", "SELECT pg_sleep(60)"],
    ],
    ids=["an operator ends the connection", "it takes too long"],
)
async def test_what_postgres_may_do_better_later(postgres: Postgres, statements: list[str]) -> None:
    postgres.start()
    error = await raised(postgres.url("postgres"), *statements)
    assert isinstance(error, DBAPIError)
    assert is_outage(error)


def test_a_locked_sqlite_may_be_free_later() -> None:
    assert is_outage(OperationalError("SELECT", {}, Exception("database is locked")))


async def test_a_postgres_that_is_not_there(postgres: Postgres) -> None:
    postgres.start()
    assert is_outage(await raised(postgres.url("postgres").replace("host=", "host=/nowhere"), "SELECT 1"))


async def test_a_postgres_that_takes_no_connection(postgres: Postgres) -> None:
    """As while it starts or stops: an answer, and not a connection that is refused."""
    postgres.start()
    url = await postgres.create_database()

    async def connect(way: Callable[[], AbstractAsyncContextManager[QuickSession]]) -> None:
        async with way() as session:
            assert isinstance(session, AsyncSession)  # the driver has connected by now, a session has not
            await session.execute(text("SELECT 1"))

    await postgres._administer(f'ALTER DATABASE "{make_url(url).database}" ALLOW_CONNECTIONS false')
    db = Database(url)
    try:
        for way in (db.read, db.quick_read, db.write, db.quick_write):
            with pytest.raises(DBAPIError) as caught:
                await connect(way)
            assert is_outage(caught.value), way
    finally:
        await db.close()
        await postgres.drop_database(url)


@pytest.mark.parametrize("statement", ["SELECT nonsense", "SELECT 1/0", "SELECT FROM FROM"])
async def test_what_postgres_refuses_is_our_mistake(postgres: Postgres, statement: str) -> None:
    postgres.start()
    assert not is_outage(await raised(postgres.url("postgres"), statement))


def test_so_is_a_wrong_use_of_a_session() -> None:
    assert not is_outage(InvalidRequestError("a session that is closed"))

"""Fixtures over `tests.support.gateway`; a folder's conftest imports those that it offers."""

import shutil
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
import structlog

from app.core.netguard import guarded_client
from app.services.context import Context, open_context
from app.services.gateway import Gateway
from tests.support.gateway import Devnet, client_of, open_gateway, row_counts, running_devnet
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer


@pytest.fixture(autouse=True)
def plain_logging() -> Iterator[None]:
    """Plain tracebacks: structlog's own default draws every local variable, which takes minutes."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
async def devnet() -> AsyncIterator[Devnet]:
    """A node that nobody mines on or pays through: fit to prepare a chain against, by any number of tests."""
    async with running_devnet() as node:
        yield node


@pytest.fixture
async def gateway(db_url: str, redis_url: str, devnet: Devnet) -> AsyncIterator[Gateway]:
    """A gateway with a database of its own, on SQLite and on PostgreSQL."""
    async with open_gateway(db_url, redis_url, devnet.chain()) as opened:
        yield opened


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """The first merchant's client of `gateway`."""
    async with client_of(gateway) as http:
        yield http


@pytest.fixture
async def sender(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """The HTTP client of a webhook worker."""
    async with guarded_client(gateway.context.guard) as http:
        yield http


@pytest.fixture
async def other(gateway: Gateway) -> AsyncIterator[tuple[Context, httpx.AsyncClient]]:
    """A second webhook worker on the same database."""
    context = open_context(gateway.context.settings, gateway.context.chains)
    async with guarded_client(context.guard) as http:
        yield context, http
    await context.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_backend(request: pytest.FixtureRequest) -> tuple[Postgres | None, str]:
    """The PostgreSQL server (None: SQLite), and what a migrated database is copied from."""
    if request.param == "sqlite":
        return None, request.getfixturevalue("sqlite_template")
    return request.getfixturevalue("postgres"), request.getfixturevalue("postgres_template")


@pytest.fixture(scope="module")
async def shared_gateway(
    shared_backend: tuple[Postgres | None, str],
    redis_server: RedisServer,
    devnet: Devnet,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Gateway]:
    """A gateway that all tests of a module share: for tests that leave nothing behind."""
    server, template = shared_backend
    await redis_server.start()
    if server is None:
        path = tmp_path_factory.mktemp("shared") / "paywatch.db"
        shutil.copyfile(template, path)
        url = f"sqlite+aiosqlite:///{path}"
    else:
        server.start()
        url = await server.create_database(template=template)
    async with open_gateway(url, redis_server.url, devnet.chain()) as opened:
        yield opened
    if server is not None:
        await server.drop_database(url)


@pytest.fixture
async def shared_client(shared_gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A client for what writes nothing, which is seen to."""
    before = await row_counts(shared_gateway.context.db)
    async with client_of(shared_gateway) as http:
        yield http
    assert await row_counts(shared_gateway.context.db) == before

"""Real parts as fixtures. Under xdist each worker has its own PostgreSQL and Redis; every test has its own chain."""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from app.core import limits, metrics
from app.db import schema
from tests.support.anvil import Anvil
from tests.support.clock import Clock
from tests.support.compiled import share_compiled_statements
from tests.support.postgres import Postgres
from tests.support.receiver import Receiver
from tests.support.redis import RedisServer
from tests.support.secrets import find_secret, watch_private_keys

# Databases and logs of tests go to memory where the system keeps files there and has room: a third of the time.
_IN_MEMORY = Path("/dev/shm")
if _IN_MEMORY.is_dir() and os.access(_IN_MEMORY, os.W_OK) and shutil.disk_usage(_IN_MEMORY).free > 4 * 2**30:
    tempfile.tempdir = str(_IN_MEMORY)

# The suite is the same each time; `make explore` looks where nobody looked yet (--hypothesis-profile explore).
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2_000)
settings.load_profile("suite")

watch_private_keys()
share_compiled_statements()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: at the end no worker waits for another's whole installation.

    Its waits are long, for a busy machine, and one test has several: what ends it stands behind them all.
    """
    items.sort(key=lambda item: "e2e" not in item.path.parts)
    for item in items:
        if "e2e" in item.path.parts and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


def pytest_collection_finish() -> None:
    """What is loaded by now stays: looking through it for garbage, again and again, was a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*limits.GC_THRESHOLDS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test whose output holds a secret, known or just made: what tests print, a log or a traceback would too."""
    report = yield
    for title, text in report.sections:
        if (at := find_secret(text)) >= 0 and item.get_closest_marker("prints_secrets") is None:
            report.outcome = "failed"
            report.longrepr = f"{title} holds a secret: …{text[max(at - 300, 0) : at + 100]}…"
    return report


@pytest.fixture(autouse=True)
def forgotten_nodes() -> Iterator[None]:
    """Each test's nodes have ports of their own: kept, their series would make a scrape take seconds in the end."""
    yield
    metrics.RPC_REQUEST_SECONDS.clear()
    metrics.RPC_CALLS.clear()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Seconds pass when the test says so, for whoever asks `time.monotonic`."""
    it = Clock()
    monkeypatch.setattr(time, "monotonic", it)
    return it


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the session; ask create_database() for a database of your own."""
    with Postgres.from_environment() as server:
        yield server


@pytest.fixture(scope="session")
async def redis_server() -> AsyncIterator[RedisServer]:
    """One server for the session, shared with other tests: most want `redis_url`."""
    async with RedisServer() as server:
        yield server


@pytest.fixture
async def redis_url(redis_server: RedisServer) -> str:
    """An empty Redis that runs, even if the test before stopped it."""
    await redis_server.start()
    await redis_server.flush()
    return redis_server.url


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    """A fresh chain, mined by hand; starting one costs a tenth of a second, less than trusting a snapshot."""
    async with Anvil() as node:
        yield node


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A webhook receiver that answers 200; set its `secret` to have requests verified."""
    async with Receiver() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_backend(request: pytest.FixtureRequest) -> Postgres | None:
    """The PostgreSQL server, or None for SQLite: the tests that use it, or any fixture below, run once for each.

    Not async, so that the server is started only where it is asked for.
    """
    if request.param == "sqlite":
        return None
    server: Postgres = request.getfixturevalue("postgres")
    server.start()
    return server


@pytest.fixture
async def database_url(database_backend: Postgres | None, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of an empty database of the test's own, on SQLite and on PostgreSQL."""
    if database_backend is None:
        yield f"sqlite+aiosqlite:///{tmp_path / 'paywatch.db'}"
        return
    url = await database_backend.create_database()
    yield url
    await database_backend.drop_database(url)


@pytest.fixture(scope="session")
async def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a migrated database, to be copied."""
    path = tmp_path_factory.mktemp("template") / "paywatch.db"
    await schema.upgrade(f"sqlite+aiosqlite:///{path}")
    return str(path)


@pytest.fixture(scope="session")
async def postgres_template(postgres: Postgres) -> AsyncIterator[str]:
    """The name of a migrated database, to be copied."""
    url = await postgres.create_database()
    await schema.upgrade(url)
    yield url.partition("?")[0].rpartition("/")[2]
    if postgres.is_external:  # our own server takes it along
        await postgres.drop_database(url)


@pytest.fixture
def database_template(database_backend: Postgres | None, request: pytest.FixtureRequest) -> str:
    """Migrated once per session. Not async, so that only the backend at hand is."""
    template: str = request.getfixturevalue("sqlite_template" if database_backend is None else "postgres_template")
    return template


@pytest.fixture
async def db_url(database_backend: Postgres | None, database_template: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a migrated database of the test's own, on SQLite and on PostgreSQL; a copy of the template."""
    if database_backend is None:
        path = tmp_path / "paywatch.db"
        shutil.copyfile(database_template, path)
        yield f"sqlite+aiosqlite:///{path}"
        return
    url = await database_backend.create_database(template=database_template)
    yield url
    await database_backend.drop_database(url)

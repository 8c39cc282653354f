"""Backup and restore of a SQLite file. A restored file is whole, checked and on disk before it takes the old name."""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from app.core import limits
from app.core.clock import utc_now
from app.db.restoring import (
    ADDRESSES,
    PAUSES,
    TAKEN_OVER,
    DumpError,
    Replaced,
    Stops,
    pause_sweeping,
    sync_folder,
)

_SIDECARS: Final = ("-wal", "-shm", "-journal")
# Every connection in WAL mode holds a read lock on these bytes (https://sqlite.org/src/file/src/os.h, SHARED_FIRST).
_SHARED_FIRST: Final = 0x4000_0002
_SHARED_BYTES: Final = 510
_STAND_IN: Final = b"Not a database: a restore was interrupted here. Run `paywatch restore FILE --replace` again.\n"


def dump(database: Path, part: Path) -> None:
    with _sqlite(database) as connection:
        connection.execute("VACUUM INTO ?", (str(part),))
    _check(part)


def check_restore(database: Path, replace: bool) -> None:
    """Raises DumpError where somebody is connected, and where a database with rows is not to be replaced.

    A damaged file may have had rows.
    """
    if not database.exists():
        return
    damage = _refuse_company(database)
    if damage is not None and not replace:
        raise DumpError(f"{damage}; replacing a damaged database must be asked for (--replace)")
    if damage is not None or replace:
        return
    with _sqlite(database) as connection:
        if ADDRESSES in _tables(connection, "main"):
            raise DumpError(f"SQLite database {database} is not empty; replacing it must be asked for (--replace)")


def restore(file: Path, database: Path, skip: int) -> Replaced:
    part = database.with_name(f"{database.name}.restoring")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)  # with the journal of a run that was killed, which would be played into this one's file
        try:
            part.touch(mode=0o600)
            _give_to_owner(part, database)
            shutil.copyfile(file, part)
            stops = _adapt(part, database, skip)
            _check(part)
            if database.exists():
                _refuse_company(database)
            return Replaced(_put_in_place(part, database), stops)
        finally:
            _remove(part)
    except OSError as error:
        raise DumpError(f"{error.filename or database}: {error.strerror}") from error


def _adapt(part: Path, database: Path, skip: int) -> Stops:
    """Move the copy's HD index on, and give it the stops of the database that it replaces."""
    with _sqlite(part) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")  # one file, without a -wal beside it
        tables = _tables(connection, "main")
        is_read = False
        if database.exists():
            with _unless_damaged():
                connection.execute("ATTACH ? AS replaced", (str(database),))
                is_read = ADDRESSES in _tables(connection, "replaced")
        with connection:
            counted, given_out = _counter(connection, "main"), 0
            if is_read:
                is_read = False
                with _unless_damaged():
                    given_out = _counter(connection, "replaced")
                    _take_over(connection, tables)
                    is_read = given_out >= counted  # else it is another one, such as a new one
            index = max(counted, given_out) + skip
            connection.execute("DELETE FROM main.sqlite_sequence WHERE name = ?", (ADDRESSES,))
            connection.execute("INSERT INTO main.sqlite_sequence (name, seq) VALUES (?, ?)", (ADDRESSES, index))
            if PAUSES not in tables:
                return "lost"
            if is_read:
                return "taken over"
            connection.execute(pause_sweeping("main"))
            return "sweeping paused"


def _take_over(connection: sqlite3.Connection, tables: set[str]) -> None:
    there = tables & _tables(connection, "replaced")
    for table, statement in TAKEN_OVER:
        if table in there:
            connection.execute(statement.format(restored="main", replaced="replaced"))


def _counter(connection: sqlite3.Connection, schema: str) -> int:
    """The highest HD index that was given out."""
    query = f"SELECT coalesce(max(seq), 0) FROM {schema}.sqlite_sequence WHERE name = ?"  # noqa: S608 ours
    return int(connection.execute(query, (ADDRESSES,)).fetchone()[0])


def _put_in_place(part: Path, database: Path) -> tuple[Path, ...]:
    """Give the new file the database's name; returns where the old files are.

    At no moment is there a database that a server would take for a good one and is not: before the last line stands
    the old file, with its log, or one that no server starts on.
    """
    kept = database.with_name(f"{database.name}.before-restore-{utc_now():%Y%m%dT%H%M%S%fZ}")
    aside: list[Path] = []
    if database.exists():
        os.link(database, kept)
        aside.append(kept)
    left = [suffix for suffix in _SIDECARS if _beside(database, suffix).exists()]
    if left:  # a damaged file's, or one's that was removed: SQLite would play them into whatever has the name
        stand_in = _beside(part, "-stand-in")
        stand_in.write_bytes(_STAND_IN)
        _give_to_owner(stand_in, database)
        _sync(stand_in)
        stand_in.replace(database)
        aside += [_beside(database, suffix).rename(_beside(kept, suffix)) for suffix in left]
    sync_folder(database.parent)
    part.replace(database)
    sync_folder(database.parent)
    return tuple(aside)


def _give_to_owner(new: Path, database: Path) -> None:
    """Whoever restores may be root, and the service, which is not, must be able to open the file.

    Where there is none to replace, the folder is the service's.
    """
    is_there = database.exists()
    old, made = (database if is_there else database.parent).stat(), new.stat()
    if (old.st_uid, old.st_gid) != (made.st_uid, made.st_gid):
        os.chown(new, old.st_uid, old.st_gid)
    if is_there:
        new.chmod(stat.S_IMODE(old.st_mode))


def _check(file: Path) -> None:
    """Raises DumpError unless it is a whole database of Paywatch's; it is on disk then."""
    with _sqlite(file) as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
        broken = connection.execute("PRAGMA foreign_key_check").fetchone()
        revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if found != ["ok"] or broken is not None or revision is None:
        raise DumpError(f"{file}: {found[0] if found != ['ok'] else 'rows without those that they refer to'}")
    _sync(file)


def _refuse_company(database: Path) -> DumpError | None:
    """Raises DumpError where somebody is connected; returns what is wrong with a damaged file.

    Another process is seen by its lock, for SQLite cannot say it of a damaged file; a connection of this one by the
    -wal file, which the last one that closes takes with it.
    """
    try:
        with database.open("rb+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED_FIRST)
    except BlockingIOError:
        raise DumpError(f"{database} is in use; stop the server and the workers") from None
    except OSError as error:
        raise DumpError(f"{database}: {error.strerror}") from error
    try:
        with _sqlite(database) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except DumpError as error:
        if not _is_damage(error.__cause__):
            raise
        return error
    if _beside(database, "-wal").exists():
        raise DumpError(f"{database} is in use; stop the server and the workers")
    return None


def _tables(connection: sqlite3.Connection, schema: str) -> set[str]:
    query = f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table'"  # noqa: S608 ours
    return {row[0] for row in connection.execute(query)}


@contextlib.contextmanager
def _sqlite(file: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(file, timeout=limits.SQLITE_BUSY_TIMEOUT_S)
    try:
        yield connection
    except sqlite3.Error as error:
        raise DumpError(f"{file}: {error}") from error
    finally:
        connection.close()


@contextlib.contextmanager
def _unless_damaged() -> Iterator[None]:
    """What a damaged database does not tell ends the block; any other error is raised."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise


def _is_damage(error: BaseException | None) -> bool:
    """Not a lock, a right that is missing or a disk that fails: there the file may be as good as ever."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(f"{file.name}{suffix}")


def _remove(part: Path) -> None:
    for suffix in ("", *_SIDECARS, "-stand-in"):
        _beside(part, suffix).unlink(missing_ok=True)


def _sync(file: Path) -> None:
    with file.open("rb") as synced:
        os.fsync(synced.fileno())

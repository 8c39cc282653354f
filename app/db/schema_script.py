"""Revisions as SQL: what `migrate.py … --sql` prints, and what an upgrade or a downgrade would destroy.

Nothing here changes a database. A revision must not read it either, or it cannot be printed (see MIGRATIONS.md).
"""

import io
import re
from typing import Final, Literal

from alembic import command

from app.db.schema import alembic_config, alone, current
from app.db.schema_connection import SchemaError, as_schema_error, dialect_of, show_url

Direction = Literal["upgrade", "downgrade"]

# Statements that lose what is stored, however a revision by hand has written them.
_DESTRUCTIVE: Final = re.compile(
    r"(?:^|;)\s*(?:(?P<table>DROP\s+TABLE)\s+(?:IF\s+EXISTS\s+)?(?P<dropped>[^\s;,]+)"
    r"|ALTER\s+TABLE\s+(?P<altered>\S+)\s+(?:(?P<column>DROP\s+COLUMN)\s+(?:IF\s+EXISTS\s+)?(?P<name>[^\s;,]+)"
    r"|(?P<type>ALTER\s+COLUMN)\s+(?P<retyped>\S+)\s+TYPE\s+(?P<new>[^;]+))"
    r"|(?:DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?)\s+(?:ONLY\s+)?(?P<emptied>[^\s;,]+(?:\s*,\s*[^\s;,]+)*))",
    re.MULTILINE | re.IGNORECASE,
)

# Rows that are written over.
_UPDATE: Final = re.compile(
    r"(?:^|;)\s*UPDATE\s+(?:ONLY\s+)?(?P<table>\S+)(?:\s+(?:AS\s+)?\w+)?\s+SET\s+(?P<column>\w+)",
    re.MULTILINE | re.IGNORECASE,
)


async def script(url: str, direction: Direction, revision: str) -> str:
    """The SQL that would bring a PostgreSQL database from where it is to `revision`, with a real run's lock and limits.

    Raises SchemaError, for SQLite too: it makes tables anew as it finds them.
    """
    if dialect_of(url) == "sqlite":
        raise SchemaError(f"{show_url(url)}: --sql is for PostgreSQL; SQLite's tables are copied as a run finds them")
    return await _render(url, direction, revision)


async def destroyed(url: str, direction: Direction, revision: str) -> tuple[str, ...]:
    """What stored data the revisions would lose, a phrase each. Raises SchemaError."""
    sql = await _render(url, direction, revision)
    lost = [_phrase(found) for found in _DESTRUCTIVE.finditer(sql) if "alembic_version" not in found[0]]
    lost += [
        f"values of column {found['table']}.{found['column']}, which are written over"
        for found in _UPDATE.finditer(sql)
        if found["table"] != "alembic_version" and not _is_new(sql, found["table"], found["column"])
    ]
    return tuple(lost)


def _is_new(sql: str, table: str, column: str) -> bool:
    return f"ALTER TABLE {table} ADD COLUMN {column} " in sql


async def _render(url: str, direction: Direction, revision: str) -> str:
    """In PostgreSQL's words, which spell every change as one statement."""
    at = await current(url)
    if at is None and direction == "downgrade":
        return ""  # there is nothing to undo
    written = io.StringIO()
    config = alembic_config(written)
    config.attributes["printing"] = True
    span = revision if at is None else f"{at}:{revision}"
    async with alone():
        with as_schema_error(url):
            (command.upgrade if direction == "upgrade" else command.downgrade)(config, span, sql=True)
    return written.getvalue()


def _phrase(found: re.Match[str]) -> str:
    if found["table"]:
        return f"table {found['dropped']} and all its rows"
    if found["column"]:
        return f"column {found['altered']}.{found['name']} and what it holds"
    if found["type"]:
        return f"column {found['altered']}.{found['retyped']}: what does not fit into {found['new']}"
    return f"rows of table {found['emptied']}"

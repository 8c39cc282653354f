"""How the database would read what statements ask for: by an index, or whole tables."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest
from sqlalchemy import Engine, event, text

from app.db.driver import Driver
from app.db.engine import Database

# What grows with every payment or block.
LARGE: Final = frozenset(
    [
        "block_headers",
        "deposit_addresses",
        "events",
        "idempotency_keys",
        "outflows",
        "payment_options",
        "payments",
        "sweep_attempts",
        "sweep_items",
        "sweeps",
        "transactions",
        "webhook_attempts",
        "webhook_deliveries",
    ]
)

# SQLite's SCAN, and PostgreSQL's scan of a table or of an index that has no condition.
_WHOLE: Final = re.compile(
    r"(?:SCAN|Seq Scan on|Scan (?:Backward )?using \w+ on) (\w+?)(?:_\d+)?\b(?! \w+\n *Index Cond)(?!\n *Index Cond)"
)

# The first rows in an index's order, of PostgreSQL and of SQLite, which does not say that it stops there.
_FIRST: Final = re.compile(r"Limit\n.* Index (?:Only )?Scan .*")
_ORDERED: Final = re.compile(r"\ASCAN \w+ USING INDEX .*")


class Statements:
    """Each statement that was sent to the database, with the values that it was first sent with."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Any, ...]] = {}

    def add(self, sql: str, values: Sequence[Any] | None) -> None:
        if sql.startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            self._found.setdefault(sql, tuple(values or ()))

    async def reading_whole_tables(self, db: Database) -> list[str]:
        """Those for which the database knows no other way than to read all of a large table."""
        found = dict(self._found)
        read: list[str] = []
        async with db.write() as session:
            if not db.is_sqlite:  # tables are small here, so it would read them whole wherever it may, once it knows
                for way in ("seqscan", "hashjoin", "mergejoin"):
                    await session.execute(text(f"SET LOCAL enable_{way} = off"))
                await session.execute(text("DELETE FROM pg_statistic"))
                await session.execute(
                    text("UPDATE pg_class SET relpages = 0, reltuples = -1 WHERE relkind IN ('r', 'i')")
                )
            raw: Any = (await (await session.connection()).get_raw_connection()).driver_connection
            for sql, values in found.items():
                if db.is_sqlite:
                    rows = await (await raw.execute(f"EXPLAIN QUERY PLAN {sql}", values)).fetchall()
                else:
                    rows = await raw.fetch(f"EXPLAIN (COSTS OFF) {sql}", *values)
                plan = "\n".join(str(row[-1]) for row in rows)
                rest = _FIRST.sub("", plan)
                if "LIMIT" in sql:
                    rest = _ORDERED.sub("", rest)
                if LARGE.intersection(_WHOLE.findall(rest)):
                    read.append(f"{sql}\n{plan}")
        return read


@contextmanager
def watched_statements(monkeypatch: pytest.MonkeyPatch) -> Iterator[Statements]:
    """Of every engine, and of the driver beneath it."""
    it = Statements()
    wait_for = Driver._wait_for

    def before(_connection: Any, _cursor: Any, sql: str, values: Any, _context: Any, many: bool) -> None:
        it.add(sql, values[0] if many and values else values)

    async def spied(self: Driver, sql: str, arguments: Sequence[Any] = ()) -> Any:
        it.add(sql, arguments)
        return await wait_for(self, sql, arguments)

    event.listen(Engine, "before_cursor_execute", before)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Driver, "_wait_for", spied)
            yield it
    finally:
        event.remove(Engine, "before_cursor_execute", before)

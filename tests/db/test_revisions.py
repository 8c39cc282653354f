"""Goal: each revision takes the rows that are there with it, up and down."""

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import inspect, text, update
from sqlalchemy.exc import IntegrityError

from app.db import schema
from app.db.base import Base
from app.db.engine import Database
from app.db.models import Payment
from tests.db.rows import insert_address, insert_everywhere, insert_merchant, insert_payment

Rows = list[Mapping[str, Any]]

ORDERS = text("SELECT id, order_id FROM payments ORDER BY deposit_address_id")
MADE_BY_OLD_CODE = text(
    """
    INSERT INTO payments (id, merchant_id, deposit_address_id, status, flags, version, option_position, order_id,
        metadata, created_at, expires_at, settled_by_sweep)
    SELECT CAST(:id AS VARCHAR), merchant_id, (SELECT max(id) FROM deposit_addresses), 'pending', flags, version,
        option_position, CAST(:order AS VARCHAR), metadata, created_at, expires_at, settled_by_sweep
    FROM payments WHERE deposit_address_id = (SELECT min(deposit_address_id) FROM payments)
    """
)


async def test_0003_knows_which_payment_holds_an_order(db_url: str, db: Database) -> None:
    """Below it, of two that are open for one order, the one that gave the order up loses its name."""
    rows = [
        ("pending", "A", True),
        ("detected", "A", False),  # paid after it had expired
        ("expired", "A", False),
        ("confirmed", "B", False),
        ("cancelled", "C", False),
        ("pending", None, False),
    ]
    async with db.write() as session:
        await insert_merchant(session)
        for status, order_id, holds in rows:
            payment_id = await insert_payment(session)
            values = {"status": status, "order_id": order_id, "holds_order": holds}
            await session.execute(update(Payment).where(Payment.id == payment_id).values(values))
    await db.close()

    await schema.downgrade(db_url, "0002")
    async with db.read() as session:
        assert [order for _, order in await session.execute(ORDERS)] == ["A", None, "A", "B", "C", None]
    await db.close()

    await schema.upgrade(db_url)
    assert await schema.check(db_url) == ()
    for order_id in ("C", "D"):
        await make_by_old_code(db, order_id)
    for order_id in ("A", "B", "C", "D"):
        with pytest.raises(IntegrityError):
            await make_by_old_code(db, order_id)


async def make_by_old_code(db: Database, order_id: str) -> None:
    """A server that runs through the upgrade goes on, and does not know the new column."""
    async with db.write() as session:
        index = await insert_address(session)
        await session.execute(MADE_BY_OLD_CODE, {"order": order_id, "id": f"pay_{index}"})


async def test_rows_of_every_table_go_down_and_up_again_revision_by_revision(db_url: str) -> None:
    """As they were, in all columns that every revision on the way has. A later one is covered of itself."""
    revisions = [one.id for one in await schema.history(db_url)]
    db = Database(db_url)
    async with db.write() as session:
        await insert_everywhere(session)
    await db.close()
    before = await stored(db_url)
    assert set(before) == {table.name for table in Base.metadata.sorted_tables}
    assert all(len(rows) == 2 for rows in before.values())

    kept = {name: set(rows[0]) for name, rows in before.items()}
    while await schema.current(db_url) != revisions[0]:
        await schema.downgrade(db_url, "-1")
        kept = await compare(db_url, before, kept)
    assert "payments" in kept
    while await schema.current(db_url) != revisions[-1]:
        await schema.upgrade(db_url, "+1")
        kept = await compare(db_url, before, kept)
    assert await schema.check(db_url) == ()

    await schema.downgrade(db_url, "base")
    assert not await stored(db_url)
    await schema.upgrade(db_url)
    assert await schema.check(db_url) == ()
    db = Database(db_url)
    async with db.write() as session:
        await insert_everywhere(session)
    await db.close()
    assert await stored(db_url) == before


async def stored(url: str) -> dict[str, Rows]:
    """Every row of every table of ours, in the driver's own values."""
    db = Database(url)
    try:
        async with db.read() as session:
            connection = await session.connection()
            names = await connection.run_sync(lambda it: inspect(it).get_table_names())
            found: dict[str, Rows] = {}
            for name in sorted(set(names) - {"alembic_version"}):
                rows = await session.execute(text(f'SELECT * FROM "{name}"'))
                found[name] = sorted((dict(row) for row in rows.mappings()), key=repr)
            return found
    finally:
        await db.close()


async def compare(url: str, before: dict[str, Rows], kept: dict[str, set[str]]) -> dict[str, set[str]]:
    """The tables and columns of `kept` that are there now; what they hold must be what it was."""
    now = await stored(url)
    at = await schema.current(url)
    still: dict[str, set[str]] = {}
    for name, columns in kept.items():
        if name in now:
            assert len(now[name]) == len(before[name]), f"{at}: rows of {name}"
            still[name] = columns & set(now[name][0])
            assert values(now[name], still[name]) == values(before[name], still[name]), f"{at}: {name}"
    return still


def values(rows: Rows, columns: set[str]) -> list[tuple[Any, ...]]:
    return sorted((tuple(row[column] for column in sorted(columns)) for row in rows), key=repr)

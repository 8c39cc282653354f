"""Goal: each revision takes the rows that are there with it, up and down."""

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError

from app.db import schema
from app.db.engine import Database
from app.db.models import Payment
from tests.db.rows import insert_address, insert_merchant, insert_payment

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

"""Goal: what is stored comes back exactly, on both databases, and what could not is refused."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import StatementError

from app.db.engine import Database
from app.db.models import Payment, PaymentOption, Transaction
from tests.db.rows import NOW, UINT256_MAX, insert_merchant, insert_payment, observed


@pytest.mark.parametrize("amount", [0, 1, 10**18, 2**63, 2**64 + 1, 10**77, UINT256_MAX])
async def test_an_amount_of_256_bits_comes_back_exactly(db: Database, amount: int) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        await insert_payment(session, amount)
    async with db.read() as session:
        found = await session.scalar(select(PaymentOption.amount_units))
        stored = await session.scalar(text("SELECT CAST(amount_units AS VARCHAR(80)) FROM payment_options"))
        equal = await session.scalar(select(PaymentOption.id).where(PaymentOption.amount_units == amount))
    assert (found, type(found), stored) == (amount, int, str(amount))
    assert equal is not None


@pytest.mark.parametrize("amount", [-1, 2**256, 1.0, True, "1"])
async def test_what_is_no_amount_is_refused(db: Database, amount: object) -> None:
    with pytest.raises(StatementError, match="an amount must be an integer"):
        async with db.write() as session:
            await session.execute(update(PaymentOption).values(amount_units=amount))


async def test_a_time_comes_back_aware_in_utc_to_the_microsecond(db: Database) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        await insert_payment(session)
        await session.execute(update(Payment).values(expires_at=NOW.astimezone(timezone(timedelta(hours=9)))))
    async with db.read() as session:
        found = await session.scalar(select(Payment.expires_at))
        later = await session.scalar(select(Payment.id).where(Payment.expires_at > NOW - timedelta(microseconds=1)))
    assert found == NOW
    assert found is not None
    assert found.tzinfo is UTC
    assert later is not None


async def test_a_time_without_a_zone_is_refused(db: Database) -> None:
    with pytest.raises(StatementError, match="must carry its zone"):
        async with db.write() as session:
            await session.execute(update(Payment).values(expires_at=datetime(2026, 11, 20)))  # noqa: DTZ001


async def test_json_keeps_the_order_of_its_keys(db: Database) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        await insert_payment(session)
    async with db.read() as session:
        found = await session.scalar(select(Payment.metadata_))
    assert list(found or {}) == ["b", "a"]


async def test_bytes_come_back_as_bytes(db: Database) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        session.add(observed(await insert_payment(session), tx_hash=bytes(range(32))))
    async with db.read() as session:
        assert await session.scalar(select(Transaction.tx_hash)) == bytes(range(32))

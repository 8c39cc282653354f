"""Goal: what must never be there twice, or without its parent, the database itself refuses."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError

from app.db.engine import Database
from app.db.models import DepositAddress, Payment
from tests.db.rows import insert_address, insert_merchant, insert_payment, observed


async def test_a_transfer_is_recorded_once_also_when_its_transaction_is_unknown(db: Database) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        payment_id = await insert_payment(session)
        session.add(observed(payment_id))
    with pytest.raises(IntegrityError):
        async with db.write() as session:
            session.add(observed(payment_id, amount_units=5, block_number=8))


@pytest.mark.parametrize(
    "changed",
    [
        {"block_hash": b"\xbb" * 32},
        {"tx_index": 0},
        {"position": "log:1"},
        {"recipient": b"\x33" * 20},
    ],
)
async def test_transfers_that_differ_in_any_part_of_the_key_are_two(db: Database, changed: dict[str, Any]) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        payment_id = await insert_payment(session)
        session.add_all([observed(payment_id), observed(payment_id, **changed)])


async def test_an_order_has_one_open_payment_and_any_number_of_closed_ones(db: Database) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        payments = [await insert_payment(session) for _ in range(4)]
        closed = update(Payment).where(Payment.id.in_(payments[:2]))
        await session.execute(closed.values(order_id="1", status="expired", holds_order=False))
        await session.execute(update(Payment).where(Payment.id == payments[2]).values(order_id="1", holds_order=True))
    with pytest.raises(IntegrityError):
        async with db.write() as session:
            await session.execute(
                update(Payment).where(Payment.id == payments[3]).values(order_id="1", holds_order=True)
            )


async def test_foreign_keys_are_enforced(db: Database) -> None:
    async with db.write() as session:
        await insert_merchant(session)
        await insert_payment(session)
    with pytest.raises(IntegrityError):
        async with db.write() as session:
            await session.execute(delete(DepositAddress))


async def test_an_hd_index_is_not_used_again_after_its_address_is_deleted(db: Database) -> None:
    async with db.write() as session:
        first = [await insert_address(session) for _ in range(3)]
    async with db.write() as session:
        await session.execute(delete(DepositAddress))
    async with db.write() as session:
        again = await insert_address(session)
    assert again > max(first)


async def test_fifty_creations_at_once_give_fifty_indexes(db: Database) -> None:
    async def create() -> int:
        async with db.write() as session:
            return await insert_address(session)

    indexes = await asyncio.gather(*(create() for _ in range(50)))
    assert len(set(indexes)) == 50
    async with db.read() as session:
        assert set(await session.scalars(select(DepositAddress.id))) == set(indexes)

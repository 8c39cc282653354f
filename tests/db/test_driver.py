"""Goal: what goes past the session means the same as in one, is all or nothing, and loses no connection."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Integer, bindparam, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from app.core import limits
from app.db.base import Base
from app.db.driver import Driver
from app.db.engine import Database
from app.db.models import DepositAddress, Event, Payment, PaymentOption
from app.db.repositories.addresses import Indexes
from app.db.repositories.together import insert_together
from tests.db.rows import ASSET, CHAIN_ID, NOW, UINT256_MAX, insert_merchant

COUNT = select(func.count()).select_from(Payment)
ROW = (
    select(Payment.flags, Payment.metadata_, Payment.version, Payment.created_at, Payment.order_id)
    .add_columns(PaymentOption.asset, PaymentOption.amount_units, PaymentOption.received_units)
    .join(PaymentOption, PaymentOption.payment_id == Payment.id)
    .where(Payment.id == bindparam("payment_id"))
)
BACKEND = select(func.pg_backend_pid(type_=Integer))
END_BACKEND = text("SELECT pg_terminate_backend(:pid)")
postgresql_only = pytest.mark.parametrize("database_backend", ["postgres"], indirect=True)


@pytest.fixture
async def merchant(db: Database) -> None:
    async with db.write() as session:
        await insert_merchant(session)


def rows(index: int, order_id: str | None = None) -> list[Base]:
    """A payment with an option counted by the database, and an event."""
    return [
        DepositAddress(id=index, branch=1, address=index.to_bytes(20), created_at=NOW),
        Payment(
            id=f"pay_{index}",
            merchant_id="mer_1",
            deposit_address_id=index,
            status="pending",
            flags=["late"],
            version=2**40,
            option_position=0,
            order_id=order_id,
            holds_order=order_id is not None,
            metadata_={"z": [1, None, "é\U0001f600"], "a": {"b": 0.5}},
            settled_by_sweep=False,
            created_at=NOW,
            expires_at=NOW + timedelta(days=1),
        ),
        PaymentOption(
            payment_id=f"pay_{index}",
            position=0,
            chain="devnet",
            chain_id=CHAIN_ID,
            asset=ASSET,
            amount_units=UINT256_MAX,
            tolerance_units=0,
            received_units=10**77,
            confirmations_required=3,
        ),
        Event(
            id=f"evt_{index}",
            merchant_id="mer_1",
            payment_id=f"pay_{index}",
            type="payment.created",
            version=1,
            cause={"kind": "clock"},
            data={"amount": str(UINT256_MAX)},
            created_at=NOW,
        ),
    ]


async def insert(db: Database, index: int, order_id: str | None = None, one_statement: bool = False) -> None:
    async with db.quick_write(one_statement) as session:
        await insert_together(session, rows(index, order_id))


async def count(db: Database) -> int:
    async with db.quick_read() as session:
        [[number]] = await session.execute(COUNT, {})
    return int(number)


def connections_out(db: Database) -> int:
    return int(db.engine.pool.checkedout())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("merchant")
async def test_what_is_written_is_read_back_the_same_both_ways(db: Database) -> None:
    await insert(db, 1)
    async with db.quick_read() as session:
        [found] = await session.execute(ROW, {"payment_id": "pay_1"})
        assert not list(await session.execute(ROW, {"payment_id": "pay_2"}))
    async with db.read() as session:
        assert tuple(found) == tuple((await session.execute(ROW, {"payment_id": "pay_1"})).one())
        for row in rows(1):
            stored = (await session.scalars(select(type(row)))).one()
            for column in type(row).__mapper__.column_attrs:
                if (type(row), column.key) != (PaymentOption, "id"):
                    assert getattr(stored, column.key) == row.__dict__.get(column.key), column.key


@pytest.mark.usefixtures("merchant")
@pytest.mark.parametrize("one_statement", [False, True])
async def test_a_conflict_leaves_nothing_and_names_its_constraint(db: Database, one_statement: bool) -> None:
    await insert(db, 1, "A-1", one_statement)
    with pytest.raises(IntegrityError) as conflict:
        await insert(db, 2, "A-1", one_statement)
    assert "order" in str(conflict.value.orig)
    async with db.read() as session:
        for model in (DepositAddress, Payment, PaymentOption, Event):
            assert len((await session.scalars(select(model))).all()) == 1
    await insert(db, 3, "A-2", one_statement)
    assert connections_out(db) == 0


@pytest.mark.usefixtures("merchant")
async def test_a_block_that_raises_leaves_nothing(db: Database) -> None:
    async def fail() -> None:
        async with db.quick_write() as session:
            await insert_together(session, rows(1))
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert (await count(db), connections_out(db)) == (0, 0)
    await insert(db, 1)  # nobody holds it


async def test_what_the_database_refuses_is_not_an_outage(db: Database) -> None:
    with pytest.raises(DBAPIError) as refused:
        async with db.quick_read() as session:
            await session.execute(text("SELECT nothing FROM nowhere"), {})
    assert db.is_sqlite or not isinstance(refused.value, OperationalError)
    assert await count(db) == 0


@pytest.mark.usefixtures("merchant")
async def test_one_cancelled_anywhere_holds_nothing_and_hands_nothing_on(db: Database) -> None:
    """Goal: a client that goes away can strike anywhere, also while the driver waits for the database."""

    async def write(first: int) -> None:
        async with db.quick_write() as session:
            for number in range(900):  # more than any machine does until then
                await insert_together(session, rows(first + number))

    chance = random.Random(7)
    ended: list[object] = []
    for done in range(40):
        task = asyncio.create_task(write(1_000 * done + 1))
        await asyncio.sleep(chance.uniform(0, 0.012))
        task.cancel()
        ended += await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(60):
            await insert(db, 1_000 * done + 999)
        assert (await count(db), connections_out(db)) == (done + 1, 0)
    assert {type(error) for error in ended} == {asyncio.CancelledError}


@postgresql_only
@pytest.mark.usefixtures("merchant")
async def test_a_lost_connection_is_an_outage_and_given_to_nobody_else(db: Database) -> None:
    async def lose() -> None:
        async with db.quick_write() as session:
            [[pid]] = await session.execute(BACKEND, {})
            async with db.read() as other:
                await other.execute(END_BACKEND, {"pid": pid})
            await insert_together(session, rows(1))

    with pytest.raises(OperationalError):
        await lose()
    assert (await count(db), connections_out(db)) == (0, 0)


@postgresql_only
async def test_a_refused_request_keeps_its_connection(db: Database) -> None:
    """Goal: whoever sends wrong keys cannot make the pool connect anew each time."""

    async def pid(refused: bool) -> Any:
        async with db.quick_read() as session:
            assert isinstance(session, Driver)
            [[found]] = await session.execute(BACKEND, {})
            if refused:
                raise LookupError(found)
            return found

    with pytest.raises(LookupError) as before:
        await pid(refused=True)
    assert await pid(refused=False) == before.value.args[0]


async def test_many_at_once_get_an_index_each(db: Database) -> None:
    indexes, others = Indexes(), Indexes()

    async def take(of: Indexes) -> int:
        async with db.quick_write() as session:
            index = await of.next(session)
            address = DepositAddress(id=index, branch=1, address=index.to_bytes(20), created_at=NOW)
            await insert_together(session, [address])
        return index

    number = limits.INDEX_BLOCK + 3
    found = await asyncio.gather(*(take(of) for of in (indexes, others) for _ in range(number)))
    assert len(set(found)) == 2 * number

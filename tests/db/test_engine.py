"""Goal: a write is whole or was never there, writers wait for each other, and no connection is lost."""

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from app.core import limits
from app.db.engine import Database
from app.db.models import DepositAddress, Merchant, Transaction
from app.db.repositories import payments, transactions
from tests.db.rows import insert_address, insert_merchant, insert_payment, transfer


async def count(db: Database) -> int:
    async with db.read() as session:
        return int(await session.scalar(select(func.count()).select_from(DepositAddress)) or 0)


def connections_out(db: Database) -> int:
    return int(db.engine.pool.checkedout())  # type: ignore[attr-defined]


async def test_a_block_that_ends_is_committed(db: Database) -> None:
    async with db.write() as session:
        await insert_address(session)
    assert await count(db) == 1


async def test_a_block_that_raises_leaves_nothing(db: Database) -> None:
    async def write() -> None:
        async with db.write() as session:
            await insert_address(session)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await write()
    assert (await count(db), connections_out(db)) == (0, 0)


async def test_what_a_reading_session_wrote_is_rolled_back(db: Database) -> None:
    async with db.read() as session:
        await insert_address(session)
    assert await count(db) == 0


async def test_a_cancelled_write_rolls_back_and_gives_its_connection_back(db: Database) -> None:
    written = asyncio.Event()

    async def write() -> None:
        async with db.write() as session:
            await insert_address(session)
            written.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(write())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await count(db), connections_out(db)) == (0, 0)
    async with asyncio.timeout(60), db.write() as session:  # nobody holds a lock
        await insert_address(session)


async def test_a_write_cancelled_within_a_statement_holds_nothing(db: Database) -> None:
    """Goal: a worker's timeout can strike anywhere, also while the driver waits for the database."""

    async def write() -> None:
        async with db.write() as session:
            while True:
                await insert_address(session)

    chance = random.Random(7)
    cancelled: list[object] = []  # kept, as whoever logs them keeps their tracebacks and the cursors therein
    for done in range(40):
        task = asyncio.create_task(write())
        await asyncio.sleep(chance.uniform(0, 0.012))
        task.cancel()
        cancelled += await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(60), db.write() as session:
            await insert_address(session)
        assert (await count(db), connections_out(db)) == (done + 1, 0)
    assert {type(error) for error in cancelled} == {asyncio.CancelledError}


async def test_two_writers_wait_for_each_other_instead_of_failing(db: Database) -> None:
    """Goal: read, then write what follows from it, with another writer in between: nothing is lost or refused."""
    async with db.write() as session:
        await insert_merchant(session)

    async def append(letter: str) -> None:
        async with db.write() as session:
            merchant = await session.scalar(select(Merchant).with_for_update())
            assert merchant is not None
            name = merchant.name
            await asyncio.sleep(0.02)
            merchant.name = name + letter

    await asyncio.gather(*(append(letter) for letter in "abcdefgh"))
    async with db.read() as session:
        name = await session.scalar(select(Merchant.name))
    assert sorted(str(name).removeprefix("Shop")) == list("abcdefgh")


async def test_a_reader_neither_waits_for_a_writer_nor_sees_its_work(db: Database) -> None:
    async with db.write() as session:
        await insert_address(session)
        async with asyncio.timeout(60):
            assert await count(db) == 0


async def test_more_tasks_than_connections_take_turns(db: Database) -> None:
    tasks = 2 * (limits.DB_POOL_SIZE + limits.DB_POOL_OVERFLOW)
    assert await asyncio.gather(*(count(db) for _ in range(tasks))) == [0] * tasks


async def test_a_new_sqlite_file_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "new.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    db = Database(f"sqlite+aiosqlite:///{tmp_path / 'new.db'}")

    async def mode() -> str:
        async with db.read() as session:
            return str(await session.scalar(text("PRAGMA journal_mode")))

    asked = asyncio.create_task(mode())
    asyncio.get_running_loop().call_later(0.2, other.close)
    assert await asked == "wal"
    await db.close()


@pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
async def test_sqlite_syncs_every_commit_and_enforces_foreign_keys(db: Database) -> None:
    async with db.write() as session:
        found = [
            await session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]


async def test_an_error_does_not_hold_what_was_written(db: Database) -> None:
    """It is logged."""
    with pytest.raises(DBAPIError) as raised:
        async with db.write() as session:
            await session.execute(text("INSERT INTO nowhere VALUES (:secret)"), {"secret": "whsec_secret"})
    assert "whsec_secret" not in str(raised.value)


async def test_transfers_on_two_chains_to_one_payment_wait_for_nobody(db: Database) -> None:
    """Each chain's step has written its transfer and goes on to the payment; SQLite lets only one come so far."""
    async with db.write() as session:
        await insert_merchant(session)
        payment_id = await insert_payment(session)
    both = asyncio.Barrier(1 if db.is_sqlite else 2)

    async def credit(block_hash: bytes) -> None:
        async with db.write() as session:
            await transactions.record(session, [transfer(payment_id, block_hash=block_hash)])
            await both.wait()
            await payments.lock(session, [payment_id])

    await asyncio.gather(credit(b"\xaa" * 32), credit(b"\xbb" * 32))
    async with db.read() as session:
        assert await session.scalar(select(func.count()).select_from(Transaction)) == 2

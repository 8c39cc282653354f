"""The few rows that tests of the database need."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Integer, LargeBinary, String, insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.base import Base
from app.db.models import DepositAddress, Merchant, Payment, PaymentOption, Token, Transaction
from app.db.repositories import addresses
from app.db.types import Units, UtcDateTime

NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
CHAIN_ID = 31337
ASSET = b"\x11" * 20
UINT256_MAX = 2**256 - 1


async def insert_merchant(session: AsyncSession) -> None:
    session.add(Merchant(id="mer_1", name="Shop", webhook_secret=b"sealed", created_at=NOW))
    session.add(Token(chain_id=CHAIN_ID, address=ASSET, symbol="TKN", decimals=18))
    await session.flush()


async def insert_address(session: AsyncSession) -> int:
    index = await addresses.Indexes().next(session)
    await session.execute(insert(DepositAddress).values(id=index, branch=1, address=index.to_bytes(20), created_at=NOW))
    return index


async def insert_payment(session: AsyncSession, amount_units: int = UINT256_MAX) -> str:
    """A payment with its option and address; the merchant and the token must be there."""
    index = await insert_address(session)
    payment = Payment(
        id=f"pay_{index}",
        merchant_id="mer_1",
        deposit_address_id=index,
        status="pending",
        flags=[],
        version=1,
        option_position=0,
        metadata_={"b": 1, "a": 2},
        created_at=NOW,
        expires_at=NOW,
    )
    session.add(payment)
    await session.flush()
    session.add(
        PaymentOption(
            payment_id=payment.id,
            position=0,
            chain="devnet",
            chain_id=CHAIN_ID,
            asset=ASSET,
            amount_units=amount_units,
            tolerance_units=0,
            received_units=0,
            confirmations_required=3,
        )
    )
    await session.flush()
    return payment.id


def transfer(payment_id: str, **changed: Any) -> dict[str, Any]:
    """The values of a row of transactions."""
    values = {
        "payment_id": payment_id,
        "chain_id": CHAIN_ID,
        "block_number": 7,
        "block_hash": b"\xaa" * 32,
        "block_time": NOW,
        "tx_index": -1,
        "position": "balance",
        "recipient": b"\x22" * 20,
        "asset": ASSET,
        "amount_units": UINT256_MAX,
        "canonical": True,
        "verified": False,
        "noted": False,
        "seen_at": NOW,
    }
    return values | changed


def observed(payment_id: str, **changed: Any) -> Transaction:
    return Transaction(**transfer(payment_id, **changed))


async def insert_everywhere(session: AsyncSession) -> None:
    """Two rows in each table of the models, whichever there are: one with all columns, one with those alone that must
    be. Each refers to the rows of the other tables that are like it.
    """
    for number in (1, 2):
        known: dict[tuple[str, str], Any] = {}
        for table in Base.metadata.sorted_tables:
            row: dict[str, Any] = {}
            for column in table.columns:
                if number == 1 or not column.nullable:
                    parents = [known[key.column.table.name, key.column.name] for key in column.foreign_keys]
                    row[column.name] = parents[0] if parents else _some(column, number)
                    known[table.name, column.name] = row[column.name]
            await session.execute(insert(table).values({table.c[name]: value for name, value in row.items()}))


def _some(column: Column[Any], number: int) -> Any:
    """A value that the column takes, another one for each row."""
    match column.type:
        case Boolean():
            return number == 1
        case Integer():
            return number
        case Units():
            return UINT256_MAX - number
        case UtcDateTime():
            return NOW + timedelta(days=number)
        case JSON():
            return [{"number": number}]
        case LargeBinary(length=length):
            return bytes([number]) * (length or 9)
        case String(length=length):
            return f"{number} {column.name}"[:length]
    raise NotImplementedError(f"{column}: {column.type!r}")

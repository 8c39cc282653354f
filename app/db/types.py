"""Column types that mean the same on PostgreSQL and SQLite."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, LargeBinary, Numeric, String
from sqlalchemy.types import TypeDecorator, TypeEngine

ADDRESS_BYTES = 20
HASH_BYTES = 32
UINT256_DIGITS = 78  # 2**256 - 1 has 78 decimal digits


class Units(TypeDecorator[int]):
    """An unsigned 256-bit amount in base units: NUMERIC(78, 0) on PostgreSQL, decimal text on SQLite.

    SQLite keeps integers in 64 bits and everything larger as a float, so text is its only exact form. Sums are made
    in Python, never in SQL.
    """

    impl = String(UINT256_DIGITS)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(UINT256_DIGITS, 0))
        return dialect.type_descriptor(String(UINT256_DIGITS))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Decimal | str | None:
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < 2**256:
            raise ValueError(f"an amount must be an integer of 0 to 2**256 - 1, not {value!r}")
        return Decimal(value) if dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time. SQLite drops the zone; it is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a stored time must carry its zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Address = LargeBinary(ADDRESS_BYTES)
Hash = LargeBinary(HASH_BYTES)
# Plain JSON, not JSONB: an event keeps the key order in which it was written.
Json = JSON()
# SQLite gives AUTOINCREMENT (never reused) only to a column declared exactly INTEGER.
BigId = BigInteger().with_variant(Integer(), "sqlite")

"""Payments, the options they can be paid by, and the addresses they are paid to."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    and_,
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core import limits
from app.db.base import Base, flag, index_of_some
from app.db.types import Address, BigId, Json, Units, UtcDateTime


class DepositAddress(Base):
    """A derived address. Its id is its HD index: handed out by the database, never twice.

    AUTOINCREMENT on SQLite and a sequence on PostgreSQL, because a plain rowid would be used again after a delete.
    """

    __tablename__ = "deposit_addresses"
    __table_args__ = {"sqlite_autoincrement": True}

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    branch: Mapped[int] = mapped_column(SmallInteger)
    address: Mapped[bytes] = mapped_column(Address, unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Payment(Base):
    __tablename__ = "payments"
    __table_args__ = (
        # An order is not given to two payments that are neither expired nor cancelled.
        index_of_some(
            "uq_payments_open_order",
            "merchant_id",
            "order_id",
            where=and_(flag("holds_order"), text("status NOT IN ('expired', 'cancelled')")),
            unique=True,
        ),
        # What a merchant looks up, and what every payment for an order is checked by.
        index_of_some(
            "ix_payments_merchant_id_order_id", "merchant_id", "order_id", where=text("order_id IS NOT NULL")
        ),
        Index("ix_payments_merchant_id_id", "merchant_id", "id"),
        Index("ix_payments_status_expires_at", "status", "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    merchant_id: Mapped[str] = mapped_column(ForeignKey("merchants.id"))
    deposit_address_id: Mapped[int] = mapped_column(ForeignKey("deposit_addresses.id"), unique=True)
    status: Mapped[str] = mapped_column(String(20))
    flags: Mapped[list[str]] = mapped_column(Json)
    version: Mapped[int] = mapped_column(BigInteger)
    # The option that `token`, `amount…` and `chain` describe; fixed once detected.
    option_position: Mapped[int] = mapped_column(SmallInteger)
    # What was asked, where it was asked in a currency; both or neither.
    price_amount: Mapped[str | None] = mapped_column(String(limits.AMOUNT_CHARS))
    price_currency: Mapped[str | None] = mapped_column(String(10))
    order_id: Mapped[str | None] = mapped_column(String(128))
    # While it is open nobody else may have its order. Given up for good when it expires or is cancelled: when its money
    # comes after all, the order may have another payment, and that must stop nothing. The database's default is for
    # servers that do not know the column yet.
    holds_order: Mapped[bool] = mapped_column(Boolean, default=False, server_default=true())
    description: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", Json)
    redirect_url: Mapped[str | None] = mapped_column(Text)
    webhook_url: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    detected_in_block: Mapped[int | None] = mapped_column(BigInteger)
    detected_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    confirmed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    settled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # It was settled by money at the treasury, not by finality: it falls back when a reorg takes that back.
    settled_by_sweep: Mapped[bool] = mapped_column(Boolean, default=False)


class PaymentOption(Base):
    """One (chain, asset, amount) that pays the payment; position 0 is the first in `accept`."""

    __tablename__ = "payment_options"
    __table_args__ = (
        UniqueConstraint("payment_id", "position"),
        ForeignKeyConstraint(["chain_id", "asset"], ["tokens.chain_id", "tokens.address"]),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"))
    position: Mapped[int] = mapped_column(SmallInteger)
    chain: Mapped[str] = mapped_column(String(64))
    chain_id: Mapped[int] = mapped_column(BigId)
    asset: Mapped[bytes] = mapped_column(Address)
    amount_units: Mapped[int] = mapped_column(Units)
    tolerance_units: Mapped[int] = mapped_column(Units)
    received_units: Mapped[int] = mapped_column(Units)
    confirmations_required: Mapped[int] = mapped_column(BigInteger)
    # With a price: what one whole unit of the asset was worth in its currency, by which source, and when.
    rate: Mapped[str | None] = mapped_column(String(limits.AMOUNT_CHARS))
    rate_source: Mapped[str | None] = mapped_column(String(300))
    rate_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

"""Observed transfers to deposit addresses."""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    String,
    UniqueConstraint,
    and_,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, flag, index_of_some
from app.db.types import Address, BigId, Hash, Units, UtcDateTime


class Transaction(Base):
    """One row per observed transfer. Orphaned ones are marked, never deleted.

    The unique key is all NOT NULL, because NULLs never collide: `tx_index` is -1 where no transaction is known.
    """

    __tablename__ = "transactions"
    __table_args__ = (
        UniqueConstraint(
            "chain_id", "block_hash", "tx_index", "position", "recipient", "asset", name="uq_transactions_observed"
        ),
        ForeignKeyConstraint(["chain_id", "asset"], ["tokens.chain_id", "tokens.address"]),
        Index("ix_transactions_chain_id_block_number", "chain_id", "block_number"),
        Index("ix_transactions_recipient_chain_id", "recipient", "chain_id"),
        index_of_some("ix_transactions_counting", "payment_id", where=~flag("set_aside")),
        index_of_some(
            "ix_transactions_unswept", "chain_id", where=and_(flag("canonical"), ~flag("swept"), ~flag("set_aside"))
        ),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"))
    chain_id: Mapped[int] = mapped_column(BigId)
    block_number: Mapped[int] = mapped_column(BigId)
    block_hash: Mapped[bytes] = mapped_column(Hash)
    block_time: Mapped[datetime] = mapped_column(UtcDateTime)
    tx_index: Mapped[int] = mapped_column(BigInteger)
    position: Mapped[str] = mapped_column(String(80))
    recipient: Mapped[bytes] = mapped_column(Address)
    asset: Mapped[bytes] = mapped_column(Address)
    amount_units: Mapped[int] = mapped_column(Units)
    sender: Mapped[bytes | None] = mapped_column(Address)
    tx_hash: Mapped[bytes | None] = mapped_column(Hash)
    log_index: Mapped[int | None] = mapped_column(BigInteger)
    canonical: Mapped[bool] = mapped_column(Boolean)
    # Its receipt was read again once it had the required confirmations.
    verified: Mapped[bool] = mapped_column(Boolean)
    # Its present state was taken into account by `decide`, so it is no longer news.
    noted: Mapped[bool] = mapped_column(Boolean)
    # Canonical outflows of its address and asset account for it: nothing of it is left to be swept.
    swept: Mapped[bool] = mapped_column(Boolean, default=False)
    # Beyond the `PAYMENT_TRANSFERS` largest of its asset: it was received, and that is all that anybody asks of it. The
    # database's default is for workers that do not know the column yet.
    set_aside: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)

"""What leaves the deposit addresses: transactions that we sign, and what the chain shows of money at the treasury."""

from datetime import datetime

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, and_
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, flag, index_of_some
from app.db.types import Address, BigId, Hash, Units, UtcDateTime


class NonceLane(Base):
    """One of our accounts on one chain. Its row lock serialises whoever signs with that account.

    The listener knows Paywatch's own accounts by these rows: it has no key to derive them from.
    """

    __tablename__ = "nonce_lanes"

    chain_id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    account: Mapped[bytes] = mapped_column(Address, primary_key=True)
    # A deposit address; else the gas account.
    is_deposit: Mapped[bool] = mapped_column(Boolean)
    next_nonce: Mapped[int] = mapped_column(BigInteger)
    # Of the gas account alone, in native coin, as the last round saw it: what it held, and what it lacked.
    balance_units: Mapped[int | None] = mapped_column(Units)
    short_units: Mapped[int | None] = mapped_column(Units)
    looked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Sweep(Base):
    """One nonce of one of our accounts: `collect` (EIP-7702), `transfer` (of a token, by the address itself), `native`,
    `topup`, `deploy`, or `fill` (a nonce that was left out). Whichever of its attempts is mined is its transaction.

    `status`: signed, mined, confirmed; failed (refused, reverted or cancelled); frozen (the nonce was used by a
    transaction that we do not know), released (an operator looked).
    """

    __tablename__ = "sweeps"
    __table_args__ = (
        UniqueConstraint("chain_id", "account", "nonce"),
        Index("ix_sweeps_chain_id_status", "chain_id", "status"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    chain_id: Mapped[int] = mapped_column(BigId)
    kind: Mapped[str] = mapped_column(String(20))
    # What is moved; native coin for topup and deploy.
    asset: Mapped[bytes] = mapped_column(Address)
    treasury: Mapped[bytes | None] = mapped_column(Address)
    # Who signs, and pays the fee.
    account: Mapped[bytes] = mapped_column(Address)
    # Null when it was refused before it was signed.
    nonce: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(20))
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # When its confirmations were complete, or it ended otherwise.
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Of the attempt that was mined.
    tx_hash: Mapped[bytes | None] = mapped_column(Hash)
    block_number: Mapped[int | None] = mapped_column(BigId)
    block_hash: Mapped[bytes | None] = mapped_column(Hash)
    gas_used: Mapped[int | None] = mapped_column(BigInteger)
    gas_price_units: Mapped[int | None] = mapped_column(Units)
    # Paid by `account` in native coin, with the data fee of an L2.
    fee_units: Mapped[int | None] = mapped_column(Units)


class SweepItem(Base):
    """One address of a sweep. `live` until the sweep has ended: an address and asset is in one live sweep at most."""

    __tablename__ = "sweep_items"
    __table_args__ = (
        index_of_some("uq_sweep_items_live", "chain_id", "address", "asset", where=flag("live"), unique=True),
        Index("ix_sweep_items_address_chain_id", "address", "chain_id"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), index=True)
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"), index=True)
    chain_id: Mapped[int] = mapped_column(BigId)
    address: Mapped[bytes] = mapped_column(Address)
    asset: Mapped[bytes] = mapped_column(Address)
    # What the address held when the sweep was signed; for a top-up what it is sent.
    amount_units: Mapped[int] = mapped_column(Units)
    # What the receipt says came to the treasury; null until it was mined.
    moved_units: Mapped[int | None] = mapped_column(Units)
    live: Mapped[bool] = mapped_column(Boolean)


class SweepAttempt(Base):
    """A signed transaction of a sweep, stored before it is broadcast. Those of one sweep compete for its nonce."""

    __tablename__ = "sweep_attempts"

    tx_hash: Mapped[bytes] = mapped_column(Hash, primary_key=True)
    sweep_id: Mapped[str] = mapped_column(ForeignKey("sweeps.id"), index=True)
    raw: Mapped[bytes] = mapped_column(LargeBinary)
    gas_limit: Mapped[int] = mapped_column(BigInteger)
    max_fee_units: Mapped[int] = mapped_column(Units)
    max_priority_fee_units: Mapped[int] = mapped_column(Units)
    value_units: Mapped[int] = mapped_column(Units)
    # A plain transaction of nothing to ourselves that gives the nonce up.
    cancels: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # When a node last took it.
    broadcast_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Outflow(Base):
    """Money of a deposit address that the scanner saw arrive at the treasury, whoever sent it; orphaned ones stay.

    `amount_units` arrived; `fee_units` is native coin that the address itself paid for gas; `covers_units` is how much
    of what the address had received it accounts for: a token with what it kept or burned; native coin with its fee
    and, when what is left would not pay for another transfer, with all the rest.
    """

    __tablename__ = "outflows"
    __table_args__ = (
        UniqueConstraint("chain_id", "block_hash", "tx_index", "position"),
        Index("ix_outflows_chain_id_block_number", "chain_id", "block_number"),
        Index("ix_outflows_sender_chain_id", "sender", "chain_id"),
        index_of_some("ix_outflows_unverified", "chain_id", where=and_(flag("canonical"), ~flag("verified"))),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"), index=True)
    chain_id: Mapped[int] = mapped_column(BigId)
    block_number: Mapped[int] = mapped_column(BigId)
    block_hash: Mapped[bytes] = mapped_column(Hash)
    block_time: Mapped[datetime] = mapped_column(UtcDateTime)
    tx_index: Mapped[int] = mapped_column(BigInteger)
    position: Mapped[str] = mapped_column(String(80))
    sender: Mapped[bytes] = mapped_column(Address)
    treasury: Mapped[bytes] = mapped_column(Address)
    asset: Mapped[bytes] = mapped_column(Address)
    amount_units: Mapped[int] = mapped_column(Units)
    fee_units: Mapped[int] = mapped_column(Units)
    covers_units: Mapped[int] = mapped_column(Units)
    tx_hash: Mapped[bytes] = mapped_column(Hash)
    canonical: Mapped[bool] = mapped_column(Boolean)
    # Its receipt was read again once it had the required confirmations.
    verified: Mapped[bool] = mapped_column(Boolean)

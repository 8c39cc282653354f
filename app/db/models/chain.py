"""What was scanned: one cursor per chain and the headers it is linked by."""

from datetime import datetime

from sqlalchemy import BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base
from app.db.types import BigId, Hash, UtcDateTime


class ChainState(Base):
    """The cursor of a chain. Its row lock serialises all writers of that chain."""

    __tablename__ = "chain_states"

    chain_id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    last_scanned_block: Mapped[int] = mapped_column(BigId)
    last_scanned_hash: Mapped[bytes] = mapped_column(Hash)
    last_scanned_time: Mapped[datetime] = mapped_column(UtcDateTime)
    # Below it nothing was ever scanned, so nothing was ever credited.
    first_block: Mapped[int] = mapped_column(BigId)
    # The highest cursor ever reached. While the cursor is below it (after a rollback), nothing expires.
    highest_block: Mapped[int] = mapped_column(BigId)
    finalized_block: Mapped[int] = mapped_column(BigId)
    head_block: Mapped[int] = mapped_column(BigId)
    head_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # When a head read was begun that turned out to be the cursor: nothing newer existed then.
    caught_up_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Up to here the backup pass has read again.
    backup_block: Mapped[int] = mapped_column(BigId)
    # Transfers that the scan had missed and a backup pass found, ever.
    missed_transfers: Mapped[int] = mapped_column(BigInteger, default=0)
    # How far the rotation through all addresses' balances has come (`native.detect: balances`).
    rotated_address_id: Mapped[int] = mapped_column(BigId)
    # Why the chain stands still: `config` clears when the next check passes, `reorg` waits for an operator.
    halt_code: Mapped[str | None] = mapped_column(String(20))
    halt_detail: Mapped[str | None] = mapped_column(Text)


class BlockHeader(Base):
    """A scanned canonical block, empty ones too. A rollback deletes those above the common ancestor."""

    __tablename__ = "block_headers"

    chain_id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    hash: Mapped[bytes] = mapped_column(Hash)
    parent_hash: Mapped[bytes] = mapped_column(Hash)
    time: Mapped[datetime] = mapped_column(UtcDateTime)

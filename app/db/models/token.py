"""Assets that payments are asked in; a row stays although the asset leaves chains.yaml."""

from sqlalchemy import SmallInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base
from app.db.types import Address, BigId


class Token(Base):
    """One asset of one chain, checked against the node; the native coin has the zero address."""

    __tablename__ = "tokens"

    chain_id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    address: Mapped[bytes] = mapped_column(Address, primary_key=True)
    symbol: Mapped[str] = mapped_column(String(40))
    decimals: Mapped[int] = mapped_column(SmallInteger)

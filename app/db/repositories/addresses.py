"""Deposit addresses: the next HD index, and whose an address is."""

from collections import deque
from collections.abc import Collection
from typing import Final

from sqlalchemy import BigInteger, any_, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.db.driver import QuickSession
from app.db.models import ChainState, DepositAddress, Payment, PaymentOption
from app.db.types import Address

_CUT_UP: Final = """
    WITH RECURSIVE place(i) AS (SELECT 0 WHERE :count > 0 UNION ALL SELECT i + 1 FROM place WHERE i + 1 < :count)
    SELECT substr(:joined, i * 20 + 1, 20) FROM place
"""
_NEXT: Final = text("SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'deposit_addresses'), 0) + 1")
_BLOCK: Final = (
    text("SELECT nextval(pg_get_serial_sequence('deposit_addresses', 'id')) AS id FROM generate_series(1, :count)")
    .columns(id=BigInteger)
    .bindparams(bindparam("count", type_=BigInteger))
)


class Indexes:
    """HD indexes that were never handed out. Gaps are harmless; an index is never used again.

    PostgreSQL's sequence is outside of transactions, so a process takes a block of it at a time. SQLite's writers are
    one at a time (BEGIN IMMEDIATE), and its AUTOINCREMENT counter rolls back only together with a payment that nobody
    was told of.
    """

    def __init__(self) -> None:
        self._block: deque[int] = deque()

    async def next(self, session: QuickSession) -> int:
        if isinstance(session, AsyncSession) and session.get_bind().dialect.name == "sqlite":
            return int((await session.execute(_NEXT)).scalar_one())
        if not self._block:
            self._block += [index for (index,) in await session.execute(_BLOCK, {"count": limits.INDEX_BLOCK})]
        return self._block.popleft()


async def payments_by_address(session: AsyncSession, addresses: Collection[bytes]) -> dict[bytes, str]:
    """Payment id of each of `addresses` that is a deposit address; one indexed query."""
    base = select(DepositAddress.address, Payment.id).join(Payment, Payment.deposit_address_id == DepositAddress.id)
    wanted = list(addresses)
    if session.get_bind().dialect.name == "postgresql":
        query = base.where(DepositAddress.address == any_(bindparam("wanted", wanted, type_=ARRAY(Address))))
        return {address: payment_id for address, payment_id in await session.execute(query)}
    # SQLite knows no arrays, and binding thousands of values costs more than the rest of a step: it gets one to cut up.
    query = base.where(DepositAddress.address.in_(text(_CUT_UP))).params(count=len(wanted), joined=b"".join(wanted))
    return {address: payment_id for address, payment_id in await session.execute(query)}


async def open_addresses(session: AsyncSession, chain_id: int) -> dict[bytes, str]:
    """Payment id by address of the chain's payments that wait for money or for confirmations."""
    query = (
        select(DepositAddress.address, Payment.id)
        .join(Payment, Payment.deposit_address_id == DepositAddress.id)
        .join(PaymentOption, PaymentOption.payment_id == Payment.id)
        .where(PaymentOption.chain_id == chain_id, Payment.status.in_(("pending", "detected")))
    )
    return {address: payment_id for address, payment_id in await session.execute(query)}


async def rotate(session: AsyncSession, chain_id: int) -> tuple[dict[bytes, str], int]:
    """The next addresses in the rotation with their payments, and the position after them; 0 begins anew."""
    last = await session.scalar(select(func.max(DepositAddress.id))) or 0  # about as many; counting reads them all
    limit = max(limits.ROTATION_ADDRESSES, last // limits.ROTATION_TURNS + 1)
    position = await session.scalar(select(ChainState.rotated_address_id).where(ChainState.chain_id == chain_id)) or 0
    query = (
        select(DepositAddress.id, DepositAddress.address, Payment.id)
        .join(Payment, Payment.deposit_address_id == DepositAddress.id)
        .where(DepositAddress.id > position, Payment.deposit_address_id > position)  # whichever it begins with
        .order_by(DepositAddress.id)
        .limit(limit)
    )
    rows = (await session.execute(query)).all()
    return {address: payment_id for _, address, payment_id in rows}, rows[-1][0] if len(rows) == limit else 0


async def recent_addresses(session: AsyncSession) -> dict[bytes, str]:
    """Payment id by address of payments that are open, or are among the last that were paid."""
    query = (
        select(DepositAddress.address, Payment.id)
        .join(Payment, Payment.deposit_address_id == DepositAddress.id)
        .where(Payment.status.in_(("pending", "detected", "confirmed", "settled")))
        .order_by(Payment.id.desc())
        .limit(limits.RECONCILE_ADDRESSES)
    )
    return {address: payment_id for address, payment_id in await session.execute(query)}


async def place_of(session: AsyncSession, address: bytes) -> tuple[int, int]:
    """HD branch and index of a deposit address, which must be one."""
    query = select(DepositAddress.branch, DepositAddress.id).where(DepositAddress.address == address)
    branch, index = (await session.execute(query)).one()
    return branch, index

"""Observed transfers."""

from collections import Counter
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.evm import NATIVE_ASSET
from app.db.models import Transaction
from app.db.repositories.chains import upsert

OBSERVED = ["chain_id", "block_hash", "tx_index", "position", "recipient", "asset"]


async def record(session: AsyncSession, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Insert transfers; returns those that were not there as canonical before.

    A block can come back: then the row is canonical again, and news. Rows need the columns of `OBSERVED` and the rest
    of the table but `id`, `canonical`, `verified`, `noted`, `swept` and `set_aside`. The caller holds the chain's lock.
    """
    if not rows:
        return []
    columns = [getattr(Transaction, name) for name in OBSERVED]
    hashes = {row["block_hash"] for row in rows}
    query = select(*columns).where(
        Transaction.chain_id == rows[0]["chain_id"], Transaction.block_hash.in_(hashes), Transaction.canonical
    )
    known = {tuple(found) for found in await session.execute(query)}
    news = [row for row in rows if tuple(row[name] for name in OBSERVED) not in known]
    if news:
        fresh = {"canonical": True, "verified": False, "noted": False, "swept": False}
        statement = upsert(session, Transaction)
        await session.execute(
            statement.on_conflict_do_update(
                index_elements=OBSERVED, set_=fresh | {"amount_units": statement.excluded.amount_units}
            ),
            [row | fresh for row in news],
        )
    return news


async def replace_balances(session: AsyncSession, news: list[dict[str, Any]], position: str) -> None:
    """Take native transfers that were found by their transaction out of the `balance` transfers that stood for them.

    In the same database transaction as their insertion, so nothing counts twice. A balance transfer that is used up is
    deleted: it was never a transfer of its own. What was verified and noted of the money stays so under its new name:
    nobody is told of it again, and no payment that it confirmed falls back.
    """
    for row in news:
        if row["asset"] != NATIVE_ASSET or row["position"] == position:
            continue
        remaining = row["amount_units"]
        verified = noted = True
        query = (
            select(Transaction)
            .where(
                Transaction.chain_id == row["chain_id"],
                Transaction.recipient == row["recipient"],
                Transaction.position == position,
                Transaction.block_number >= row["block_number"],
                Transaction.canonical,
            )
            .order_by(Transaction.block_number)
        )
        for stand_in in list(await session.scalars(query)):
            taken = min(stand_in.amount_units, remaining)
            if taken == 0:
                break
            verified, noted = verified and stand_in.verified, noted and stand_in.noted
            remaining -= taken
            stand_in.amount_units -= taken
            if stand_in.amount_units == 0:
                await session.delete(stand_in)
        if remaining == 0:
            found = and_(*(getattr(Transaction, name) == row[name] for name in OBSERVED))
            await session.execute(update(Transaction).where(found).values(verified=verified, noted=noted))
    await session.flush()


async def set_aside(session: AsyncSession, payment_ids: Collection[str]) -> dict[str, int]:
    """Let no more than the `PAYMENT_TRANSFERS` largest transfers of each asset count for a payment; how many went.

    Anybody may send dust to an address, by the thousand for cents, and what counts is decided, shown and told with each
    change. What was verified is a number of its own: it may be what the payment was confirmed by, which nothing larger
    may take from it, and which must keep no later money from being told and swept.
    """
    key = (Transaction.payment_id, Transaction.chain_id, Transaction.asset, Transaction.verified)
    counts = and_(Transaction.payment_id.in_(payment_ids), Transaction.canonical, ~Transaction.set_aside)
    many = select(*key).where(counts).group_by(*key).having(func.count() > limits.PAYMENT_TRANSFERS)
    crowded = [tuple(row) for row in await session.execute(many)]
    if not crowded:
        return {}
    columns = (*key, Transaction.id, Transaction.amount_units)
    found = (await session.execute(select(*columns).where(counts, tuple_(*key).in_(crowded)))).all()
    seen: Counter[tuple[object, ...]] = Counter()
    gone: list[tuple[int, str]] = []
    for row in sorted(found, key=lambda row: (-row.amount_units, row.id)):
        group = (row.payment_id, row.chain_id, row.asset, row.verified)
        seen[group] += 1
        if seen[group] > limits.PAYMENT_TRANSFERS:
            gone.append((row.id, row.payment_id))
    for start in range(0, len(gone), limits.SQLITE_VARIABLES):
        ids = [row_id for row_id, _ in gone[start : start + limits.SQLITE_VARIABLES]]
        await session.execute(update(Transaction).where(Transaction.id.in_(ids)).values(set_aside=True))
    return Counter(payment_id for _, payment_id in gone)


async def orphan_above(session: AsyncSession, chain_id: int, block_number: int) -> set[str]:
    """Mark the chain's canonical transfers above a block as orphaned; returns the payments they belong to."""
    return await _orphan(session, chain_id, Transaction.block_number > block_number)


async def orphan_replaced(
    session: AsyncSession, chain_id: int, first: int, last: int, hashes: Collection[bytes]
) -> set[str]:
    """Mark those of the blocks `first` to `last` as orphaned that stand in none of these blocks; as `orphan_above`."""
    replaced = Transaction.block_number.between(first, last) & Transaction.block_hash.not_in(hashes)
    return await _orphan(session, chain_id, replaced)


async def _orphan(session: AsyncSession, chain_id: int, which: ColumnElement[bool]) -> set[str]:
    those = and_(Transaction.chain_id == chain_id, which, Transaction.canonical)
    payment_ids = set(await session.scalars(select(Transaction.payment_id).where(those)))
    if payment_ids:
        await session.execute(update(Transaction).where(those).values(canonical=False, verified=False, noted=False))
    return payment_ids


async def mark_verified(session: AsyncSession, transaction_ids: list[int]) -> None:
    await session.execute(
        update(Transaction).where(Transaction.id.in_(transaction_ids), Transaction.canonical).values(verified=True)
    )

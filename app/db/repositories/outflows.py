"""Money that left deposit addresses, as the chain shows it, and what the addresses should hold after it."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.core import limits
from app.core.evm import NATIVE_ASSET
from app.db.models import (
    BlockHeader,
    NonceLane,
    Outflow,
    PaymentOption,
    Sweep,
    SweepAttempt,
    SweepItem,
    Transaction,
)
from app.db.repositories.chains import upsert
from app.db.repositories.sweeps import FOLLOWED

OBSERVED = ["chain_id", "block_hash", "tx_index", "position"]
BALANCE: Final = "balance"  # the position of a transfer that only a balance showed


async def live_treasuries(session: AsyncSession, chain_id: int) -> set[bytes]:
    """Where sweeps that have not ended bring money; not the configured treasury where that was changed meanwhile."""
    query = select(Sweep.treasury).where(Sweep.chain_id == chain_id, Sweep.status.in_(FOLLOWED))
    return {treasury for treasury in await session.scalars(query.distinct()) if treasury is not None}


async def own_accounts(session: AsyncSession, chain_id: int, accounts: Collection[bytes]) -> set[bytes]:
    """Those of `accounts` that are Paywatch's own and no deposit addresses."""
    found: set[bytes] = set()
    for wanted in _chunks(accounts):
        query = select(NonceLane.account).where(
            NonceLane.chain_id == chain_id, NonceLane.account.in_(wanted), ~NonceLane.is_deposit
        )
        found.update(await session.scalars(query))
    return found


async def moving_addresses(session: AsyncSession, chain_id: int) -> set[bytes]:
    """Deposit addresses that a sweep or a top-up is under way for."""
    query = select(SweepItem.address).where(SweepItem.chain_id == chain_id, SweepItem.live)
    return set(await session.scalars(query))


async def record(session: AsyncSession, rows: list[dict[str, Any]]) -> list[Outflow]:
    """Insert outflows of one chain; returns those that were not there as canonical before.

    A block can come back: then the row is canonical again, and news. The caller holds the chain's lock.
    """
    if not rows:
        return []
    on_chain = and_(
        Outflow.chain_id == rows[0]["chain_id"], Outflow.block_hash.in_({row["block_hash"] for row in rows})
    )
    columns = [getattr(Outflow, name) for name in OBSERVED]
    known = {tuple(found) for found in await session.execute(select(*columns).where(on_chain, Outflow.canonical))}
    news = [row for row in rows if tuple(row[name] for name in OBSERVED) not in known]
    if not news:
        return []
    fresh = {"canonical": True, "verified": False}
    statement = upsert(session, Outflow)
    again = fresh | {name: statement.excluded[name] for name in ("amount_units", "fee_units", "covers_units")}
    await session.execute(
        statement.on_conflict_do_update(index_elements=OBSERVED, set_=again), [row | fresh for row in news]
    )
    stored = select(Outflow).where(on_chain, Outflow.canonical).order_by(Outflow.block_number, Outflow.tx_index)
    return [row for row in await session.scalars(stored) if tuple(getattr(row, name) for name in OBSERVED) not in known]


async def orphan_above(session: AsyncSession, chain_id: int, block_number: int) -> list[Outflow]:
    """Mark the chain's canonical outflows above a block as orphaned; returns them."""
    return await _orphan(session, chain_id, Outflow.block_number > block_number)


async def orphan_replaced(
    session: AsyncSession, chain_id: int, first: int, last: int, hashes: Collection[bytes]
) -> list[Outflow]:
    """Mark those of the blocks `first` to `last` as orphaned that stand in none of these blocks; returns them."""
    replaced = Outflow.block_number.between(first, last) & Outflow.block_hash.not_in(hashes)
    return await _orphan(session, chain_id, replaced)


async def _orphan(session: AsyncSession, chain_id: int, which: ColumnElement[bool]) -> list[Outflow]:
    those = and_(Outflow.chain_id == chain_id, which, Outflow.canonical)
    orphaned = list(await session.scalars(select(Outflow).where(those)))
    for row in orphaned:
        row.canonical = row.verified = False
    await session.flush()
    return orphaned


async def unverified(
    session: AsyncSession, chain_id: int, cursor: int, confirmations: int, after_id: int
) -> Sequence[Outflow]:
    """Canonical outflows with the required confirmations at `cursor`, receipt not read again.

    An option says how many it requires; `confirmations` is for money that no option asked for. From the one after
    `after_id` on, and then from the first: what can never be proved must not keep the rest waiting.
    """
    query = (
        select(Outflow)
        .join(
            PaymentOption,
            (PaymentOption.payment_id == Outflow.payment_id)
            & (PaymentOption.chain_id == Outflow.chain_id)
            & (PaymentOption.asset == Outflow.asset),
            isouter=True,
        )
        .where(
            Outflow.chain_id == chain_id,
            Outflow.canonical,
            ~Outflow.verified,
            Outflow.block_number <= cursor - func.coalesce(PaymentOption.confirmations_required, confirmations) + 1,
        )
        .order_by(Outflow.id <= after_id, Outflow.id)
        .limit(limits.VERIFY_TRANSFERS)
    )
    return list(await session.scalars(query))


async def mark_verified(session: AsyncSession, outflow_ids: Collection[int]) -> set[str]:
    """Returns the payments of those that are still canonical."""
    if not outflow_ids:
        return set()
    those = and_(Outflow.id.in_(outflow_ids), Outflow.canonical)
    await session.execute(update(Outflow).where(those).values(verified=True))
    return set(await session.scalars(select(Outflow.payment_id).where(those)))


async def outflows_of(session: AsyncSession, chain_id: int, senders: Collection[bytes]) -> list[Outflow]:
    """All outflows of addresses, orphaned ones too."""
    found: list[Outflow] = []
    for wanted in _chunks(senders):
        query = select(Outflow).where(Outflow.chain_id == chain_id, Outflow.sender.in_(wanted))
        found += await session.scalars(query)
    return found


async def transfers_to(session: AsyncSession, chain_id: int, recipients: Collection[bytes]) -> list[Transaction]:
    """All canonical transfers to addresses that count, in chain order."""
    found: list[Transaction] = []
    for wanted in _chunks(recipients):
        query = (
            select(Transaction)
            .where(
                Transaction.chain_id == chain_id,
                Transaction.canonical,
                ~Transaction.set_aside,
                Transaction.recipient.in_(wanted),
            )
            .order_by(Transaction.block_number, Transaction.tx_index, Transaction.id)
        )
        found += await session.scalars(query)
    return found


async def holdings(
    session: AsyncSession, chain_id: int, addresses: Collection[bytes], upto: int
) -> dict[tuple[bytes, bytes], int]:
    """What was recorded for addresses up to a block, in base units by (address, asset): received, less what left.

    Native coin has been spent on the gas of outflows and of transactions of ours that moved nothing, unless a reorg
    took these back: then it is there again, and nobody paid it. A top-up counts from when it is signed, wherever the
    cursor is: it must never be taken for a customer's money. So does a transfer that only a balance showed, for it may
    have arrived in an earlier block than the one where it was seen: where blocks are read again, it would be found a
    second time. Where more left than was recorded, the number is negative.
    """
    found: dict[tuple[bytes, bytes], int] = {}

    def add(address: bytes, asset: bytes, units: int) -> None:
        found[address, asset] = found.get((address, asset), 0) + units

    # An address may have any number of transfers; PostgreSQL adds them up exactly, SQLite would make a float of them.
    adds_up = session.get_bind().dialect.name == "postgresql"
    units = func.sum(Transaction.amount_units) if adds_up else Transaction.amount_units
    for wanted in _chunks(addresses):
        received = select(Transaction.recipient, Transaction.asset, units).where(
            Transaction.chain_id == chain_id,
            Transaction.canonical,
            Transaction.recipient.in_(wanted),
            or_(Transaction.block_number <= upto, Transaction.position == BALANCE),
        )
        if adds_up:
            received = received.group_by(Transaction.recipient, Transaction.asset)
        for recipient, asset, number in await session.execute(received):
            add(recipient, asset, number)
        left = select(Outflow).where(
            Outflow.chain_id == chain_id,
            Outflow.canonical,
            Outflow.sender.in_(wanted),
            Outflow.block_number <= upto,
        )
        paid_for: set[tuple[bytes, bytes]] = set()
        for row in await session.scalars(left):
            add(row.sender, row.asset, -(row.amount_units if row.asset == NATIVE_ASSET else row.covers_units))
            add(row.sender, NATIVE_ASSET, -row.fee_units)
            paid_for.add((row.sender, row.tx_hash))
        topped_up = (
            select(SweepItem.address, SweepItem.amount_units)
            .join(Sweep, Sweep.id == SweepItem.sweep_id)
            .where(
                SweepItem.chain_id == chain_id,
                SweepItem.address.in_(wanted),
                Sweep.kind == "topup",
                Sweep.status.not_in(("failed", "released")),
            )
        )
        for address, number in await session.execute(topped_up):
            add(address, NATIVE_ASSET, number)
        in_vain = select(Sweep.account, Sweep.tx_hash, Sweep.fee_units).where(
            Sweep.chain_id == chain_id,
            Sweep.account.in_(wanted),
            Sweep.status.in_(("mined", "confirmed", "failed")),
            Sweep.fee_units.is_not(None),
            Sweep.block_number <= upto,
            or_(_in_our_chain(), _used_since(upto)),
        )
        for account, tx_hash, fee in await session.execute(in_vain):
            if (account, tx_hash) not in paid_for:
                add(account, NATIVE_ASSET, -(fee or 0))
    return found


def _in_our_chain() -> ColumnElement[bool]:
    """Whether a sweep's block is one that was scanned; below the kept headers nothing is undone."""
    at_height = and_(BlockHeader.chain_id == Sweep.chain_id, BlockHeader.number == Sweep.block_number)
    lowest = select(func.min(BlockHeader.number)).where(BlockHeader.chain_id == Sweep.chain_id).scalar_subquery()
    return or_(exists().where(at_height, BlockHeader.hash == Sweep.block_hash), Sweep.block_number < lowest)


def _used_since(upto: int) -> ColumnElement[bool]:
    """Whether the chain shows a later nonce of a sweep's account: so it has this one too, though in another block than
    where it was seen. Nodes mostly mine the same transactions again after a reorg.
    """
    later = aliased(Sweep)
    return exists().where(
        later.chain_id == Sweep.chain_id,
        later.account == Sweep.account,
        later.nonce > Sweep.nonce,
        SweepAttempt.sweep_id == later.id,
        Outflow.tx_hash == SweepAttempt.tx_hash,
        Outflow.chain_id == Sweep.chain_id,
        Outflow.sender == Sweep.account,
        Outflow.canonical,
        Outflow.block_number <= upto,
    )


def _chunks(values: Collection[bytes]) -> Iterator[list[bytes]]:
    wanted = list(values)
    for start in range(0, len(wanted), limits.SQLITE_VARIABLES):
        yield wanted[start : start + limits.SQLITE_VARIABLES]

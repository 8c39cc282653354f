"""What the sweeper signed: its lanes, sweeps with items and attempts, and the money that waits to be swept."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Float, and_, cast, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.evm import NATIVE_ASSET
from app.db.models import (
    DepositAddress,
    NonceLane,
    Payment,
    PaymentOption,
    Sweep,
    SweepAttempt,
    SweepItem,
    Transaction,
)
from app.db.repositories.chains import upsert

LIVE: Final = ("signed", "mined")
FOLLOWED: Final = (*LIVE, "frozen")  # a frozen one's transaction may yet turn up


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """A sweep with its items, and its attempts from the oldest; live objects of the session that loaded them."""

    sweep: Sweep
    items: Sequence[SweepItem]
    attempts: Sequence[SweepAttempt]


@dataclass(frozen=True, slots=True)
class Unswept:
    """A transfer that waits to be swept, and the HD place of its address."""

    id: int
    address: bytes
    asset: bytes
    branch: int
    index: int
    payment_id: str
    amount_units: int
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Failures:
    """How often an address and asset was not moved by a sweep that should have, and when it ended last."""

    count: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class Refused:
    """An address that sweeps could not empty. `error`: what was said of one of them, if anything was."""

    chain_id: int
    address: bytes
    payment_id: str
    count: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Spent:
    gas: float
    fee_wei: float


# --- lanes


async def add_lane(session: AsyncSession, chain_id: int, account: bytes, is_deposit: bool, nonce: int) -> None:
    """The lane of an account that has that nonce on the chain, unless it is there."""
    values = {"chain_id": chain_id, "account": account, "is_deposit": is_deposit, "next_nonce": nonce}
    await session.execute(upsert(session, NonceLane).values(values).on_conflict_do_nothing())


async def lock_lane(session: AsyncSession, chain_id: int, account: bytes) -> NonceLane:
    """A lane under its row lock; it must be there. Who signs for a chain holds the gas account's, whoever pays."""
    query = select(NonceLane).where(NonceLane.chain_id == chain_id, NonceLane.account == account).with_for_update()
    return (await session.scalars(query)).one()


async def gas_lanes(session: AsyncSession) -> Sequence[NonceLane]:
    """The lanes of every gas account that a sweeper has ever had, of all chains."""
    return list(await session.scalars(select(NonceLane).where(~NonceLane.is_deposit).order_by(NonceLane.chain_id)))


async def current_gas_lanes(session: AsyncSession) -> Sequence[NonceLane]:
    """Each chain's lane of the gas account that a round looked at last: a sweeper that was once given another wallet's
    key has left a lane of that one too, which no round looks at again.
    """
    query = select(NonceLane).where(~NonceLane.is_deposit).order_by(NonceLane.looked_at.asc().nulls_first())
    return list({lane.chain_id: lane for lane in await session.scalars(query)}.values())


async def used_nonces(session: AsyncSession, chain_id: int, account: bytes, from_nonce: int) -> set[int]:
    """Nonces from `from_nonce` on that a sweep of the account has, whatever became of it."""
    query = select(Sweep.nonce).where(Sweep.chain_id == chain_id, Sweep.account == account, Sweep.nonce >= from_nonce)
    return {nonce for nonce in await session.scalars(query) if nonce is not None}


# --- sweeps


async def followed(session: AsyncSession, chain_id: int) -> list[SweepRecord]:
    """Every sweep of a chain that has not ended, frozen ones too, lane by lane in the order of their nonces."""
    query = (
        select(Sweep).where(Sweep.chain_id == chain_id, Sweep.status.in_(FOLLOWED)).order_by(Sweep.account, Sweep.nonce)
    )
    return await _records(session, list(await session.scalars(query)))


async def ended_from(session: AsyncSession, chain_id: int, nonces: Mapping[bytes, int]) -> list[SweepRecord]:
    """Ended sweeps of accounts whose nonce, by the account's nonce on the chain, is unused: a reorg took them back."""
    # By nonce: deposit addresses have few different ones, and of the gas account's history nothing old is loaded.
    accounts: dict[int, list[bytes]] = {}
    for account, nonce in nonces.items():
        accounts.setdefault(nonce, []).append(account)
    found: list[Sweep] = []
    for nonce, having in accounts.items():
        query = select(Sweep).where(
            Sweep.chain_id == chain_id,
            Sweep.account.in_(having),
            Sweep.nonce >= nonce,
            Sweep.status.not_in(FOLLOWED),
        )
        found += await session.scalars(query)
    return await _records(session, found)


async def follow_again(session: AsyncSession, chain_id: int, first: int, last: int, hashes: Collection[bytes]) -> None:
    """Let sweeps that had ended in one of the blocks `first` to `last`, and in none of these, be looked at again: they
    are in no block any more, or in another one, where they cost another fee."""
    await session.execute(
        update(Sweep)
        .where(
            Sweep.chain_id == chain_id,
            Sweep.status.in_(("confirmed", "failed")),
            Sweep.block_number.between(first, last),
            Sweep.block_hash.not_in(hashes),
        )
        .values(status="mined", ended_at=None)
    )


async def lock(session: AsyncSession, sweep_id: str) -> SweepRecord | None:
    """A sweep under its row lock."""
    sweep = await session.scalar(select(Sweep).where(Sweep.id == sweep_id).with_for_update())
    if sweep is None:
        return None
    [record] = await _records(session, [sweep])
    return record


async def _records(session: AsyncSession, sweeps: Sequence[Sweep]) -> list[SweepRecord]:
    ids = [sweep.id for sweep in sweeps]
    items: dict[str, list[SweepItem]] = {sweep_id: [] for sweep_id in ids}
    attempts: dict[str, list[SweepAttempt]] = {sweep_id: [] for sweep_id in ids}
    for start in range(0, len(ids), limits.SQLITE_VARIABLES):
        wanted = ids[start : start + limits.SQLITE_VARIABLES]
        query = select(SweepItem).where(SweepItem.sweep_id.in_(wanted)).order_by(SweepItem.id)
        for item in await session.scalars(query):
            items[item.sweep_id].append(item)
        # By price as well: two attempts of one moment are told apart by what they pay.
        tried = (
            select(SweepAttempt)
            .where(SweepAttempt.sweep_id.in_(wanted))
            .order_by(SweepAttempt.created_at, SweepAttempt.max_fee_units)
        )
        for attempt in await session.scalars(tried):
            attempts[attempt.sweep_id].append(attempt)
    return [SweepRecord(sweep, items[sweep.id], attempts[sweep.id]) for sweep in sweeps]


async def followed_of(session: AsyncSession, chain_id: int, account: bytes) -> list[SweepRecord]:
    """The account's sweeps that have not ended, frozen ones too."""
    query = select(Sweep).where(Sweep.chain_id == chain_id, Sweep.account == account, Sweep.status.in_(FOLLOWED))
    return await _records(session, list(await session.scalars(query)))


async def count_live(session: AsyncSession, chain_id: int) -> int:
    """Sweeps of a chain that are signed or mined."""
    query = select(func.count()).select_from(Sweep).where(Sweep.chain_id == chain_id, Sweep.status.in_(LIVE))
    return await session.scalar(query) or 0


async def frozen(session: AsyncSession) -> dict[int, list[str]]:
    """The frozen sweeps' ids by chain: somebody has to look at them."""
    query = select(Sweep.chain_id, Sweep.id).where(Sweep.status == "frozen").order_by(Sweep.id)
    found: dict[int, list[str]] = {}
    for chain_id, sweep_id in await session.execute(query):
        found.setdefault(chain_id, []).append(sweep_id)
    return found


async def count_by_status(session: AsyncSession) -> dict[tuple[int, str], int]:
    """How many sweeps there are, by (chain id, status)."""
    query = select(Sweep.chain_id, Sweep.status, func.count()).group_by(Sweep.chain_id, Sweep.status)
    return {(chain_id, status): count for chain_id, status, count in await session.execute(query)}


async def spent(session: AsyncSession) -> dict[tuple[int, str], Spent]:
    """What the sweeps that have ended cost, by (chain id, kind): for a graph, so in floating point."""
    query = (
        select(
            Sweep.chain_id,
            Sweep.kind,
            cast(func.sum(Sweep.gas_used), Float),
            func.sum(cast(Sweep.fee_units, Float)),
        )
        .where(Sweep.status.in_(("confirmed", "failed")), Sweep.fee_units.is_not(None))
        .group_by(Sweep.chain_id, Sweep.kind)
    )
    return {(chain_id, kind): Spent(gas, fee_wei) for chain_id, kind, gas, fee_wei in await session.execute(query)}


async def deploying(session: AsyncSession, chain_id: int, account: bytes, since: datetime) -> bool:
    """Whether an account's deployment of a contract is not mined yet, or was signed after `since`.

    Each gas account has contracts of its own.
    """
    query = select(Sweep.id).where(
        Sweep.chain_id == chain_id,
        Sweep.account == account,
        Sweep.kind == "deploy",
        or_(Sweep.status.in_(("signed", "frozen")), Sweep.created_at > since),
    )
    return await session.scalar(query.limit(1)) is not None


async def mark_broadcast(session: AsyncSession, tx_hash: bytes, at: datetime) -> None:
    await session.execute(update(SweepAttempt).where(SweepAttempt.tx_hash == tx_hash).values(broadcast_at=at))


# --- what waits


async def unswept(
    session: AsyncSession, chain_id: int, cursor: int, confirmations: int, after_id: int
) -> list[Unswept]:
    """The next transfers to be swept after `after_id`, at most SWEEP_CANDIDATES.

    Canonical, with the confirmations at `cursor` that their option requires (`confirmations`: no option asked for the
    asset), of a payment that is no longer pending.
    """
    query = (
        select(
            Transaction.id,
            Transaction.recipient,
            Transaction.asset,
            DepositAddress.branch,
            DepositAddress.id,
            Transaction.payment_id,
            Transaction.amount_units,
            Transaction.seen_at,
        )
        .join(Payment, Payment.id == Transaction.payment_id)
        .join(DepositAddress, DepositAddress.id == Payment.deposit_address_id)
        .join(
            PaymentOption,
            (PaymentOption.payment_id == Transaction.payment_id)
            & (PaymentOption.chain_id == Transaction.chain_id)
            & (PaymentOption.asset == Transaction.asset),
            isouter=True,
        )
        .where(
            Transaction.chain_id == chain_id,
            Transaction.canonical,
            ~Transaction.swept,
            ~Transaction.set_aside,
            Transaction.id > after_id,
            Payment.status != "pending",
            Transaction.block_number <= cursor - func.coalesce(PaymentOption.confirmations_required, confirmations) + 1,
        )
        .order_by(Transaction.id)
        .limit(limits.SWEEP_CANDIDATES)
    )
    return [Unswept(*row) for row in await session.execute(query)]


async def unswept_native(session: AsyncSession, chain_id: int, addresses: Collection[bytes]) -> dict[bytes, int]:
    """Native coin, in wei, that was paid to addresses and is still there: no gas is paid with it."""
    query = select(Transaction.recipient, Transaction.amount_units).where(
        Transaction.chain_id == chain_id,
        Transaction.asset == NATIVE_ASSET,
        Transaction.canonical,
        ~Transaction.swept,
        ~Transaction.set_aside,
        Transaction.recipient.in_(addresses),
    )
    found: dict[bytes, int] = {}
    for address, units in await session.execute(query):
        found[address] = found.get(address, 0) + units
    return found


async def touching(
    session: AsyncSession, chain_id: int, addresses: Collection[bytes], since: datetime | None = None
) -> dict[bytes, list[Sweep]]:
    """Sweeps by the addresses that they have as live items; those that ended after `since` too."""
    query = (
        select(SweepItem.address, Sweep)
        .join(Sweep, Sweep.id == SweepItem.sweep_id)
        .where(SweepItem.chain_id == chain_id, SweepItem.address.in_(addresses))
    )
    query = query.where(SweepItem.live if since is None else or_(SweepItem.live, Sweep.ended_at > since))
    found: dict[bytes, list[Sweep]] = {}
    for address, sweep in await session.execute(query):
        found.setdefault(address, []).append(sweep)
    return found


async def failures(
    session: AsyncSession, chain_id: int, addresses: Collection[bytes]
) -> dict[tuple[bytes, bytes], Failures]:
    """By (address, asset): sweeps of them that ended and moved nothing."""
    query = (
        select(SweepItem.address, SweepItem.asset, func.count(), func.max(Sweep.ended_at))
        .join(Sweep, Sweep.id == SweepItem.sweep_id)
        .where(
            SweepItem.chain_id == chain_id,
            SweepItem.address.in_(addresses),
            _in_vain(),
        )
        .group_by(SweepItem.address, SweepItem.asset)
    )
    rows = await session.execute(query)
    return {(address, asset): Failures(count, last) for address, asset, count, last in rows if last is not None}


async def refused(session: AsyncSession, least: int) -> list[Refused]:
    """Addresses whose money waits although at least so many sweeps of it moved nothing, the first few."""
    waits = exists().where(
        Transaction.chain_id == SweepItem.chain_id,
        Transaction.recipient == SweepItem.address,
        Transaction.asset == SweepItem.asset,
        Transaction.canonical,
        ~Transaction.swept,
        ~Transaction.set_aside,
    )
    query = (
        select(
            SweepItem.chain_id, SweepItem.address, func.min(SweepItem.payment_id), func.count(), func.max(Sweep.error)
        )
        .join(Sweep, Sweep.id == SweepItem.sweep_id)
        .where(_in_vain(), waits)
        .group_by(SweepItem.chain_id, SweepItem.address, SweepItem.asset)
        .having(func.count() >= least)
        .order_by(func.min(SweepItem.id))
        .limit(limits.DOCTOR_ROWS)
    )
    return [Refused(*row) for row in await session.execute(query)]


def _in_vain() -> ColumnElement[bool]:
    moved_nothing = or_(SweepItem.moved_units.is_(None), SweepItem.moved_units == 0)
    return and_(Sweep.kind != "topup", Sweep.status.in_(("confirmed", "failed")), ~SweepItem.live, moved_nothing)

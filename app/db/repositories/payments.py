"""Payments with their options, addresses and transfers."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from sqlalchemy import (
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.db.driver import QuickSession
from app.db.models import DepositAddress, Outflow, Payment, PaymentOption, SweepAttempt, Token, Transaction
from app.db.types import UtcDateTime

Row = TypeVar("Row", PaymentOption, Transaction, Outflow)

# Made once: every payment for an order runs it.
_BY_ORDER: Final = (
    select(Payment.id)
    .where(
        Payment.merchant_id == bindparam("merchant_id"),
        Payment.order_id == bindparam("order_id"),
        text("status NOT IN ('expired', 'cancelled')"),
    )
    .order_by(Payment.holds_order.desc(), Payment.id.desc())
    .limit(literal_column("1"))
)


@dataclass(frozen=True, slots=True)
class PaymentRecord:
    """A payment with all that belongs to it; the rows are live objects of the session that loaded them.

    `transactions`: those that count, which is not what was set aside.
    """

    payment: Payment
    address: bytes
    options: Sequence[PaymentOption]
    transactions: Sequence[Transaction]
    tokens: Mapping[tuple[int, bytes], Token]
    outflows: Sequence[Outflow] = ()
    # Ids of the sweeps that are behind outflows, by transaction hash.
    sweep_ids: dict[bytes, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PaymentFilter:
    """What the list of payments is narrowed by; None means all."""

    status: str | None = None
    order_id: str | None = None
    chain: str | None = None
    token_symbol: str | None = None
    token_address: bytes | None = None
    address: bytes | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


async def lock(session: AsyncSession, payment_ids: Collection[str], and_their_rows: bool = False) -> None:
    """Lock payments in the order of their ids: every writer does, so no two can wait for each other.

    `and_their_rows`: wait also for transfers and sweeps of theirs that are being written. Not for those who write such
    rows themselves: steps of two chains would each wait for the other's transfer to the same payment.
    """
    query = select(Payment.id).where(Payment.id.in_(payment_ids)).order_by(Payment.id)
    query = query.with_for_update(key_share=not and_their_rows)
    (await session.execute(query)).all()


async def load(session: AsyncSession, payment_ids: Collection[str]) -> list[PaymentRecord]:
    """Records of the given payments, by id; five queries whatever their number, six when money left their addresses."""
    if not payment_ids:
        return []
    rows = (
        await session.execute(
            select(Payment, DepositAddress.address)
            .join(DepositAddress, DepositAddress.id == Payment.deposit_address_id)
            .where(Payment.id.in_(payment_ids))
            .order_by(Payment.id)
        )
    ).all()
    options = _by_payment(
        await session.scalars(
            select(PaymentOption).where(PaymentOption.payment_id.in_(payment_ids)).order_by(PaymentOption.position)
        )
    )
    transactions = _by_payment(
        await session.scalars(
            select(Transaction)
            .where(Transaction.payment_id.in_(payment_ids), ~Transaction.set_aside)
            .order_by(Transaction.block_number, Transaction.tx_index, Transaction.id)
        )
    )
    outflows = _by_payment(
        await session.scalars(
            select(Outflow)
            .where(Outflow.payment_id.in_(payment_ids))
            .order_by(Outflow.block_number, Outflow.tx_index, Outflow.id)
        )
    )
    sweep_ids = await _sweep_ids(session, payment_ids) if outflows else {}
    assets = {(row.chain_id, row.asset) for rows_ in options.values() for row in rows_}
    assets |= {(row.chain_id, row.asset) for rows_ in transactions.values() for row in rows_}
    assets |= {(row.chain_id, row.asset) for rows_ in outflows.values() for row in rows_}
    query = select(Token).where(tuple_(Token.chain_id, Token.address).in_(sorted(assets)))
    tokens = {(token.chain_id, token.address): token for token in await session.scalars(query)}
    return [
        PaymentRecord(
            payment,
            address,
            options.get(payment.id, []),
            transactions.get(payment.id, []),
            tokens,
            outflows.get(payment.id, []),
            sweep_ids,
        )
        for payment, address in rows
    ]


async def _sweep_ids(session: AsyncSession, payment_ids: Collection[str]) -> dict[bytes, str]:
    query = (
        select(SweepAttempt.tx_hash, SweepAttempt.sweep_id)
        .join(Outflow, Outflow.tx_hash == SweepAttempt.tx_hash)
        .where(Outflow.payment_id.in_(payment_ids))
        .distinct()
    )
    return {tx_hash: sweep_id for tx_hash, sweep_id in await session.execute(query)}


def _by_payment(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.payment_id, []).append(row)
    return found


async def find_by_order(session: QuickSession, merchant_id: str, order_id: str) -> str | None:
    """Id of the merchant's payment for that order which is neither expired nor cancelled.

    Of several, as after one was paid late, the one that holds the order, else the newest.
    """
    rows = await session.execute(_BY_ORDER, {"merchant_id": merchant_id, "order_id": order_id})
    ids: list[str] = [payment_id for (payment_id,) in rows]
    return ids[0] if ids else None


async def merchant_of(session: AsyncSession, payment_id: str) -> str | None:
    return await session.scalar(select(Payment.merchant_id).where(Payment.id == payment_id))


async def versions(session: AsyncSession, payment_ids: Collection[str]) -> dict[str, int]:
    """The version of each payment."""
    rows = await session.execute(select(Payment.id, Payment.version).where(Payment.id.in_(payment_ids)))
    return {payment_id: version for payment_id, version in rows}


async def list_ids(
    session: AsyncSession, merchant_id: str, wanted: PaymentFilter, before_id: str | None, limit: int
) -> list[str]:
    """Ids of a merchant's payments, newest first, below `before_id`."""
    query = select(Payment.id).where(Payment.merchant_id == merchant_id)
    if before_id is not None:
        query = query.where(Payment.id < before_id)
    if wanted.status is not None:
        query = query.where(Payment.status == wanted.status)
    if wanted.order_id is not None:
        query = query.where(Payment.order_id == wanted.order_id)
    if wanted.created_after is not None:
        query = query.where(Payment.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(Payment.created_at < wanted.created_before)
    if wanted.address is not None:
        query = query.join(DepositAddress, DepositAddress.id == Payment.deposit_address_id).where(
            DepositAddress.address == wanted.address
        )
    if wanted.chain is not None or wanted.token_symbol is not None or wanted.token_address is not None:
        option = (
            select(PaymentOption.id)
            .join(Token, (Token.chain_id == PaymentOption.chain_id) & (Token.address == PaymentOption.asset))
            .where(PaymentOption.payment_id == Payment.id)
        )
        if wanted.chain is not None:
            option = option.where(PaymentOption.chain == wanted.chain)
        if wanted.token_symbol is not None:
            option = option.where(func.lower(Token.symbol) == wanted.token_symbol.lower())
        if wanted.token_address is not None:
            option = option.where(PaymentOption.asset == wanted.token_address)
        query = query.where(exists(option))
    return list(await session.scalars(query.order_by(Payment.id.desc()).limit(limit)))


async def count_by_status(session: AsyncSession) -> dict[str, int]:
    """How many payments of all merchants there are in each status that has any."""
    rows = await session.execute(select(Payment.status, func.count()).group_by(Payment.status))
    return {status: count for status, count in rows}


async def count_by_flag(session: AsyncSession) -> dict[str, int]:
    """How many payments of all merchants have each flag that any has."""
    flags = cast(Payment.flags, Text)  # JSON as such is not compared
    rows = await session.execute(select(flags, func.count()).where(flags != "[]").group_by(flags))
    found: Counter[str] = Counter()
    for listed, count in rows:
        found.update(dict.fromkeys(json.loads(listed), count))
    return dict(found)


async def oldest(session: AsyncSession, now: datetime) -> dict[tuple[int, str], datetime]:
    """Since when the payment of a chain that waits longest does so, by (chain id, status): a detected one for its
    confirmations, a confirmed one for its settlement, a pending one, whose time is up, for the chain to say so.
    """
    since = case(
        (Payment.status == "pending", Payment.expires_at),
        (Payment.status == "detected", Payment.detected_at),
        else_=Payment.confirmed_at,
    )
    overdue = (Payment.status == "pending") & (Payment.expires_at < now)
    query = (
        select(PaymentOption.chain_id, Payment.status, type_coerce(func.min(since), UtcDateTime))
        .join(
            PaymentOption,
            (PaymentOption.payment_id == Payment.id) & (PaymentOption.position == Payment.option_position),
        )
        .where(Payment.status.in_(("detected", "confirmed")) | overdue)
        .group_by(PaymentOption.chain_id, Payment.status)
    )
    return {(chain_id, status): moment for chain_id, status, moment in await session.execute(query)}


async def due(session: AsyncSession, chain_id: int, passed: Mapping[int, datetime]) -> list[str]:
    """Ids of the chain's pending payments whose time is up on all chains that they could be paid on; at most
    DECIDE_PAYMENTS, those that wait longest.

    `passed`: by chain id the moment up to which nothing can be missing. A chain without one holds its payments open.
    """
    if chain_id not in passed:
        return []
    up_to = [(PaymentOption.chain_id == each) & (Payment.expires_at <= moment) for each, moment in passed.items()]
    of_payment = PaymentOption.payment_id == Payment.id
    query = (
        select(Payment.id)
        .where(
            Payment.status == "pending",
            Payment.expires_at <= passed[chain_id],
            exists().where(of_payment, PaymentOption.chain_id == chain_id),
            ~exists().where(of_payment, ~or_(*up_to)),
        )
        .order_by(Payment.expires_at)
        .limit(limits.DECIDE_PAYMENTS)
    )
    return list(await session.scalars(query))


async def ripening(session: AsyncSession, chain_id: int, final_block: int | None, after_id: str) -> list[str]:
    """Ids of payments that the chain pays and that confirmations or finality may take on; at most DECIDE_PAYMENTS.

    Detected ones with a verified transfer, and confirmed ones with one that is no higher than `final_block`; None
    where finality settles nothing. From the one after `after_id` on, and then from the first: one that waits for its
    other parts must not keep the rest waiting.
    """
    # No EXISTS: PostgreSQL would hash the whole history for it instead of asking an index for each open payment.
    paid_by = (PaymentOption.payment_id == Payment.id) & (PaymentOption.position == Payment.option_position)
    verified = (
        select(Transaction.id)
        .join(PaymentOption, paid_by & (PaymentOption.chain_id == chain_id))
        .where(
            Transaction.payment_id == Payment.id,
            Transaction.chain_id == chain_id,
            Transaction.asset == PaymentOption.asset,
            Transaction.canonical,
            Transaction.verified,
            ~Transaction.set_aside,
        )
        .limit(1)
    )
    ripe = (Payment.status == "detected") & verified.scalar_subquery().is_not(None)
    if final_block is not None:
        final = verified.where(Transaction.block_number <= final_block)
        ripe |= (Payment.status == "confirmed") & final.scalar_subquery().is_not(None)
    query = select(Payment.id).where(ripe).order_by(Payment.id <= after_id, Payment.id).limit(limits.DECIDE_PAYMENTS)
    return list(await session.scalars(query))


async def unverified(session: AsyncSession, chain_id: int, cursor: int, after_id: int) -> Sequence[Transaction]:
    """Canonical transfers of detected payments with the required confirmations at `cursor`, receipt not read again.

    From the one after `after_id` on, and then from the first: what can never be proved must not keep the rest waiting.
    """
    query = (
        select(Transaction)
        .join(Payment, Payment.id == Transaction.payment_id)
        .join(
            PaymentOption,
            (PaymentOption.payment_id == Transaction.payment_id)
            & (PaymentOption.chain_id == Transaction.chain_id)
            & (PaymentOption.asset == Transaction.asset),
        )
        .where(
            Transaction.chain_id == chain_id,
            Transaction.canonical,
            ~Transaction.verified,
            ~Transaction.set_aside,
            Payment.status == "detected",
            Transaction.block_number <= cursor - PaymentOption.confirmations_required + 1,
        )
        .order_by(Transaction.id <= after_id, Transaction.id)
        .limit(limits.VERIFY_TRANSFERS)
    )
    return list(await session.scalars(query))

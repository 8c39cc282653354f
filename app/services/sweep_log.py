"""What the sweeper did, on the merchant's side. Whether a payment is settled is not read here but off the chain."""

from collections.abc import Mapping, Sequence
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import rfc3339
from app.core.errors import NotFound
from app.core.evm import NATIVE_ASSET, checksum, hex0x
from app.core.money import format_units
from app.db.models import ChainState, Sweep, SweepAttempt, SweepItem, Token
from app.db.repositories import chains, sweep_log
from app.services.views import View

SweepStatus = Literal["signed", "mined", "confirmed", "failed", "frozen", "released"]


class SweepItemView(View):
    """Money of one payment's address: what it held when the sweep was signed, and what then moved (null: not yet)."""

    payment_id: str
    address: str
    amount: str
    amount_units: str
    moved_units: str | None


class SweepAttemptView(View):
    """One signed transaction; those of a sweep have the same nonce. `max_fee` is wei per gas."""

    tx_hash: str
    max_fee: str
    created_at: str


class SweepView(View):
    """One transaction of Paywatch's that moves money of the merchant's payments, or brings gas for that (`topup`).

    `tx_hash` is the mined transaction; until one is, the last that was signed (null: refused before that).
    `account` signs it and pays `fee`, in the chain's native coin, for all of its items, other merchants' too;
    `gas_price` is wei per gas.
    """

    id: str
    object: Literal["sweep"] = "sweep"
    kind: Literal["collect", "transfer", "native", "topup"]
    chain: str
    chain_id: int
    token: str
    status: SweepStatus
    tx_hash: str | None
    nonce: int | None
    account: str
    treasury: str | None
    gas_used: int | None
    gas_price: str | None
    fee: str | None
    fee_units: str | None
    error: str | None
    block_number: int | None
    created_at: str
    ended_at: str | None
    items: list[SweepItemView]
    attempts: list[SweepAttemptView]


async def list_page(
    session: AsyncSession,
    merchant_id: str,
    status: SweepStatus | None,
    payment_id: str | None,
    before_id: str | None,
    limit: int,
) -> tuple[list[SweepView], str | None]:
    """Sweeps of the merchant's payments, newest first, and the id that the next page starts below."""
    rows = await sweep_log.list_sweeps(session, merchant_id, status, payment_id, before_id, limit + 1)
    return await _views(session, merchant_id, rows[:limit]), rows[limit - 1].id if len(rows) > limit else None


async def get(session: AsyncSession, merchant_id: str, sweep_id: str) -> SweepView:
    """One sweep. Raises NotFound, also for one that holds nothing of the merchant's."""
    sweep = await sweep_log.get_sweep(session, merchant_id, sweep_id)
    if sweep is None:
        raise NotFound(f"there is no sweep {sweep_id!r}")
    [view] = await _views(session, merchant_id, [sweep])
    return view


async def _views(session: AsyncSession, merchant_id: str, sweeps: Sequence[Sweep]) -> list[SweepView]:
    ids = [sweep.id for sweep in sweeps]
    items = await sweep_log.list_items(session, merchant_id, ids)
    attempts = await sweep_log.list_attempts(session, ids)
    cursors = await chains.list_states(session)
    tokens = await chains.list_tokens(session)
    return [_view(sweep, items.get(sweep.id, []), attempts.get(sweep.id, []), cursors, tokens) for sweep in sweeps]


def _view(
    sweep: Sweep,
    items: Sequence[SweepItem],
    attempts: Sequence[SweepAttempt],
    cursors: Mapping[int, ChainState],
    tokens: Mapping[tuple[int, bytes], Token],
) -> SweepView:
    token, native = tokens[sweep.chain_id, sweep.asset], tokens[sweep.chain_id, NATIVE_ASSET]
    tx_hash = sweep.tx_hash or (attempts[-1].tx_hash if attempts else None)
    return SweepView(
        id=sweep.id,
        kind=sweep.kind,  # type: ignore[arg-type]
        chain=cursors[sweep.chain_id].name,
        chain_id=sweep.chain_id,
        token=token.symbol,
        status=sweep.status,  # type: ignore[arg-type]
        tx_hash=hex0x(tx_hash) if tx_hash else None,
        nonce=sweep.nonce,
        account=checksum(sweep.account),
        treasury=checksum(sweep.treasury) if sweep.treasury else None,
        gas_used=sweep.gas_used,
        gas_price=_text(sweep.gas_price_units),
        fee=None if sweep.fee_units is None else format_units(sweep.fee_units, native.decimals),
        fee_units=_text(sweep.fee_units),
        error=sweep.error,
        block_number=sweep.block_number,
        created_at=rfc3339(sweep.created_at),
        ended_at=rfc3339(sweep.ended_at) if sweep.ended_at else None,
        items=[
            SweepItemView(
                payment_id=item.payment_id,
                address=checksum(item.address),
                amount=format_units(item.amount_units, token.decimals),
                amount_units=str(item.amount_units),
                moved_units=_text(item.moved_units),
            )
            for item in items
        ],
        attempts=[
            SweepAttemptView(
                tx_hash=hex0x(attempt.tx_hash),
                max_fee=str(attempt.max_fee_units),
                created_at=rfc3339(attempt.created_at),
            )
            for attempt in attempts
        ],
    )


def _text(units: int | None) -> str | None:
    return None if units is None else str(units)

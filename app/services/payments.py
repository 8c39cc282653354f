"""Payments on the merchant's side: create, look up, cancel."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.wallet import NATIVE_BRANCH, TOKEN_BRANCH, AddressDeriver
from app.core import limits
from app.core.chains import Asset, Chain
from app.core.clock import utc_now
from app.core.errors import (
    ChainUnavailable,
    DuplicateOrder,
    FieldError,
    InvalidAmount,
    InvalidRequest,
    NotCancellable,
    NotFound,
    UnknownToken,
)
from app.core.ids import new_id
from app.core.money import MoneyError, parse_tolerance, parse_units
from app.db.models import Payment, PaymentOption
from app.db.repositories import addresses, chains, payments
from app.db.repositories.payments import PaymentFilter, PaymentRecord
from app.services.context import Context
from app.services.decide import Change
from app.services.ledger import Cause, Story, payment_state, store
from app.services.views import PaymentView, payment_view

__all__ = ["NewPayment", "PaymentFilter", "cancel", "create", "get", "list_page", "quote"]


@dataclass(frozen=True, slots=True)
class NewPayment:
    """What a storefront asks for. `token` is a symbol or a contract, `tolerance` like "0.10" or "0.5%"."""

    chain: str
    token: str
    amount: str
    order_id: str | None = None
    expires_in_s: int = limits.EXPIRES_IN_DEFAULT_S
    confirmations_required: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None
    redirect_url: str | None = None
    description: str | None = None
    tolerance: str = "0"


@dataclass(frozen=True, slots=True)
class _Quote:
    """One option of a payment to be: what must arrive, in which asset of which chain."""

    chain: Chain
    asset: Asset
    amount_units: int
    tolerance_units: int
    confirmations_required: int


async def create(
    context: Context, session: AsyncSession, deriver: AddressDeriver, merchant_id: str, wanted: NewPayment, cause: Cause
) -> PaymentView:
    """Give out a fresh address and write the payment with its `payment.created`.

    Raises UnknownChain, UnknownToken, InvalidAmount, InvalidRequest, ChainUnavailable or DuplicateOrder; nothing is
    written then.
    """
    quotes = [quote(context, wanted)]
    for each in quotes:
        await _require_watched(session, each)
    now = utc_now()
    branch = NATIVE_BRANCH if any(each.asset.is_native for each in quotes) else TOKEN_BRANCH
    if wanted.order_id is not None:
        await _refuse_second(session, merchant_id, wanted.order_id)
    index = await addresses.next_index(session)
    address = deriver.address(branch, index)
    await addresses.insert_address(session, index, branch, address, now)
    payment = Payment(
        id=new_id("pay"),
        merchant_id=merchant_id,
        deposit_address_id=index,
        status="pending",
        flags=[],
        version=1,
        option_position=0,
        order_id=wanted.order_id,
        description=wanted.description,
        metadata_=wanted.metadata,
        redirect_url=wanted.redirect_url,
        webhook_url=wanted.webhook_url,
        created_at=now,
        expires_at=now + timedelta(seconds=wanted.expires_in_s),
    )
    try:
        async with session.begin_nested():
            session.add(payment)
    except IntegrityError as error:
        if wanted.order_id is None or "order" not in str(error.orig):
            raise
        # Two at once with one order_id: the index lets one of them through. The other one says which, if it still can.
        await _refuse_second(session, merchant_id, wanted.order_id)
        raise DuplicateOrder(f"order_id {wanted.order_id!r} has just had another payment") from error
    options = [_option(payment.id, position, each) for position, each in enumerate(quotes)]
    session.add_all(options)
    await session.flush()
    tokens = await chains.list_tokens(session, {each.chain.chain_id for each in quotes})
    record = PaymentRecord(payment, address, options, [], tokens)
    cursors = await chains.list_states(session)
    state = payment_state(context, record)
    await store(context, session, [Story(record, [Change("payment.created", state)])], cause, cursors, now)
    return payment_view(record, state, cursors, context.settings.effective_public_url)


def quote(context: Context, wanted: NewPayment) -> _Quote:
    """Check what was asked against chains.yaml. Raises UnknownChain, UnknownToken, InvalidAmount, InvalidRequest."""
    chain = context.chain(wanted.chain)
    asset = chain.asset(wanted.token)
    if asset is None:
        known = ", ".join(each.symbol for each in chain.assets)
        raise UnknownToken(f"chain {chain.name!r} has no token {wanted.token!r}; it has {known}")
    try:
        amount_units = parse_units(wanted.amount, asset.decimals)
        if amount_units == 0:
            raise MoneyError("an amount must be above zero")
    except MoneyError as error:
        raise InvalidAmount(str(error), [FieldError("amount", str(error))]) from error
    try:
        tolerance_units = parse_tolerance(wanted.tolerance).units(amount_units, asset.decimals)
    except MoneyError as error:
        raise InvalidRequest(str(error), [FieldError("tolerance", str(error))]) from error
    if len(json.dumps(wanted.metadata, ensure_ascii=False).encode()) > limits.METADATA_BYTES:
        message = f"metadata has at most {limits.METADATA_BYTES} bytes as JSON"
        raise InvalidRequest(message, [FieldError("metadata", message)])
    confirmations = wanted.confirmations_required or chain.confirmations_required
    return _Quote(chain, asset, amount_units, tolerance_units, confirmations)


async def get(context: Context, session: AsyncSession, merchant_id: str, payment_id: str) -> PaymentView:
    """One payment of the merchant. Raises NotFound, also for somebody else's."""
    [view] = await _views(context, session, [await _own(session, merchant_id, payment_id)])
    return view


async def list_page(
    context: Context,
    session: AsyncSession,
    merchant_id: str,
    wanted: PaymentFilter,
    before_id: str | None,
    limit: int,
) -> tuple[list[PaymentView], str | None]:
    """A page, newest first, and the id that the next page starts below, if there is one."""
    ids = await payments.list_ids(session, merchant_id, wanted, before_id, limit + 1)
    views = await _views(context, session, ids[:limit])
    return sorted(views, key=lambda view: view.id, reverse=True), ids[limit - 1] if len(ids) > limit else None


async def cancel(
    context: Context, session: AsyncSession, merchant_id: str, payment_id: str, cause: Cause
) -> PaymentView:
    """Cancel a pending payment. Raises NotFound, or NotCancellable in any other status."""
    await _own(session, merchant_id, payment_id)
    await payments.lock(session, [payment_id])
    [record] = await payments.load(session, [payment_id])
    state = payment_state(context, record)
    if state.status != "pending":
        raise NotCancellable(f"the payment is {state.status}; only a pending one can be cancelled")
    cancelled = Change("payment.cancelled", replace(state, status="cancelled", version=state.version + 1))
    cursors = await chains.list_states(session)
    await store(context, session, [Story(record, [cancelled])], cause, cursors, utc_now())
    return payment_view(record, cancelled.state, cursors, context.settings.effective_public_url)


async def _own(session: AsyncSession, merchant_id: str, payment_id: str) -> str:
    if await payments.merchant_of(session, payment_id) != merchant_id:
        raise NotFound(f"there is no payment {payment_id!r}")
    return payment_id


async def _views(context: Context, session: AsyncSession, payment_ids: Sequence[str]) -> list[PaymentView]:
    records = await payments.load(session, payment_ids)
    cursors = await chains.list_states(session)
    url = context.settings.effective_public_url
    return [payment_view(record, payment_state(context, record), cursors, url) for record in records]


async def _require_watched(session: AsyncSession, quoted: _Quote) -> None:
    """Without a cursor the first payment could be mined before anybody looks; a halted chain sees nothing."""
    state = await chains.get_state(session, quoted.chain.chain_id)
    if state is None or await chains.get_token(session, quoted.chain.chain_id, quoted.asset.address) is None:
        raise ChainUnavailable(f"chain {quoted.chain.name!r} is not watched yet: its node has not been checked")
    if state.halt_code is not None:
        raise ChainUnavailable(f"chain {quoted.chain.name!r} is halted: {state.halt_detail}")


async def _refuse_second(session: AsyncSession, merchant_id: str, order_id: str) -> None:
    existing = await payments.find_by_order(session, merchant_id, order_id)
    if existing is not None:
        message = f"order_id {order_id!r} already has the payment {existing}"
        raise DuplicateOrder(message, [FieldError("order_id", message)])


def _option(payment_id: str, position: int, quoted: _Quote) -> PaymentOption:
    return PaymentOption(
        payment_id=payment_id,
        position=position,
        chain=quoted.chain.name,
        chain_id=quoted.chain.chain_id,
        asset=quoted.asset.address,
        amount_units=quoted.amount_units,
        tolerance_units=quoted.tolerance_units,
        received_units=0,
        confirmations_required=quoted.confirmations_required,
    )

"""Payments on the merchant's side: create, look up, cancel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.wallet import NATIVE_BRANCH, TOKEN_BRANCH, AddressDeriver
from app.core.clock import utc_now
from app.core.errors import DuplicateOrder, FieldError, NotCancellable, NotFound
from app.core.ids import new_id
from app.db.base import Base
from app.db.models import DepositAddress, Payment, PaymentOption
from app.db.repositories import addresses, chains, payments, webhooks
from app.db.repositories.payments import PaymentFilter, PaymentRecord
from app.db.repositories.together import insert_together
from app.services.context import Context
from app.services.decide import Change
from app.services.ledger import Cause, Story, deliveries_of, events_of, payment_state, store
from app.services.quotes import Accepted, NewPayment, Price, Quote, Quoted, quote
from app.services.views import PaymentView, payment_view

__all__ = [
    "Accepted",
    "Created",
    "NewPayment",
    "PaymentFilter",
    "Price",
    "Quoted",
    "cancel",
    "create",
    "get",
    "list_page",
    "quote",
]


@dataclass(frozen=True, slots=True)
class Created:
    """A new payment as the API shows it, and whether anybody is to be told of it by webhook."""

    content: dict[str, Any]
    told: bool

    @property
    def view(self) -> PaymentView:
        return PaymentView.model_validate(self.content)


async def create(
    context: Context, session: AsyncSession, deriver: AddressDeriver, merchant_id: str, quoted: Quoted, cause: Cause
) -> Created:
    """Give out a fresh address and write the payment, as quoted, with its `payment.created`.

    Raises DuplicateOrder; nothing is written then.
    """
    wanted, quotes = quoted.wanted, quoted.quotes
    now = utc_now()
    branch = NATIVE_BRANCH if any(each.asset.is_native for each in quotes) else TOKEN_BRANCH
    index = await addresses.next_index(session)
    address = deriver.address(branch, index)
    payment = Payment(
        id=new_id("pay"),
        merchant_id=merchant_id,
        deposit_address_id=index,
        status="pending",
        flags=[],
        version=1,
        option_position=0,
        price_amount=quoted.price and quoted.price.amount,
        price_currency=quoted.price and quoted.price.currency,
        order_id=wanted.order_id,
        description=wanted.description,
        metadata_=wanted.metadata,
        redirect_url=wanted.redirect_url,
        webhook_url=wanted.webhook_url,
        settled_by_sweep=False,
        created_at=now,
        expires_at=now + timedelta(seconds=quoted.expires_in_s),
    )
    options = [_option(payment.id, position, each) for position, each in enumerate(quotes)]
    record = PaymentRecord(payment, address, options, [], quoted.tokens)
    created = Story(record, [Change("payment.created", payment_state(context, record))])
    [event] = events_of(context, created, cause, quoted.cursors, now)
    deliveries = deliveries_of(payment, event, await webhooks.hold_endpoints(session, merchant_id), now)
    deposit_address = DepositAddress(id=index, branch=branch, address=address, created_at=now)
    rows = [deposit_address, payment, *options, event, *deliveries]
    if wanted.order_id is None:
        await insert_together(session, rows)
    else:
        await _insert_for_order(session, merchant_id, wanted.order_id, rows)
    return Created(event.data, bool(deliveries))


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


async def _insert_for_order(session: AsyncSession, merchant_id: str, order_id: str, rows: Sequence[Base]) -> None:
    """As `insert_together`. Raises DuplicateOrder when the order has a payment already."""
    await _refuse_second(session, merchant_id, order_id)
    try:
        async with session.begin_nested():
            await insert_together(session, rows)
    except IntegrityError as error:
        if "order" not in str(error.orig):
            raise
        # Two at once with one order_id: the index lets one of them through. The other one says which, if it still can.
        await _refuse_second(session, merchant_id, order_id)
        raise DuplicateOrder(f"order_id {order_id!r} has just had another payment") from error


async def _refuse_second(session: AsyncSession, merchant_id: str, order_id: str) -> None:
    existing = await payments.find_by_order(session, merchant_id, order_id)
    if existing is not None:
        message = f"order_id {order_id!r} already has the payment {existing}"
        raise DuplicateOrder(message, [FieldError("order_id", message)])


def _option(payment_id: str, position: int, quoted: Quote) -> PaymentOption:
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
        rate=quoted.rate and quoted.rate.text,
        rate_source=quoted.rate and quoted.rate.source,
        rate_at=quoted.rate and quoted.rate.at,
    )

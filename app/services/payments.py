"""Payments on the merchant's side: create, look up, cancel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.wallet import NATIVE_BRANCH, TOKEN_BRANCH, AddressDeriver
from app.core import limits, metrics
from app.core.clock import utc_now
from app.core.errors import DuplicateOrder, FieldError, NotCancellable, NotFound, ServiceUnavailable
from app.core.ids import new_id
from app.db.driver import QuickSession
from app.db.models import DepositAddress, Payment, PaymentOption
from app.db.repositories import chains, payments, webhooks
from app.db.repositories.payments import PaymentFilter, PaymentRecord
from app.db.repositories.together import insert_together, new_row
from app.db.repositories.webhooks import HeldEndpoint
from app.services import idempotency
from app.services.context import Context
from app.services.decide import Change
from app.services.idempotency import Claim, StoredAnswer
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
    context: Context,
    deriver: AddressDeriver,
    merchant_id: str,
    quoted: Quoted,
    cause: Cause,
    claim: Claim | None = None,
    has_endpoints: bool = True,
) -> Created | StoredAnswer:
    """Give out a fresh address and write the payment, as quoted, with its `payment.created` and the claim's answer.

    All in one transaction of its own. When another request with the same claim has come first, its answer. A merchant
    that had no endpoints when the request came has none to hold. Raises DuplicateOrder, IdempotencyMismatch, and
    ServiceUnavailable when it lost race after race.
    """
    order_id = quoted.wanted.order_id
    if order_id is not None:  # no index knows that a payment which gave up its order was paid late
        answer = await _first_answer(context, merchant_id, order_id, claim)
        if answer is not None:
            return answer
    for _ in range(limits.RACE_TRIES):
        try:
            async with context.db.quick_write(one_statement=not has_endpoints) as session:
                endpoints = await webhooks.hold_endpoints(session, merchant_id) if has_endpoints else []
                created = await _write(context, session, deriver, merchant_id, quoted, cause, claim, endpoints)
        except IntegrityError as error:
            # The unique indexes of open orders and of idempotency keys let one of several at once through.
            if "order" not in str(error.orig) and "idempotency" not in str(error.orig):
                raise
        else:
            metrics.PAYMENT_EVENTS.labels("payment.created").inc()
            return created
        answer = await _first_answer(context, merchant_id, order_id, claim)
        if answer is not None:
            return answer
    raise ServiceUnavailable("the order or the Idempotency-Key was given up just now; try again")


async def _first_answer(
    context: Context, merchant_id: str, order_id: str | None, claim: Claim | None
) -> StoredAnswer | None:
    """What the first request with the claim was answered. Raises DuplicateOrder, IdempotencyMismatch."""
    async with context.db.quick_read() as session:
        # The claim last: whoever takes the order under the same claim commits both at once.
        existing = None if order_id is None else await payments.find_by_order(session, merchant_id, order_id)
        answer = None if claim is None else await idempotency.find(session, claim)
    if answer is None and existing is not None:
        message = f"order_id {order_id!r} already has the payment {existing}"
        raise DuplicateOrder(message, [FieldError("order_id", message)])
    return answer


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
    await payments.lock(session, [payment_id], and_their_rows=True)
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


async def _write(
    context: Context,
    session: QuickSession,
    deriver: AddressDeriver,
    merchant_id: str,
    quoted: Quoted,
    cause: Cause,
    claim: Claim | None,
    endpoints: Sequence[HeldEndpoint],
) -> Created:
    wanted, quotes = quoted.wanted, quoted.quotes
    now = utc_now()
    branch = NATIVE_BRANCH if any(each.asset.is_native for each in quotes) else TOKEN_BRANCH
    index = await context.indexes.next(session)
    address = deriver.address(branch, index)
    payment = new_row(
        Payment,
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
        holds_order=wanted.order_id is not None,
        description=wanted.description,
        metadata_=wanted.metadata,
        redirect_url=wanted.redirect_url,
        webhook_url=wanted.webhook_url,
        settled_by_sweep=False,
        created_at=now,
        expires_at=now + timedelta(seconds=quoted.expires_in_s),
    )
    options = [_option(payment.id, position, each) for position, each in enumerate(quotes)]
    record = PaymentRecord(payment, address, options, [], quoted.watched.tokens)
    story = Story(record, [Change("payment.created", payment_state(context, record))])
    [event] = events_of(context, story, cause, quoted.watched.cursors, now)
    deliveries = deliveries_of(payment, event, endpoints, now)
    deposit_address = new_row(DepositAddress, id=index, branch=branch, address=address, created_at=now)
    answers = [] if claim is None else [idempotency.answered(claim, 201, event.data)]
    await insert_together(session, [deposit_address, payment, *options, event, *deliveries, *answers])
    return Created(event.data, bool(deliveries))


def _option(payment_id: str, position: int, quoted: Quote) -> PaymentOption:
    return new_row(
        PaymentOption,
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

"""`/v1/payments`"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.deps import (
    After,
    Before,
    CallerDep,
    Cursor,
    GatewayDep,
    IdempotencyHeader,
    Limit,
    Text,
    after_id,
    needs,
    page,
    path_id,
)
from app.api.errors import problem_responses
from app.api.idempotent import answer_once, answered_before, claim_of, replayed
from app.api.schemas import Page, PaymentCreate
from app.core import limits
from app.core.errors import (
    ChainUnavailable,
    DuplicateOrder,
    FieldError,
    IdempotencyMismatch,
    InvalidAmount,
    InvalidRequest,
    NotCancellable,
    PaywatchError,
    RateUnavailable,
    UnknownChain,
    UnknownToken,
)
from app.core.evm import to_bytes20
from app.core.netguard import BlockedAddress
from app.services import payments
from app.services.decide import Status
from app.services.idempotency import StoredAnswer
from app.services.keys import Caller
from app.services.ledger import Cause
from app.services.payments import Accepted, NewPayment, PaymentFilter, Price
from app.services.views import PaymentView

router = APIRouter(prefix="/v1/payments", tags=["payments"])


@router.post(
    "",
    status_code=201,
    response_model=PaymentView,
    dependencies=[needs("payments:write")],
    responses=problem_responses(
        *(UnknownChain, UnknownToken, InvalidAmount, BlockedAddress, IdempotencyMismatch),
        *(DuplicateOrder, ChainUnavailable, RateUnavailable),
    ),
)
async def create_payment(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    body: PaymentCreate,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Create a payment and get its fresh deposit address."""
    claim = claim_of(request, caller, body, idempotency_key)
    try:
        quoted = await payments.quote(gateway.context, caller.defaults, _wanted(body))
        if body.webhook_url is not None:
            await gateway.context.guard.check_url(body.webhook_url, "webhook_url")
    except PaywatchError:
        # A retry gets its answer although the chain or the webhook's name is away by now.
        answer = await answered_before(gateway, claim)
        if answer is None:
            raise
        return answer
    created = await payments.create(
        gateway.context, gateway.deriver, caller.merchant_id, quoted, _cause(caller), claim, caller.has_endpoints
    )
    if isinstance(created, StoredAnswer):
        return replayed(created)
    request.state.payment_id = created.content["id"]
    if created.told:
        await gateway.wake_ups.webhooks()
    return JSONResponse(created.content, status_code=201)


@router.get("", response_model=Page[PaymentView], dependencies=[needs("payments:read")])
async def list_payments(
    gateway: GatewayDep,
    caller: CallerDep,
    status: Status | None = None,
    order_id: Annotated[Text | None, Query(max_length=limits.ORDER_ID_CHARS)] = None,
    chain: Annotated[Text | None, Query(max_length=64)] = None,
    token: Annotated[Text | None, Query(max_length=64, description="Symbol or contract address")] = None,
    address: Annotated[Text | None, Query(max_length=64)] = None,
    created_after: After = None,
    created_before: Before = None,
    limit: Limit = limits.PAGE_DEFAULT,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """List payments, newest first."""
    is_contract = token is not None and token.startswith("0x")
    wanted = PaymentFilter(
        status=status,
        order_id=order_id,
        chain=chain,
        token_symbol=None if is_contract else token,
        token_address=_address("token", token) if is_contract else None,
        address=_address("address", address),
        created_after=created_after,
        created_before=created_before,
    )
    async with gateway.context.db.read() as session:
        views, next_cursor = await payments.list_page(
            gateway.context, session, caller.merchant_id, wanted, after_id(cursor, "pay"), limit
        )
    return page(views, next_cursor)


@router.get(
    "/{payment_id}",
    response_model=PaymentView,
    dependencies=[needs("payments:read")],
)
async def get_payment(gateway: GatewayDep, caller: CallerDep, payment_id: str) -> PaymentView:
    """One payment."""
    async with gateway.context.db.read() as session:
        return await payments.get(gateway.context, session, caller.merchant_id, path_id(payment_id))


@router.post(
    "/{payment_id}/cancel",
    response_model=PaymentView,
    dependencies=[needs("payments:write")],
    responses=problem_responses(NotCancellable),
)
async def cancel_payment(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    payment_id: str,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Cancel a pending payment. Its address stays watched."""
    wanted = path_id(payment_id)

    async def cancel(session: AsyncSession) -> PaymentView:
        return await payments.cancel(gateway.context, session, caller.merchant_id, wanted, _cause(caller))

    answer = await answer_once(gateway, claim_of(request, caller, None, idempotency_key), 200, cancel)
    await gateway.wake_ups.webhooks()
    return answer


def _wanted(body: PaymentCreate) -> NewPayment:
    price, accept = body.price, body.accept
    return NewPayment(
        chain=body.chain,
        token=body.token,
        amount=body.amount,
        price=None if price is None else Price(price.amount, price.currency),
        accept=None if accept is None else [Accepted(each.chain, each.token) for each in accept],
        order_id=body.order_id,
        expires_in_s=body.given("expires_in"),
        confirmations_required=body.confirmations_required,
        metadata=body.metadata,
        webhook_url=body.webhook_url,
        redirect_url=body.redirect_url,
        description=body.description,
        tolerance=body.given("tolerance"),
    )


def _cause(caller: Caller) -> Cause:
    return Cause("api_key", {"key_id": caller.key_id})


def _address(field: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return to_bytes20(text)
    except ValueError as error:
        raise InvalidRequest(f"{field}: {error}", [FieldError(field, str(error))]) from error

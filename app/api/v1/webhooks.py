"""`/v1/webhook_endpoints` and `/v1/webhook_deliveries`"""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.deps import (
    CallerDep,
    Cursor,
    GatewayDep,
    IdempotencyHeader,
    Limit,
    after_id,
    known_id,
    needs,
    page,
    path_id,
)
from app.api.errors import problem_responses
from app.api.idempotent import answer_once, answered_before, claim_of
from app.api.schemas import EndpointCreate, EndpointUpdate, Page, ReplayDead
from app.core import limits
from app.core.netguard import BlockedAddress, guarded_client
from app.services import deliveries, endpoints
from app.services.deliveries import DeliveryView, Replayed
from app.services.endpoints import EndpointTestView, EndpointView, NewEndpointView

router = APIRouter(tags=["webhooks"], dependencies=[needs("webhooks:write")])


@router.post(
    "/v1/webhook_endpoints",
    status_code=201,
    response_model=NewEndpointView,
    responses=problem_responses(BlockedAddress, 409),
)
async def create_endpoint(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    body: EndpointCreate,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Add a receiver. Its signing secret is in this answer and in no other."""
    claim = claim_of(request, caller, body, idempotency_key)
    try:
        await gateway.context.guard.check_url(body.url)
    except BlockedAddress:
        # A retry gets its answer although the URL's name is away by now, or leads elsewhere.
        answer = await answered_before(gateway, claim, sealed=True)
        if answer is None:
            raise
        return answer

    async def create(session: AsyncSession) -> NewEndpointView:
        return await endpoints.create_endpoint(gateway.context, session, caller.merchant_id, body.url, body.event_types)

    return await answer_once(gateway, claim, 201, create, sealed=True)


@router.get("/v1/webhook_endpoints", response_model=Page[EndpointView])
async def list_endpoints(
    gateway: GatewayDep, caller: CallerDep, limit: Limit = limits.PAGE_DEFAULT, cursor: Cursor = None
) -> dict[str, Any]:
    """The merchant's receivers, newest first."""
    async with gateway.context.db.read() as session:
        return page(*await endpoints.list_endpoints(session, caller.merchant_id, after_id(cursor, "whe"), limit))


@router.get("/v1/webhook_endpoints/{endpoint_id}", response_model=EndpointView)
async def get_endpoint(gateway: GatewayDep, caller: CallerDep, endpoint_id: str) -> EndpointView:
    """One receiver."""
    async with gateway.context.db.read() as session:
        return await endpoints.get_endpoint(session, caller.merchant_id, path_id(endpoint_id))


@router.patch(
    "/v1/webhook_endpoints/{endpoint_id}", response_model=EndpointView, responses=problem_responses(BlockedAddress)
)
async def update_endpoint(
    gateway: GatewayDep, caller: CallerDep, endpoint_id: str, body: EndpointUpdate
) -> EndpointView:
    """Change a receiver's URL or event types, disable it, or enable it again.

    Disabling ends its pending deliveries: they are dead, and can be replayed once it is enabled.
    """
    if body.url is not None:
        await gateway.context.guard.check_url(body.url)
    changes = body.model_dump(exclude_unset=True)
    cause = {"kind": "api_key", "key_id": caller.key_id}
    async with gateway.context.db.write() as session:
        return await endpoints.update_endpoint(session, caller.merchant_id, path_id(endpoint_id), changes, cause)


@router.delete("/v1/webhook_endpoints/{endpoint_id}", status_code=204)
async def delete_endpoint(gateway: GatewayDep, caller: CallerDep, endpoint_id: str) -> Response:
    """Stop sending to a receiver, also what is pending. The log of its deliveries stays."""
    async with gateway.context.db.write() as session:
        await endpoints.delete_endpoint(session, caller.merchant_id, path_id(endpoint_id))
    return Response(status_code=204)


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/rotate_secret",
    response_model=NewEndpointView,
    responses=problem_responses(404, 409),
)
async def rotate_secret(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    endpoint_id: str,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Give a receiver a new signing secret, shown in this answer only. The old one signs as well for 24 hours."""
    wanted = path_id(endpoint_id)

    async def rotate(session: AsyncSession) -> NewEndpointView:
        return await endpoints.rotate_secret(gateway.context, session, caller.merchant_id, wanted)

    return await answer_once(gateway, claim_of(request, caller, None, idempotency_key), 200, rotate, sealed=True)


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/test", response_model=EndpointTestView, responses=problem_responses(404)
)
async def test_endpoint(gateway: GatewayDep, caller: CallerDep, endpoint_id: str) -> EndpointTestView:
    """Send a signed `webhook_endpoint.test` to a receiver, and tell what it answered. It is tried once."""
    async with guarded_client(gateway.context.guard) as client:
        return await endpoints.send_test(gateway.context, client, caller.merchant_id, path_id(endpoint_id))


@router.get("/v1/webhook_deliveries", response_model=Page[DeliveryView])
async def list_deliveries(
    gateway: GatewayDep,
    caller: CallerDep,
    status: Literal["pending", "delivered", "dead"] | None = None,
    payment_id: str | None = None,
    endpoint_id: str | None = None,
    limit: Limit = limits.PAGE_DEFAULT,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """The delivery log with every attempt, newest first."""
    async with gateway.context.db.read() as session:
        views, next_cursor = await deliveries.list_deliveries(
            session,
            caller.merchant_id,
            status,
            None if payment_id is None else known_id(payment_id),
            None if endpoint_id is None else known_id(endpoint_id),
            after_id(cursor, "dlv"),
            limit,
        )
    return page(views, next_cursor)


@router.post(
    "/v1/webhook_deliveries/{delivery_id}/replay", response_model=DeliveryView, responses=problem_responses(404, 409)
)
async def replay_delivery(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    delivery_id: str,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Send a delivery again, under the same `webhook-id`, whether it is dead, delivered or waiting for its next try."""
    wanted = path_id(delivery_id)

    async def replay(session: AsyncSession) -> DeliveryView:
        return await deliveries.replay(session, caller.merchant_id, wanted)

    answer = await answer_once(gateway, claim_of(request, caller, None, idempotency_key), 200, replay)
    await gateway.wake_ups.webhooks()
    return answer


@router.post("/v1/webhook_deliveries/replay", response_model=Replayed, responses=problem_responses(400, 404, 409, 413))
async def replay_dead_deliveries(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    body: ReplayDead,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Send dead deliveries again that were made since a time, oldest first, at most 1,000 in one call."""
    endpoint_id = None if body.endpoint_id is None else path_id(body.endpoint_id)

    async def replay(session: AsyncSession) -> Replayed:
        return await deliveries.replay_dead(session, caller.merchant_id, body.since, endpoint_id)

    answer = await answer_once(gateway, claim_of(request, caller, body, idempotency_key), 200, replay)
    await gateway.wake_ups.webhooks()
    return answer

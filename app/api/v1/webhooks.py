"""`/v1/webhook_endpoints` and `/v1/webhook_deliveries`"""

from typing import Any, Literal

from fastapi import APIRouter, Response

from app.api.deps import CallerDep, Cursor, GatewayDep, Limit, after_id, known_id, needs, page, path_id
from app.api.errors import problem_responses
from app.api.schemas import EndpointCreate, EndpointUpdate, Page
from app.core import limits
from app.core.netguard import BlockedAddress
from app.services import endpoints
from app.services.endpoints import DeliveryView, EndpointView, NewEndpointView

router = APIRouter(tags=["webhooks"], dependencies=[needs("webhooks:write")])


@router.post(
    "/v1/webhook_endpoints",
    status_code=201,
    response_model=NewEndpointView,
    responses=problem_responses(BlockedAddress, 409),
)
async def create_endpoint(gateway: GatewayDep, caller: CallerDep, body: EndpointCreate) -> NewEndpointView:
    """Add a receiver. Its signing secret is in this answer and in no other."""
    await gateway.context.guard.check_url(body.url)
    async with gateway.context.db.write() as session:
        return await endpoints.create_endpoint(gateway.context, session, caller.merchant_id, body.url, body.event_types)


@router.get("/v1/webhook_endpoints", response_model=Page[EndpointView])
async def list_endpoints(
    gateway: GatewayDep, caller: CallerDep, limit: Limit = limits.PAGE_DEFAULT, cursor: Cursor = None
) -> dict[str, Any]:
    """The merchant's receivers, newest first."""
    async with gateway.context.db.read() as session:
        return page(*await endpoints.list_endpoints(session, caller.merchant_id, after_id(cursor), limit))


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
    """Change a receiver's URL or event types."""
    if body.url is not None:
        await gateway.context.guard.check_url(body.url)
    all_types = "event_types" in body.model_fields_set and body.event_types is None
    async with gateway.context.db.write() as session:
        return await endpoints.update_endpoint(
            session, caller.merchant_id, path_id(endpoint_id), body.url, body.event_types, all_types
        )


@router.delete("/v1/webhook_endpoints/{endpoint_id}", status_code=204)
async def delete_endpoint(gateway: GatewayDep, caller: CallerDep, endpoint_id: str) -> Response:
    """Stop sending to a receiver. The log of its deliveries stays."""
    async with gateway.context.db.write() as session:
        await endpoints.delete_endpoint(session, caller.merchant_id, path_id(endpoint_id))
    return Response(status_code=204)


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
        views, next_cursor = await endpoints.list_deliveries(
            session,
            caller.merchant_id,
            status,
            None if payment_id is None else known_id(payment_id),
            None if endpoint_id is None else known_id(endpoint_id),
            after_id(cursor),
            limit,
        )
    return page(views, next_cursor)

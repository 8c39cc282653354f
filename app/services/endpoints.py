"""Webhook endpoints and the delivery log, on the merchant's side."""

from collections.abc import Collection
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.errors import Conflict, NotFound
from app.core.ids import new_id
from app.core.secrets import new_webhook_secret
from app.db.models import WebhookAttempt, WebhookDelivery, WebhookEndpoint
from app.db.repositories import webhooks
from app.services.context import Context
from app.services.decide import EventType
from app.services.views import View


class EndpointView(View):
    """A receiver of webhooks. `event_types` null means all."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    event_types: list[EventType] | None
    created_at: str


class NewEndpointView(EndpointView):
    """An endpoint with its signing secret, which is shown this once."""

    secret: str


class AttemptView(View):
    at: str
    duration_ms: int
    status_code: int | None
    error: str | None
    manual: bool


class DeliveryView(View):
    """One event to one receiver; `endpoint_id` is null for a payment's own `webhook_url`."""

    id: str
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str
    event_type: EventType
    payment_id: str
    endpoint_id: str | None
    url: str
    status: Literal["pending", "delivered", "dead"]
    attempt_count: int
    next_attempt_at: str | None
    delivered_at: str | None
    created_at: str
    attempts: list[AttemptView]


async def create_endpoint(
    context: Context, session: AsyncSession, merchant_id: str, url: str, event_types: Collection[EventType] | None
) -> NewEndpointView:
    """Add an endpoint with a fresh secret; the guard has checked its URL. Raises Conflict when there are too many."""
    if len(await webhooks.list_endpoints(session, merchant_id)) >= limits.ENDPOINTS_PER_MERCHANT:
        raise Conflict(f"a merchant has at most {limits.ENDPOINTS_PER_MERCHANT} webhook endpoints")
    secret = new_webhook_secret()
    row = WebhookEndpoint(
        id=new_id("whe"),
        merchant_id=merchant_id,
        url=url,
        event_types=None if event_types is None else sorted(set(event_types)),
        secret=context.box.encrypt(secret),
        created_at=utc_now(),
    )
    session.add(row)
    return NewEndpointView(**_endpoint_view(row).model_dump(), secret=secret)


async def list_endpoints(
    session: AsyncSession, merchant_id: str, before_id: str | None, limit: int
) -> tuple[list[EndpointView], str | None]:
    rows = await webhooks.list_endpoints(session, merchant_id, before_id, limit + 1)
    return [_endpoint_view(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None


async def get_endpoint(session: AsyncSession, merchant_id: str, endpoint_id: str) -> EndpointView:
    """Raises NotFound."""
    return _endpoint_view(await _own(session, merchant_id, endpoint_id))


async def update_endpoint(
    session: AsyncSession,
    merchant_id: str,
    endpoint_id: str,
    url: str | None,
    event_types: Collection[EventType] | None,
    all_types: bool,
) -> EndpointView:
    """Change what is given; `all_types` takes the filter away. Pending deliveries keep their URL. Raises NotFound."""
    row = await _own(session, merchant_id, endpoint_id)
    if url is not None:
        row.url = url
    if event_types is not None:
        row.event_types = sorted(set(event_types))
    elif all_types:
        row.event_types = None
    return _endpoint_view(row)


async def delete_endpoint(session: AsyncSession, merchant_id: str, endpoint_id: str) -> None:
    """Stop delivering new events to it; its log stays. Raises NotFound."""
    (await _own(session, merchant_id, endpoint_id)).deleted_at = utc_now()


async def list_deliveries(
    session: AsyncSession,
    merchant_id: str,
    status: str | None,
    payment_id: str | None,
    endpoint_id: str | None,
    before_id: str | None,
    limit: int,
) -> tuple[list[DeliveryView], str | None]:
    """The delivery log, newest first, each with its attempts."""
    rows = await webhooks.list_deliveries(session, merchant_id, status, payment_id, endpoint_id, before_id, limit + 1)
    attempts = await webhooks.list_attempts(session, [row.id for row, _ in rows[:limit]])
    views = [_delivery_view(row, event_type, attempts.get(row.id, [])) for row, event_type in rows[:limit]]
    return views, rows[limit - 1][0].id if len(rows) > limit else None


async def _own(session: AsyncSession, merchant_id: str, endpoint_id: str) -> WebhookEndpoint:
    row = await webhooks.get_endpoint(session, merchant_id, endpoint_id)
    if row is None:
        raise NotFound(f"there is no webhook endpoint {endpoint_id!r}")
    return row


def _endpoint_view(row: WebhookEndpoint) -> EndpointView:
    return EndpointView(
        id=row.id,
        url=row.url,
        event_types=row.event_types,  # type: ignore[arg-type]
        created_at=rfc3339(row.created_at),
    )


def _delivery_view(row: WebhookDelivery, event_type: str, attempts: list[WebhookAttempt]) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        event_id=row.event_id,
        event_type=event_type,  # type: ignore[arg-type]
        payment_id=row.payment_id,
        endpoint_id=row.endpoint_id,
        url=row.url,
        status=row.status,  # type: ignore[arg-type]
        attempt_count=row.attempt_count,
        next_attempt_at=rfc3339(row.next_attempt_at) if row.next_attempt_at else None,
        delivered_at=rfc3339(row.delivered_at) if row.delivered_at else None,
        created_at=rfc3339(row.created_at),
        attempts=[
            AttemptView(
                at=rfc3339(attempt.at),
                duration_ms=attempt.duration_ms,
                status_code=attempt.status_code,
                error=attempt.error,
                manual=attempt.manual,
            )
            for attempt in attempts
        ],
    )

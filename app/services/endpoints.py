"""Webhook endpoints on the merchant's side: made, changed, disabled, and their secrets rotated."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import httpx
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.errors import Conflict, NotFound
from app.core.ids import new_id
from app.core.logger import get_logger, redact_url
from app.core.secrets import new_webhook_secret, rotated, signing_secrets
from app.db.models import Event, WebhookEndpoint
from app.db.repositories import merchants, receivers, webhook_backlog, webhooks
from app.services.context import Context
from app.services.decide import EventType
from app.services.views import View
from app.services.webhook_post import Message, post

log = get_logger(__name__)

# `failing`: no success for five days; `gone`: it answered 410; `merchant`: by the API.
DisabledReason = Literal["failing", "gone", "merchant"]
DISABLED_EVENT: Literal["webhook_endpoint.disabled"] = "webhook_endpoint.disabled"
TEST_EVENT: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"


class EndpointView(View):
    """A receiver of webhooks. `event_types` null means all; the old secret signs as well until
    `old_secret_valid_until`."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    event_types: list[EventType] | None
    status: Literal["enabled", "disabled"]
    disabled_at: str | None
    disabled_reason: DisabledReason | None
    old_secret_valid_until: str | None
    created_at: str


class NewEndpointView(EndpointView):
    """An endpoint with its signing secret, which is shown this once."""

    secret: str


class EndpointTestView(View):
    """What came of a test: the attempt, as in the delivery log."""

    object: Literal["webhook_test"] = "webhook_test"
    webhook_id: str
    type: Literal["webhook_endpoint.test"] = TEST_EVENT
    delivered: bool
    at: str
    duration_ms: int
    status_code: int | None
    error: str | None
    error_detail: str | None
    response_body: str | None


async def create_endpoint(
    context: Context, session: AsyncSession, merchant_id: str, url: str, event_types: Collection[EventType] | None
) -> NewEndpointView:
    """Add an endpoint with a fresh secret; the guard has checked its URL. Raises Conflict when there are too many."""
    await merchants.lock(session, merchant_id)
    if len(await webhooks.list_endpoints(session, merchant_id)) >= limits.ENDPOINTS_PER_MERCHANT:
        raise Conflict(f"a merchant has at most {limits.ENDPOINTS_PER_MERCHANT} webhook endpoints")
    secret = new_webhook_secret()
    row = WebhookEndpoint(
        id=new_id("whe"),
        merchant_id=merchant_id,
        url=url,
        event_types=None if event_types is None else sorted(set(event_types)),
        secret=context.box.encrypt(secret),
        old_secrets=[],
        created_at=utc_now(),
    )
    session.add(row)
    return NewEndpointView(**endpoint_view(row).model_dump(), secret=secret)


async def list_endpoints(
    session: AsyncSession, merchant_id: str, before_id: str | None, limit: int
) -> tuple[list[EndpointView], str | None]:
    rows = await webhooks.list_endpoints(session, merchant_id, before_id, limit + 1)
    return [endpoint_view(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None


async def get_endpoint(session: AsyncSession, merchant_id: str, endpoint_id: str) -> EndpointView:
    """Raises NotFound."""
    return endpoint_view(await _own(session, merchant_id, endpoint_id))


async def update_endpoint(
    session: AsyncSession, merchant_id: str, endpoint_id: str, changes: Mapping[str, Any], cause: Mapping[str, Any]
) -> EndpointView:
    """Change what `changes` holds: `url`, `event_types` (None: all), `enabled`. Raises NotFound.

    Pending deliveries go to the new URL, and what was known of the old one's health is forgotten.
    """
    row = await _own(session, merchant_id, endpoint_id, for_update=True)
    if changes.get("url") is not None and changes["url"] != row.url:
        row.url = changes["url"]
        await receivers.forget_failures(session, row.id)
    if "event_types" in changes:
        wanted = changes["event_types"]
        row.event_types = None if wanted is None else sorted(set(wanted))
    enabled = changes.get("enabled")
    if enabled is False and row.disabled_at is None:
        await _disable(session, row, "merchant", cause)
    elif enabled is True and row.disabled_at is not None:
        row.disabled_at = row.disabled_reason = None
        await receivers.forget_failures(session, row.id)
    return endpoint_view(row)


async def delete_endpoint(session: AsyncSession, merchant_id: str, endpoint_id: str) -> None:
    """Stop delivering to it; what is pending is dead, and its log stays. Raises NotFound.

    Of a large backlog the first rows are dead now, and `webhook_backlog.end_some` ends the rest.
    """
    row = await _own(session, merchant_id, endpoint_id, for_update=True)
    row.deleted_at = utc_now()
    await receivers.forget_failures(session, row.id)
    await webhook_backlog.end_pending(session, row.id, "endpoint_deleted")


async def rotate_secret(context: Context, session: AsyncSession, merchant_id: str, endpoint_id: str) -> NewEndpointView:
    """A fresh secret; the old one signs as well for a day. Raises NotFound, or Conflict after too many in a day."""
    row = await _own(session, merchant_id, endpoint_id, for_update=True)
    now = utc_now()
    old = rotated(row.secret, row.old_secrets, now, now + timedelta(seconds=limits.WEBHOOK_OLD_SECRET_S))
    if len(old) > limits.WEBHOOK_OLD_SECRETS:
        raise Conflict(f"the secret was rotated {limits.WEBHOOK_OLD_SECRETS} times within a day, which is the limit")
    secret = new_webhook_secret()
    row.old_secrets = old
    row.secret = context.box.encrypt(secret)
    return NewEndpointView(**endpoint_view(row).model_dump(), secret=secret)


async def disable_failed(
    session: AsyncSession, endpoint_id: str, reason: DisabledReason, url: str, delivery_id: str
) -> None:
    """Disable an endpoint whose `url` gives us no choice; one that was changed or deleted meanwhile stays as it is."""
    row = await webhooks.lock_endpoint(session, endpoint_id)
    if row.url == url and row.disabled_at is None and row.deleted_at is None:
        await _disable(session, row, reason, {"kind": "webhook", "delivery_id": delivery_id})


async def send_test(
    context: Context, client: httpx.AsyncClient, merchant_id: str, endpoint_id: str
) -> EndpointTestView:
    """Send a test event now, whatever types the endpoint takes and although it is disabled; no database is held.

    It is in no log, is not tried again, and says nothing about the endpoint's health. Raises NotFound.
    """
    async with context.db.read() as session:
        row = await _own(session, merchant_id, endpoint_id)
    now = utc_now()
    message = Message(new_id("tst"), TEST_EVENT, now, endpoint_view(row).model_dump(mode="json"))
    attempt = await post(context, client, row.url, signing_secrets(row.secret, row.old_secrets, now), message)
    return EndpointTestView(
        webhook_id=message.id,
        delivered=attempt.error is None,
        at=rfc3339(attempt.at),
        duration_ms=attempt.duration_ms,
        status_code=attempt.status_code,
        error=attempt.error,
        error_detail=attempt.error_detail,
        response_body=attempt.response_body,
    )


def endpoint_view(row: WebhookEndpoint) -> EndpointView:
    now = rfc3339(utc_now())
    old = [one["until"] for one in row.old_secrets if one["until"] > now]
    return EndpointView(
        id=row.id,
        url=row.url,
        event_types=row.event_types,  # type: ignore[arg-type]
        status="enabled" if row.disabled_at is None else "disabled",
        disabled_at=_time(row.disabled_at),
        disabled_reason=row.disabled_reason,  # type: ignore[arg-type]
        old_secret_valid_until=max(old, default=None),
        created_at=rfc3339(row.created_at),
    )


async def _own(session: AsyncSession, merchant_id: str, endpoint_id: str, for_update: bool = False) -> WebhookEndpoint:
    row = await webhooks.get_endpoint(session, merchant_id, endpoint_id, for_update)
    if row is None:
        raise NotFound(f"there is no webhook endpoint {endpoint_id!r}")
    return row


async def _disable(
    session: AsyncSession, row: WebhookEndpoint, reason: DisabledReason, cause: Mapping[str, Any]
) -> None:
    """Disable a locked endpoint: what is pending is dead and can be replayed, and the audit trail and the log say so.

    Of a large backlog the first rows are dead now, and `webhook_backlog.end_some` ends the rest; nothing of it is sent
    unless the endpoint is enabled before that.
    No webhook is made of it: every body that merchants' receivers know holds a payment.
    """
    now = utc_now()
    row.disabled_at, row.disabled_reason = now, reason
    await receivers.forget_failures(session, row.id)
    ended = await webhook_backlog.end_pending(session, row.id, "endpoint_disabled")
    session.add(
        Event(
            id=new_id("evt"),
            merchant_id=row.merchant_id,
            payment_id=None,
            type=DISABLED_EVENT,
            version=0,
            cause={**cause, "reason": reason},
            data=endpoint_view(row).model_dump(mode="json"),
            created_at=now,
        )
    )
    say = log.info if reason == "merchant" else log.error
    say("webhook endpoint disabled", endpoint=row.id, url=redact_url(row.url), reason=reason, ended=ended)


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)

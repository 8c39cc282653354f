"""The audit trail, read."""

from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import rfc3339
from app.core.errors import NotFound
from app.db.models import Event
from app.db.repositories import events, payments
from app.db.repositories.events import EventFilter
from app.services.decide import EventType
from app.services.endpoints import EndpointView
from app.services.views import PaymentView, View

__all__ = [
    "AnyEventType",
    "EventFilter",
    "EventView",
    "event_view",
    "list_of_merchant",
    "list_of_payment",
    "version_of",
]


AnyEventType = Literal[EventType, "webhook_endpoint.disabled"]


class EventView(View):
    """One change of a payment: its cause, and the payment as it was then.

    `cause.kind` is `transfer`, `block`, `reorg`, `clock`, `api_key`, `operator`, `backup` or `webhook`; the rest of it
    names which one.

    `webhook_endpoint.disabled` is the one event without a payment: `payment_id` null, version 0, `data` the endpoint.
    """

    id: str
    type: AnyEventType
    payment_id: str | None
    version: int
    created_at: str
    cause: dict[str, Any]
    data: Annotated[PaymentView | EndpointView, Field(discriminator="object")]


async def list_of_payment(
    session: AsyncSession, merchant_id: str, payment_id: str, after_version: int, limit: int
) -> tuple[list[EventView], int | None]:
    """A payment's events by version, and the version that the next page starts above, if there is one.

    Raises NotFound for a payment that is not the merchant's.
    """
    await _own(session, merchant_id, payment_id)
    rows = await events.list_of_payment(session, payment_id, after_version, limit + 1)
    return [event_view(row) for row in rows[:limit]], rows[limit - 1].version if len(rows) > limit else None


async def list_of_merchant(
    session: AsyncSession, merchant_id: str, wanted: EventFilter, before_id: str | None, limit: int
) -> tuple[list[EventView], str | None]:
    """All of the merchant's events, newest first, and the id that the next page starts below, if there is one."""
    rows = await events.list_of_merchant(session, merchant_id, wanted, before_id, limit + 1)
    return [event_view(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None


async def version_of(session: AsyncSession, merchant_id: str, payment_id: str, event_id: str | None) -> int:
    """The version of one of a payment's events, 0 for an id that is none of its. Raises NotFound as above."""
    await _own(session, merchant_id, payment_id)
    return 0 if event_id is None else await events.version_of(session, payment_id, event_id) or 0


async def _own(session: AsyncSession, merchant_id: str, payment_id: str) -> None:
    if await payments.merchant_of(session, payment_id) != merchant_id:
        raise NotFound(f"there is no payment {payment_id!r}")


def event_view(row: Event) -> EventView:
    return EventView(
        id=row.id,
        type=row.type,  # type: ignore[arg-type]
        payment_id=row.payment_id,
        version=row.version,
        created_at=rfc3339(row.created_at),
        cause=row.cause,
        data=(EndpointView if row.payment_id is None else PaymentView).model_validate(row.data),
    )

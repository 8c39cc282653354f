"""The audit trail, read."""

from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import rfc3339
from app.core.errors import NotFound
from app.db.models import Event
from app.db.repositories import events, payments
from app.services.decide import EventType
from app.services.endpoints import EndpointView
from app.services.views import PaymentView, View


class EventView(View):
    """One change of a payment: its cause, and the payment as it was then.

    `webhook_endpoint.disabled` is the one event without a payment: `payment_id` null, version 0, `data` the endpoint.
    """

    id: str
    type: EventType | Literal["webhook_endpoint.disabled"]
    payment_id: str | None
    version: int
    created_at: str
    cause: dict[str, Any]
    data: Annotated[PaymentView | EndpointView, Field(discriminator="object")]


async def list_events(
    session: AsyncSession, merchant_id: str, payment_id: str | None, after: tuple[int, str] | None, limit: int
) -> tuple[list[EventView], tuple[int, str] | None]:
    """A payment's events by version, or all of the merchant's, newest first; and where the next page starts.

    Raises NotFound for a payment that is not the merchant's.
    """
    if payment_id is not None and await payments.merchant_of(session, payment_id) != merchant_id:
        raise NotFound(f"there is no payment {payment_id!r}")
    rows = await events.list_events(session, merchant_id, payment_id, after, limit + 1)
    last = rows[limit - 1] if len(rows) > limit else None
    return [_view(row) for row in rows[:limit]], (last.version, last.id) if last else None


def _view(row: Event) -> EventView:
    return EventView(
        id=row.id,
        type=row.type,  # type: ignore[arg-type]
        payment_id=row.payment_id,
        version=row.version,
        created_at=rfc3339(row.created_at),
        cause=row.cause,
        data=(EndpointView if row.payment_id is None else PaymentView).model_validate(row.data),
    )

"""`/v1/events` and a payment's events"""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.api.deps import (
    After,
    Before,
    CallerDep,
    Cursor,
    GatewayDep,
    Limit,
    Text,
    after_id,
    known_id,
    needs,
    page,
    path_id,
)
from app.api.schemas import Page
from app.core import limits
from app.core.errors import FieldError, InvalidRequest
from app.services import events
from app.services.events import AnyEventType, EventFilter, EventView

router = APIRouter(tags=["events"], dependencies=[needs("payments:read")])


@router.get("/v1/events", response_model=Page[EventView])
async def list_events(
    gateway: GatewayDep,
    caller: CallerDep,
    type: Annotated[AnyEventType | None, Query()] = None,  # noqa: A002 the parameter's public name
    payment_id: Annotated[Text | None, Query(max_length=64)] = None,
    created_after: After = None,
    created_before: Before = None,
    limit: Limit = limits.PAGE_DEFAULT,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """What happened to the merchant's payments, newest first, each change with its cause."""
    wanted = EventFilter(
        type=type,
        payment_id=None if payment_id is None else known_id(payment_id),
        created_after=created_after,
        created_before=created_before,
    )
    async with gateway.context.db.read() as session:
        return page(*await events.list_of_merchant(session, caller.merchant_id, wanted, after_id(cursor, "evt"), limit))


@router.get("/v1/payments/{payment_id}/events", response_model=Page[EventView])
async def list_payment_events(
    gateway: GatewayDep, caller: CallerDep, payment_id: str, limit: Limit = limits.PAGE_DEFAULT, cursor: Cursor = None
) -> dict[str, Any]:
    """What happened to a payment, by version, each change with its cause."""
    after = 0 if cursor is None else _version(cursor)
    async with gateway.context.db.read() as session:
        views, last = await events.list_of_payment(session, caller.merchant_id, path_id(payment_id), after, limit)
    return page(views, None if last is None else str(last))


def _version(cursor: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", cursor):
        raise InvalidRequest("cursor is not one of ours", [FieldError("cursor", "must be a next_cursor")])
    return int(cursor)

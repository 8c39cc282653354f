"""`/v1/events` and a payment's events"""

import re
from typing import Any

from fastapi import APIRouter

from app.api.deps import CallerDep, Cursor, GatewayDep, Limit, after_id, needs, page, path_id
from app.api.errors import problem_responses
from app.api.schemas import Page
from app.core import limits
from app.core.errors import FieldError, InvalidRequest
from app.services.events import EventView, list_events

router = APIRouter(tags=["events"], dependencies=[needs("payments:read")], responses=problem_responses(401, 422, 503))


@router.get("/v1/events", response_model=Page[EventView])
async def list_all(
    gateway: GatewayDep, caller: CallerDep, limit: Limit = limits.PAGE_DEFAULT, cursor: Cursor = None
) -> dict[str, Any]:
    """The merchant's events, newest first."""
    before = after_id(cursor)
    async with gateway.context.db.read() as session:
        views, last = await list_events(session, caller.merchant_id, None, (0, before) if before else None, limit)
    return page(views, last[1] if last else None)


@router.get("/v1/payments/{payment_id}/events", response_model=Page[EventView], responses=problem_responses(404))
async def list_of_payment(
    gateway: GatewayDep, caller: CallerDep, payment_id: str, limit: Limit = limits.PAGE_DEFAULT, cursor: Cursor = None
) -> dict[str, Any]:
    """What happened to a payment, by version, each change with its cause."""
    after = (_version(cursor), "") if cursor is not None else None
    async with gateway.context.db.read() as session:
        views, last = await list_events(session, caller.merchant_id, path_id(payment_id), after, limit)
    return page(views, str(last[0]) if last else None)


def _version(cursor: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", cursor):
        raise InvalidRequest("cursor is not one of ours", [FieldError("cursor", "must be a next_cursor")])
    return int(cursor)

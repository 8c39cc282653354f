"""`/v1/chains`"""

from typing import Any

from fastapi import APIRouter

from app.api.deps import CallerDep, Cursor, GatewayDep, Limit, needs, page
from app.api.schemas import Page
from app.core import limits
from app.core.errors import FieldError, InvalidRequest
from app.services.status import ChainView, list_chains

router = APIRouter(
    prefix="/v1/chains",
    tags=["chains"],
    dependencies=[needs("payments:read")],
)


@router.get("", response_model=Page[ChainView])
async def get_chains(
    gateway: GatewayDep, _caller: CallerDep, limit: Limit = limits.PAGE_DEFAULT, cursor: Cursor = None
) -> dict[str, Any]:
    """The configured chains in their order, with their tokens, and how far each was watched."""
    async with gateway.context.db.read() as session:
        views = await list_chains(gateway.context, session)
    names = [view.name for view in views]
    if cursor is not None and cursor not in names:
        raise InvalidRequest("cursor is not one of ours", [FieldError("cursor", "must be a next_cursor")])
    start = 0 if cursor is None else names.index(cursor) + 1
    end = start + limit
    return page(views[start:end], names[end - 1] if end < len(names) else None)

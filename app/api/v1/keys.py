"""`/v1/keys`"""

from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.deps import CallerDep, Cursor, GatewayDep, IdempotencyHeader, Limit, after_id, needs, page, path_id
from app.api.errors import problem_responses
from app.api.idempotent import answer_once, claim_of
from app.api.schemas import KeyCreate, Page
from app.core import limits
from app.services import keys
from app.services.keys import KeyView, NewKeyView

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[needs("admin")])


@router.post("", status_code=201, response_model=NewKeyView, responses=problem_responses(409))
async def create_key(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    body: KeyCreate,
    idempotency_key: IdempotencyHeader = None,
) -> Response:
    """Make an API key. It is in this answer and in no other."""

    async def create(session: AsyncSession) -> NewKeyView:
        return await keys.create_key(session, caller.merchant_id, body.name, body.scopes)

    return await answer_once(gateway, claim_of(request, caller, body, idempotency_key), 201, create, sealed=True)


@router.get("", response_model=Page[KeyView])
async def list_keys(
    gateway: GatewayDep, caller: CallerDep, limit: Limit = limits.PAGE_DEFAULT, cursor: Cursor = None
) -> dict[str, Any]:
    """The merchant's keys, newest first, revoked ones too."""
    async with gateway.context.db.read() as session:
        return page(*await keys.list_keys(session, caller.merchant_id, after_id(cursor, "key"), limit))


@router.delete("/{key_id}", status_code=204, responses=problem_responses(409))
async def revoke_key(gateway: GatewayDep, caller: CallerDep, key_id: str) -> Response:
    """Revoke a key: it works no longer."""
    async with gateway.context.db.write() as session:
        await keys.revoke_key(gateway.context, session, path_id(key_id), caller.merchant_id)
    return Response(status_code=204)

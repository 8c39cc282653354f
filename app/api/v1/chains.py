"""`/v1/chains`"""

from typing import Any

from fastapi import APIRouter

from app.api.deps import CallerDep, GatewayDep, needs, page
from app.api.schemas import Page
from app.services.status import ChainView, list_chains

router = APIRouter(
    prefix="/v1/chains",
    tags=["chains"],
    dependencies=[needs("payments:read")],
)


@router.get("", response_model=Page[ChainView])
async def get_chains(gateway: GatewayDep, _caller: CallerDep) -> dict[str, Any]:
    """The configured chains with their tokens, and how far each was watched."""
    async with gateway.context.db.read() as session:
        return page(await list_chains(gateway.context, session), None)

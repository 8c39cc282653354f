"""`/v1/sweeps`"""

from typing import Any

from fastapi import APIRouter

from app.api.deps import CallerDep, Cursor, GatewayDep, Limit, after_id, known_id, needs, page, path_id
from app.api.errors import problem_responses
from app.api.schemas import Page
from app.core import limits
from app.services import sweep_log
from app.services.sweep_log import SweepStatus, SweepView

router = APIRouter(
    prefix="/v1/sweeps",
    tags=["sweeps"],
    dependencies=[needs("sweeps:read")],
    responses=problem_responses(401, 422, 503),
)


@router.get("", response_model=Page[SweepView])
async def list_sweeps(
    gateway: GatewayDep,
    caller: CallerDep,
    status: SweepStatus | None = None,
    payment_id: str | None = None,
    limit: Limit = limits.PAGE_DEFAULT,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Transactions that move the money of the merchant's payments to the treasury, newest first."""
    wanted = None if payment_id is None else known_id(payment_id)
    async with gateway.context.db.read() as session:
        return page(
            *await sweep_log.list_page(session, caller.merchant_id, status, wanted, after_id(cursor, "swp"), limit)
        )


@router.get("/{sweep_id}", response_model=SweepView, responses=problem_responses(404))
async def get_sweep(gateway: GatewayDep, caller: CallerDep, sweep_id: str) -> SweepView:
    """One sweep with its items of the merchant's payments."""
    async with gateway.context.db.read() as session:
        return await sweep_log.get(session, caller.merchant_id, path_id(sweep_id))

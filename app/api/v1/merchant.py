"""`/v1/merchant`"""

from fastapi import APIRouter

from app.api.deps import CallerDep, GatewayDep, needs
from app.api.schemas import MerchantUpdate
from app.services import defaults
from app.services.defaults import MerchantView

router = APIRouter(prefix="/v1/merchant", tags=["merchant"])


@router.get("", response_model=MerchantView, dependencies=[needs("payments:read")])
async def get_merchant(gateway: GatewayDep, caller: CallerDep) -> MerchantView:
    """The merchant of this API key, with its defaults."""
    async with gateway.context.db.read() as session:
        return await defaults.get(session, caller.merchant_id)


@router.patch("", response_model=MerchantView, dependencies=[needs("admin")])
async def update_merchant(gateway: GatewayDep, caller: CallerDep, body: MerchantUpdate) -> MerchantView:
    """Change defaults. Payments that exist keep what they were created with."""
    async with gateway.context.db.write() as session:
        return await defaults.update(session, caller.merchant_id, body.model_dump(exclude_unset=True))

"""Liveness, readiness, and everything."""

from fastapi import APIRouter, Response

from app.api.deps import GatewayDep
from app.services.status import Check, Health, health, readiness

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live")
async def live() -> dict[str, str]:
    """The process turns."""
    return {"status": "ok"}


@router.get("/ready", response_model=Health, responses={503: {"model": Health}})
async def ready(gateway: GatewayDep, response: Response) -> Health:
    """Requests can be served: the database and Redis answer."""
    checks = await readiness(gateway.context, gateway.wake_ups)
    return _answer(Health(status="down" if _any_down(checks) else "ok", checks=checks), response)


@router.get("", response_model=Health, responses={503: {"model": Health}})
async def everything(gateway: GatewayDep, response: Response) -> Health:
    """All checks; 503 only when the database or Redis is down."""
    return _answer(await health(gateway.context, gateway.wake_ups), response)


def _answer(report: Health, response: Response) -> Health:
    if report.status == "down":
        response.status_code = 503
    return report


def _any_down(checks: list[Check]) -> bool:
    return any(check.status == "down" for check in checks)

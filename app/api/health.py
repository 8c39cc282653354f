"""Liveness, readiness, and everything; also for monitors that ask by HEAD."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from app.api.deps import GatewayDep
from app.services.status import Check, Health

router = APIRouter(tags=["health"])


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process turns."""
    return {"status": "ok"}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", response_model=Health, responses={503: {"model": Health}})
async def ready(gateway: GatewayDep, response: Response) -> Health:
    """Requests can be served: the database and Redis answer."""
    checks = await gateway.readiness.get()
    return _answer(Health(status="down" if _any_down(checks) else "ok", checks=checks), response)


@router.head("/health", include_in_schema=False)
@router.get("/health", response_model=Health, responses={503: {"model": Health}})
async def everything(gateway: GatewayDep, response: Response) -> Health:
    """All checks; 503 only when the database or Redis is down."""
    return _answer(await gateway.health.get(), response)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(gateway: GatewayDep) -> Response:
    """Prometheus metrics: what the database knows, the same whichever process answers, and what this one counted."""
    return Response(await gateway.metrics.get(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def _answer(report: Health, response: Response) -> Health:
    if report.status == "down":
        response.status_code = 503
    return report


def _any_down(checks: list[Check]) -> bool:
    return any(check.status == "down" for check in checks)

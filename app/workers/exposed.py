"""A worker's own metrics and liveness over HTTP. The server has its own `/metrics` and `/health/live`."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prometheus_client import make_wsgi_app, start_http_server

from app.core import limits
from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.logger import get_logger
from app.core.loop_lag import LoopLag
from app.core.metrics import REGISTRY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = get_logger(__name__)


@asynccontextmanager
async def exposed_metrics(settings: Settings, lag: LoopLag) -> AsyncIterator[None]:
    """Answer on METRICS_PORT, if it is set: `/health/live`, and Prometheus everywhere else.

    From a thread: a blocked loop is what one wants to see there, as metrics and as 503.

    Raises ConfigError when the port is taken.
    """
    if settings.metrics_port is None:
        yield
        return
    where = f"{settings.host}, port {settings.metrics_port}"
    try:
        server, thread = await asyncio.to_thread(start_http_server, settings.metrics_port, settings.host, REGISTRY)
    except OSError as error:
        raise ConfigError(
            f"PAYWATCH_HOST, PAYWATCH_METRICS_PORT: cannot listen on {where}: {error.strerror}"
        ) from error
    server.set_app(_with_liveness(make_wsgi_app(REGISTRY), lag))
    log.info("metrics exposed", host=settings.host, port=settings.metrics_port)
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)


def _with_liveness(metrics: "WSGIApplication", lag: LoopLag) -> "WSGIApplication":
    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health/live":
            return metrics(environ, start_response)
        stuck_s = lag.stuck_s
        status = "200 OK" if stuck_s < limits.LOOP_STUCK_S else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [f"the event loop is held up for {stuck_s:.1f} s\n".encode()]

    return answer

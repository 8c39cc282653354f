"""Around every request: an id, a log line, a limit on the body, and one on requests that no API key is asked for."""

import re
import time
from typing import Any

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.address import client_address
from app.api.errors import known_problem
from app.core import limits, metrics
from app.core.errors import PayloadTooLarge, RateLimited
from app.core.ids import new_id
from app.core.logger import get_logger
from app.services.gateway import Gateway

log = get_logger(__name__)

_MONITORING = ("/health", "/metrics")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = ("GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS")


class RequestMiddleware:
    """Pure ASGI, so that streams pass through it untouched.

    Takes the caller's `X-Request-ID` or makes one, binds it to every log line, and gives it back.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")
        request.state.request_id = request_id
        started = time.monotonic()
        status, answered = 500, None

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.monotonic()
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await _count(request)
                body = await _read(request, receive)
            except (RateLimited, PayloadTooLarge) as error:
                await known_problem(request, error)(scope, receive, send_with_id)
            else:
                await self._app(scope, _Replay(body, receive), send_with_id)
            finally:  # an error that escapes is answered outside, with 500
                ended = time.monotonic()
                _measure(scope, status, (answered or ended) - started)
                level = log.debug if scope["path"].startswith(_MONITORING) else log.info
                level("request", **_facts(request), status=status, duration_ms=int((ended - started) * 1000))


def _measure(scope: Scope, status: int, seconds: float) -> None:
    """By the route's template: a path may hold an id, or be anything."""
    method = scope["method"] if scope["method"] in _METHODS else "other"
    route = getattr(scope.get("route"), "path", "none")
    metrics.HTTP_REQUEST_SECONDS.labels(method, route, str(status)).observe(seconds)


def _facts(request: Request) -> dict[str, Any]:
    payment = getattr(request.state, "payment_id", None) or request.path_params.get("payment_id")
    facts = {"method": request.method, "path": request.url.path}
    return facts if payment is None else facts | {"payment": payment}


async def _count(request: Request) -> None:
    """Count a public page's request against the client's address; the API counts its own by key. Raises RateLimited."""
    gateway: Gateway | None = request.app.state.gateway
    if gateway is not None and not request.scope["path"].startswith(("/v1/", *_MONITORING)):
        await gateway.throttle.hit(client_address(request, gateway.context.settings.trusted_proxies))


async def _read(request: Request, receive: Receive) -> bytes:
    """The whole body, as long as it stays within `BODY_BYTES`, whatever Content-Length says."""
    body: bytes = b""
    if request.method in ("GET", "HEAD"):
        return body
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += message.get("body", b"")
        if len(body) > limits.BODY_BYTES:
            raise PayloadTooLarge(f"a request body has at most {limits.BODY_BYTES} bytes")
        if not message.get("more_body"):
            return body


class _Replay:
    """Hands the application the body that was read, then whatever the server says (a disconnect)."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Any:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

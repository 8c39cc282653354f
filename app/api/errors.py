"""Errors as RFC 9457 problems."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from app.api.address import client_address
from app.core.errors import (
    Conflict,
    FieldError,
    Forbidden,
    InvalidAmount,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PaywatchError,
    RateLimited,
    ServiceUnavailable,
    Unauthorized,
    UnsupportedMediaType,
)
from app.core.logger import get_logger, report_error
from app.services.gateway import Gateway
from app.services.outages import is_outage

log = get_logger(__name__)

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


GENERAL: Final = {
    400: "malformed_json",
    401: Unauthorized.code,
    403: Forbidden.code,
    404: NotFound.code,
    409: Conflict.code,
    413: PayloadTooLarge.code,
    415: UnsupportedMediaType.code,
    422: InvalidRequest.code,
    429: RateLimited.code,
    500: PaywatchError.code,
    503: ServiceUnavailable.code,
}
CODES: Final = "x-codes"  # where `problem_responses` leaves codes for `app.api.openapi`


def titles(root: type[PaywatchError] = PaywatchError) -> dict[str, str]:
    """Each code's title."""
    found = {GENERAL[400]: "Malformed JSON", root.code: root.title}
    for each in root.__subclasses__():
        found |= titles(each)
    return found


class ProblemError(BaseModel):
    path: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details. `code` is for programs, `detail` for people."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemError]
    request_id: str


def problem_responses(*problems: int | type[PaywatchError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for these problems: errors by their class, or a status for its general one.

    `app.api.openapi` spells them out, and adds those that every operation can have: 400, 401, 403, 404, 413, 415, 422,
    429, 500 and 503 with their general codes need not be named.
    """
    found: dict[int | str, dict[str, Any]] = {}
    for each in problems:
        status, code = (each, GENERAL[each]) if isinstance(each, int) else (each.status, each.code)
        found.setdefault(status, {"model": Problem, "description": "Problem", CODES: []})[CODES].append(code)
    return found


def problem(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    body = {
        "type": f"urn:paywatch:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [{"path": error.path, "message": error.message} for error in errors],
        "request_id": request.state.request_id,
    }
    added = dict(headers or {})
    if status == 401:
        added["WWW-Authenticate"] = "Bearer"
    if status == 503:
        added.setdefault("Retry-After", "5")
    return JSONResponse(body, status_code=status, headers=added, media_type="application/problem+json")


def known_problem(request: Request, error: PaywatchError) -> JSONResponse:
    """The problem that an error of ours is."""
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, RateLimited) else {}
    return problem(request, error.status, error.code, error.title, error.detail, error.errors, headers)


def install(app: FastAPI) -> None:
    """Turn every error into a problem; nothing else in the house knows HTTP."""

    @app.exception_handler(PaywatchError)
    async def _known(request: Request, error: PaywatchError) -> JSONResponse:
        return known_problem(request, error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        if any(each["type"] == "json_invalid" for each in errors):
            return await _without_a_key(request, _malformed(request, _where_malformed(errors[0])))
        # FastAPI leaves a body unread as bytes that is not called JSON.
        if any(each["loc"] == ("body",) and isinstance(each["input"], bytes) for each in errors):
            return known_problem(request, UnsupportedMediaType("send the body with `Content-Type: application/json`"))
        found = [FieldError(_path(each["loc"]), _message(each)) for each in errors]
        # A wrong amount has one code, whether its type or its digits are wrong.
        wrong = [each.path for each in found]
        kind = InvalidAmount if wrong in (["amount"], ["price.amount"]) else InvalidRequest
        detail = "; ".join(f"{each.path or 'the body'}: {each.message}" for each in found)
        return known_problem(request, kind(detail, found))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's, of a body that it cannot read
            return await _without_a_key(request, _malformed(request))
        code = _HTTP_CODES.get(error.status_code, "http_error")
        detail = str(error.detail)
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
        answer = problem(request, error.status_code, code, titles().get(code, detail), detail, headers=headers)
        return await _without_a_key(request, answer)

    @app.exception_handler(DBAPIError)
    @app.exception_handler(PoolTimeoutError)
    @app.exception_handler(OSError)
    @app.exception_handler(TimeoutError)
    async def _unavailable(request: Request, error: Exception) -> JSONResponse:
        """The database is away, or too busy; a statement that it refused is our mistake."""
        if not is_outage(error):
            return _report(request, error)
        log.error("database unavailable", reason=f"{type(error).__name__}: {error}")
        known = ServiceUnavailable("the database cannot be reached; try again in a moment")
        return problem(request, known.status, known.code, known.title, known.detail)

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> JSONResponse:
        """Starlette answers these outside of RequestMiddleware, so the request's id is added here."""
        response = _report(request, error)
        response.headers["X-Request-ID"] = request.state.request_id
        return response


async def _without_a_key(request: Request, answer: JSONResponse) -> JSONResponse:
    """What the API answers before it asks for a key; counted against the client's address, as wrong keys are."""
    gateway: Gateway | None = request.app.state.gateway
    if gateway is not None and request.url.path.startswith("/v1/"):
        try:
            await gateway.throttle.hit(client_address(request, gateway.context.settings.trusted_proxies))
        except RateLimited as error:
            return known_problem(request, error)
    return answer


def _report(request: Request, error: Exception) -> JSONResponse:
    report = report_error(log, error, request_id=request.state.request_id)
    detail = f"something went wrong on our side; report {report} has the details"
    return problem(request, 500, "internal_error", "Internal error", detail)


def _malformed(request: Request, where: str = "") -> JSONResponse:
    code = GENERAL[400]
    return problem(request, 400, code, titles()[code], f"the body is not JSON{where}")


def _where_malformed(error: Mapping[str, Any]) -> str:
    return f": {error['ctx']['error']} at character {error['loc'][-1]}"


def _allowed(request: Request) -> str:
    """The methods of a path, those of all its routes: Starlette names the first one's only (RFC 9110, 15.5.6)."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods)) or "GET, HEAD"  # of a file of /docs, which has no route of its own


def _message(error: Mapping[str, Any]) -> str:
    """What is wrong with a field, without pydantic's words for Python's types and its own steps."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing" and error["loc"] == ("body",):
        return "is missing"
    if kind in ("model_attributes_type", "dict_type"):
        return "must be a JSON object"
    if kind == "too_short":
        return "must not be empty"  # no minimum of ours is above 1
    if kind == "too_long":
        unit = "characters" if isinstance(error["input"], str) else "items"
        return f"must have at most {context['max_length']} {unit}"
    return str(error["msg"])


def _path(location: tuple[int | str, ...]) -> str:
    """Where in the request, without FastAPI's name for the part of it; a field may have that very name."""
    return ".".join(str(part) for part in location[1:])

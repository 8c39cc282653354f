"""What handlers ask for: the gateway, the caller, pagination, safe text."""

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, ValidatorFunctionWrapHandler, WrapValidator

from app.api.address import client_address
from app.core import limits
from app.core.errors import FieldError, InvalidRequest, NotFound, Unauthorized
from app.services.gateway import Gateway, running_gateway
from app.services.keys import Caller, Scope, authenticate

__all__ = ["Gateway", "running_gateway"]

_ID = re.compile(r"[a-z]{3}_[0-9A-HJKMNP-TV-Z]{26}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_bearer = HTTPBearer(auto_error=False)


def _storable(text: str) -> str:
    """PostgreSQL stores no NUL, and UTF-8 no lone surrogate."""
    if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("must not contain NUL or unpaired surrogates")
    return text


Text = Annotated[str, AfterValidator(_storable)]


def _utc_time(value: Any, parse: ValidatorFunctionWrapHandler) -> datetime:
    """Pydantic takes numbers too, of seconds or milliseconds as it guesses. A time without a zone is taken as UTC."""
    try:
        if not isinstance(value, str) or not _DATE.match(value):
            raise ValueError(value)
        moment: datetime = parse(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        message = "must be a time as RFC 3339 writes it, of the years 1 to 9999, such as 2026-01-31T12:00:00Z"
        raise ValueError(f"{message} (in a URL + is %2B)") from error


UtcTime = Annotated[datetime, WrapValidator(_utc_time)]


async def get_gateway(request: Request) -> Gateway:
    """Async although it waits for nothing: FastAPI runs a plain function in a thread."""
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(get_gateway)]


async def get_caller(request: Request) -> Caller:
    """Whose key was sent, its request counted. One without a known key counts against the client's address.

    It asks for the request alone: FastAPI solves what a dependency depends on wherever it is named, again each time.
    """
    gateway = await get_gateway(request)
    try:
        caller = await _authenticate(gateway, await _bearer(request))
    except Unauthorized:
        await gateway.throttle.hit(client_address(request, gateway.context.settings.trusted_proxies))
        raise
    await gateway.throttle.hit(caller.key_id)
    gateway.key_use.note(caller.key_id)
    return caller


async def _authenticate(gateway: Gateway, credentials: HTTPAuthorizationCredentials | None) -> Caller:
    if credentials is None or not credentials.credentials:
        raise Unauthorized("send an API key: `Authorization: Bearer <key>`")
    # A header is bytes, which Starlette reads as Latin-1; keys are UTF-8.
    key = credentials.credentials.encode("latin-1").decode(errors="replace")
    async with gateway.context.db.quick_read() as session:
        return await authenticate(session, key)


CallerDep = Annotated[Caller, Depends(get_caller)]


class Needs:
    """A route's or a router's `dependencies=[needs(scope)]`: the caller's key must have the scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request, caller: CallerDep) -> None:
        caller.require(self.scope)
        _check_query(request)


def _check_query(request: Request) -> None:
    """Raises InvalidRequest for a query parameter that the route does not have, or that comes twice.

    A mistyped filter that is ignored finds everything, and the first of everything is somebody else's order.
    """
    if not request.scope["query_string"]:
        return
    known = {field.alias for field in request.scope["route"].dependant.query_params}
    given = Counter(name for name, _ in request.query_params.multi_items())
    unknown = f"is no parameter of this call, which has {', '.join(sorted(known)) or 'none'}"
    problems = [
        FieldError(name[:64], "is given twice" if name in known else unknown)
        for name, count in given.items()
        if name not in known or count > 1
    ]
    if problems:
        raise InvalidRequest("; ".join(f"{each.path}: {each.message}" for each in problems), problems)


def needs(scope: Scope) -> Any:
    """Every route of the API names its scope; a key without it is answered 403."""
    return Depends(Needs(scope))


Limit = Annotated[int, Query(ge=1, le=limits.PAGE_MAX, description="Rows of a page")]
Cursor = Annotated[Text | None, Query(max_length=100, description="`next_cursor` of the page before")]
IdempotencyHeader = Annotated[
    Text | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=limits.IDEMPOTENCY_KEY_CHARS,
        description="A retry with the same key and body gets the first answer",
    ),
]


def known_id(text: str) -> str:
    """An id as we make them, or one that nothing can have: a lookup with it finds nothing."""
    return text if _ID.fullmatch(text) else ""


def path_id(text: str) -> str:
    """The id in a path. Raises NotFound for one that is none of ours."""
    if not _ID.fullmatch(text):
        raise NotFound(f"there is nothing with the id {text[:64]!r}")
    return text


def after_id(cursor: str | None, kind: str) -> str | None:
    """The id in the cursor of a list of `kind`, as its ids begin. Raises InvalidRequest for another list's, too."""
    if cursor is not None and not (_ID.fullmatch(cursor) and cursor.startswith(f"{kind}_")):
        raise InvalidRequest("cursor is not one of ours", [FieldError("cursor", "must be a next_cursor")])
    return cursor


# What a list is narrowed to: from the one time on, and before the other.
After = Annotated[UtcTime | None, Query(description="Made at this time or later")]
Before = Annotated[UtcTime | None, Query(description="Made before this time")]


def page(data: list[Any], next_cursor: str | None) -> dict[str, Any]:
    return {"data": data, "next_cursor": next_cursor}

"""The OpenAPI document: FastAPI's, with each operation's scope, every problem that it answers with, and examples."""

from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import RouteContext, iter_route_contexts

from app.api.deps import Needs
from app.api.errors import CODES, GENERAL, titles
from app.api.examples import EXAMPLES
from app.core.errors import IdempotencyMismatch

DESCRIPTION: Final = """
Money is a decimal string and, beside it, an integer of base units as a string; never a JSON number. Times are RFC 3339
in UTC. Lists take `limit` and `cursor` and answer `{data, next_cursor}`. Errors are RFC 9457 problems: rely on `code`.
Every answer has an `X-Request-ID`: yours (up to 64 of `A-Z a-z 0-9 . _ -`), or ours.
"""
_PROBLEM: Final = {"$ref": "#/components/schemas/Problem"}
_REPLAYED: Final = {
    "Idempotent-Replayed": {"description": "`true` on a retry's answer", "schema": {"const": "true"}},
}
_HEADERS: Final = {
    401: {"WWW-Authenticate": "Which authentication is asked for"},
    429: {"Retry-After": "Seconds to wait"},
    503: {"Retry-After": "Seconds to wait"},
}


def install(app: FastAPI) -> None:
    """Serve this document at /openapi.json; made once, when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = make_document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def make_document(app: FastAPI) -> dict[str, Any]:
    found: dict[str, Any] = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=DESCRIPTION,
        routes=app.routes,
        webhooks=app.webhooks.routes,
    )
    scopes = {route.operation_id or route.unique_id: scope_of(route) for route in api_routes(app)}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            scope = scopes.get(operation["operationId"])
            if scope is not None:
                operation["security"] = [{"HTTPBearer": [scope]}]
                operation["description"] = f"{operation.get('description', '')}\n\nNeeds the scope `{scope}`.".strip()
            _add_problems(path, method, operation)
    found["components"]["securitySchemes"] = {
        "HTTPBearer": {"type": "http", "scheme": "bearer", "description": "An API key"}
    }
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, example in EXAMPLES.items():
        if name in schemas:
            schemas[name]["examples"] = [example]
    return found


def api_routes(app: FastAPI) -> Iterator[RouteContext]:
    """Every route but the document's own and its page's, with what its routers add to it."""
    for route in iter_route_contexts(app.routes):
        if hasattr(route, "dependencies"):
            yield route


def scope_of(route: RouteContext) -> str | None:
    """The scope that a route names by `needs(…)`; None for a public one."""
    for dependency in route.dependencies:
        if isinstance(dependency.dependency, Needs):
            return dependency.dependency.scope
    return None


def _add_problems(path: str, method: str, operation: dict[str, Any]) -> None:
    """Spell out the problems that the route names, and those that every route of its kind can have."""
    codes = {status: set(answer.pop(CODES, ())) for status, answer in operation["responses"].items()}
    if any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ())):
        if "requestBody" in operation:  # without one, all with one key are the same request
            codes.setdefault("422", set()).add(IdempotencyMismatch.code)
        for status, answer in operation["responses"].items():
            if status.startswith("2"):
                answer["headers"] = _REPLAYED
    if path.startswith("/v1/"):
        general = {"401", "403", "422", "429", "500", "503"}
        general |= {"404"} if "{" in path else set()
        general |= {"400", "415"} if "requestBody" in operation else set()
        general |= {"413"} if method != "get" else set()
        for status in general:
            codes.setdefault(status, set()).add(GENERAL[int(status)])
    for status, found in codes.items():
        if found:
            operation["responses"][status] = _problem_answer(int(status), sorted(found))
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _problem_answer(status: int, codes: list[str]) -> dict[str, Any]:
    known = titles()
    examples = {
        code: {
            "value": {
                "type": f"urn:paywatch:problem:{code}",
                "title": known[code],
                "status": status,
                "detail": f"{known[code]}: what exactly, for people",
                "code": code,
                "errors": [],
                "request_id": "req_01JZ0000000000000000000000",
            }
        }
        for code in codes
    }
    schema = {"allOf": [_PROBLEM, {"properties": {"code": {"enum": codes}, "status": {"const": status}}}]}
    answer: dict[str, Any] = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {"application/problem+json": {"schema": schema, "examples": examples}},
    }
    if status in _HEADERS:
        answer["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS[status].items()
        }
    return answer

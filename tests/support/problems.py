"""What every refused request must look like (RFC 9457, DESIGN section 6)."""

from typing import Any

import httpx

FIELDS = {"type", "title", "status", "detail", "code", "errors", "request_id"}


def read_problem(response: httpx.Response, status: int | None = None, code: str | None = None) -> dict[str, Any]:
    """The problem in a response, checked; `status` None means any 4xx."""
    if status is None:
        assert 400 <= response.status_code < 500, response.text
    else:
        assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == FIELDS
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    assert all(body[name] for name in ("type", "code", "title", "detail"))
    assert all(set(each) == {"path", "message"} for each in body["errors"])
    if code is not None:
        assert body["code"] == code, body
    return body

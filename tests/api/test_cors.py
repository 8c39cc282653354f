"""Goal: no web page of another origin can use the API through a visitor's browser."""

import httpx
import pytest


@pytest.mark.parametrize("path", ["/v1/payments", "/openapi.json", "/health/live"])
async def test_no_other_origin_is_let_in(shared_client: httpx.AsyncClient, path: str) -> None:
    origin = {"Origin": "https://elsewhere.example.com"}
    asks_first = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for answer in (
        await shared_client.get(path, headers=origin),
        await shared_client.options(path, headers=asks_first),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.status_code == 405

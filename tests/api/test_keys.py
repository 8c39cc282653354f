"""Goal: a key does what its scopes say, for its merchant alone, until it is revoked."""

import asyncio
import re
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from app.api.openapi import api_routes, scope_of
from app.core import limits
from app.core.clock import utc_now
from app.db.models import ApiKey
from app.services.gateway import Gateway
from app.services.keys import SCOPES
from server import create_app
from tests.support.gateway import API_KEY, add_merchant, client_of, create_payment
from tests.support.problems import read_problem

ROUTES = sorted(
    (method, route.path or "", scope)
    for route in api_routes(create_app())
    for method in route.methods or ()
    if (scope := scope_of(route)) is not None
)
VIEW = {"id", "object", "name", "scopes", "created_at", "last_used_at", "revoked_at"}


async def make(client: httpx.AsyncClient, *scopes: str, name: str = "shop") -> dict[str, Any]:
    response = await client.post("/v1/keys", json={"name": name, "scopes": scopes})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


async def list_keys(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await client.get("/v1/keys")).json()["data"]
    return data


async def test_a_key_is_shown_once_works_and_is_listed_without_its_secret(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    made = await make(client, "payments:write", "payments:read", "payments:read")
    assert set(made) == VIEW | {"key"}
    assert made["scopes"] == ["payments:read", "payments:write"]
    assert made["key"].startswith("pwk_")
    async with client_of(gateway, made["key"]) as theirs:
        payment = await create_payment(theirs)
        assert (await theirs.get(f"/v1/payments/{payment['id']}")).json() == payment
        [event] = (await theirs.get("/v1/events")).json()["data"]
        assert event["cause"] == {"kind": "api_key", "key_id": made["id"]}
    listed = await client.get("/v1/keys")
    assert made["key"] not in listed.text
    assert [key["name"] for key in listed.json()["data"]] == ["shop", "PAYWATCH_API_KEY"]
    assert [set(key) for key in listed.json()["data"]] == [VIEW, VIEW]
    assert listed.json()["data"][1]["scopes"] == ["admin"]


async def test_only_a_hash_of_a_key_is_kept(client: httpx.AsyncClient, gateway: Gateway) -> None:
    made = await make(client, "payments:read")
    async with gateway.context.db.read() as session:
        row = await session.get_one(ApiKey, made["id"])
    assert len(row.key_hash) == 32
    assert made["key"] not in repr(vars(row))


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_does_what_its_scope_says_and_nothing_else(
    client: httpx.AsyncClient, gateway: Gateway, scope: str
) -> None:
    calls = {
        "payments:read": ("GET", "/v1/payments", None),
        "payments:write": ("POST", "/v1/payments", {"chain": "devnet", "token": "USDC", "amount": "1"}),
        "webhooks:write": ("GET", "/v1/webhook_endpoints", None),
        "admin": ("GET", "/v1/keys", None),
    }
    made = await make(client, scope)
    async with client_of(gateway, made["key"]) as theirs:
        for needed, (method, path, body) in calls.items():
            answer = await theirs.request(method, path, json=body)
            if scope in (needed, "admin"):
                assert answer.is_success, (needed, answer.text)
            else:
                assert needed in read_problem(answer, 403, "forbidden")["detail"]


@pytest.mark.parametrize(("method", "path", "needed"), ROUTES, ids=str)
async def test_a_route_is_closed_to_a_key_without_its_scope_and_open_with_it(
    shared_gateway: Gateway, method: str, path: str, needed: str
) -> None:
    other = [scope for scope in SCOPES if scope not in (needed, "admin")]
    async with client_of(shared_gateway) as admin:
        without, with_it = await make(admin, *other), await make(admin, needed)
    nothing = re.sub(r"\{[^}]*\}", "pay_01J00000000000000000000000", path)
    async with client_of(shared_gateway, without["key"]) as theirs:
        problem = read_problem(await theirs.request(method, nothing, json={}), 403, "forbidden")
        assert needed in problem["detail"]
    async with client_of(shared_gateway, with_it["key"]) as theirs:
        assert (await theirs.request(method, nothing, json={})).status_code in (200, 404, 422)


async def test_a_revoked_key_is_refused_at_once(client: httpx.AsyncClient, gateway: Gateway) -> None:
    made = await make(client, "payments:read")
    async with client_of(gateway, made["key"]) as theirs:
        assert (await theirs.get("/v1/payments")).status_code == 200
        for _ in range(2):  # again changes nothing
            assert (await client.delete(f"/v1/keys/{made['id']}")).status_code == 204
        read_problem(await theirs.get("/v1/payments"), 401, "unauthorized")
    assert (await list_keys(client))[0]["revoked_at"] is not None


async def test_a_merchant_has_so_many_working_keys_and_no_more(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KEYS_PER_MERCHANT", 5)
    body = {"name": "shop", "scopes": ["payments:read"]}
    answers = await asyncio.gather(*(client.post("/v1/keys", json=body) for _ in range(130)))
    assert Counter(answer.status_code for answer in answers) == {201: 4, 409: 126}
    newest = (await list_keys(client))[0]
    await client.delete(f"/v1/keys/{newest['id']}")
    await make(client, "payments:read")
    read_problem(await client.post("/v1/keys", json=body), 409, "conflict")


async def test_the_key_of_the_settings_is_revoked_in_the_settings(client: httpx.AsyncClient) -> None:
    [key] = await list_keys(client)
    read_problem(await client.delete(f"/v1/keys/{key['id']}"), 409, "conflict")
    named = {"name": "PAYWATCH_API_KEY", "scopes": ["admin"]}  # nor does another pretend to be it
    read_problem(await client.post("/v1/keys", json=named), 422, "validation_error")
    assert (await client.get("/v1/keys")).status_code == 200


async def test_another_merchants_keys_are_not_there(client: httpx.AsyncClient, gateway: Gateway) -> None:
    made = await make(client, "payments:read")
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as another:
        assert [key["name"] for key in await list_keys(another)] == ["test"]
        read_problem(await another.delete(f"/v1/keys/{made['id']}"), 404, "not_found")
    assert (await list_keys(client))[0]["revoked_at"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"name": "", "scopes": ["admin"]},
        {"name": "x" * 101, "scopes": ["admin"]},
        {"name": "x\x00", "scopes": ["admin"]},
        {"name": "x"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["payments:delete"]},
        {"name": "x", "scopes": "admin"},
        {"name": "x", "scopes": ["admin"], "key": "pwk_mine"},
    ],
    ids=str,
)
async def test_a_wrong_key_is_refused(shared_client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    read_problem(await shared_client.post("/v1/keys", json=body), 422, "validation_error")


async def last_used(gateway: Gateway, key_id: str) -> datetime | None:
    async with gateway.context.db.read() as session:
        return (await session.get_one(ApiKey, key_id)).last_used_at


async def test_a_keys_last_use_is_written_once_a_minute(client: httpx.AsyncClient, gateway: Gateway) -> None:
    [key] = await list_keys(client)
    for _ in range(3):
        await client.get("/v1/payments")
    await gateway.key_use.close()
    first = await last_used(gateway, key["id"])
    assert first is not None
    assert abs(utc_now() - first) < timedelta(minutes=5)
    async with gateway.context.db.write() as session:
        (await session.get_one(ApiKey, key["id"])).last_used_at = first - timedelta(days=1)
    await client.get("/v1/payments")
    await gateway.key_use.close()
    assert await last_used(gateway, key["id"]) == first - timedelta(days=1)  # this process wrote within the minute

    another = type(gateway.key_use)(gateway.context.db)
    another.note(key["id"])
    await another.close()
    again = await last_used(gateway, key["id"])
    assert again is not None
    assert again >= first


async def test_a_request_does_not_wait_for_the_note_of_its_use(client: httpx.AsyncClient, gateway: Gateway) -> None:
    """The writer's place is taken: a request that only reads is answered, and the note is made afterwards."""
    await gateway.key_use.close()
    [key] = await list_keys(client)
    await gateway.key_use.close()
    async with gateway.context.db.write() as session:
        (await session.get_one(ApiKey, key["id"])).last_used_at = None
    async with gateway.context.db.write() as session:
        await session.get_one(ApiKey, key["id"], with_for_update=True)
        gateway.key_use._noted.clear()
        assert (await client.get("/v1/payments")).status_code == 200
        assert len(gateway.key_use._writing) == 1
    await asyncio.wait_for(gateway.key_use.close(), 30)
    assert await last_used(gateway, key["id"]) is not None


async def test_the_first_key_has_every_scope(gateway: Gateway) -> None:
    async with client_of(gateway, API_KEY) as client:
        made = await make(client, *SCOPES)
    assert made["scopes"] == sorted(SCOPES)

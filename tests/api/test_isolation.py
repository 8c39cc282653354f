"""Goal: by no call can one merchant see or touch what is another's. Every route is walked: a new one is walked too."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from app.api.openapi import api_routes, scope_of
from app.core.evm import NATIVE_ASSET
from app.db.base import Base
from app.db.models import Merchant, WebhookDelivery
from app.services.gateway import Gateway
from server import create_app
from tests.api.test_sweeps import add_sweep
from tests.support.gateway import add_merchant, client_of, create_payment

STRANGER = "pwk_of_a_stranger"
ROUTES = sorted(
    (method, route.path or "")
    for route in api_routes(create_app())
    for method in route.methods or ()
    if scope_of(route) is not None
)
# What a route with a body is sent; one that is missing here fails, as one with an unknown id in its path does.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/payments"): {"chain": "devnet", "token": "USDC", "amount": "1", "order_id": "A-1"},
    ("POST", "/v1/keys"): {"name": "x", "scopes": ["payments:read"]},
    ("POST", "/v1/webhook_endpoints"): {"url": "http://127.0.0.1:9/theirs"},
    ("PATCH", "/v1/webhook_endpoints/{endpoint_id}"): {"url": "http://127.0.0.1:9/theirs"},
    ("PATCH", "/v1/merchant"): {"tolerance": "1%"},
    ("POST", "/v1/webhook_deliveries/replay"): {"since": "2020-01-01T00:00:00Z"},
}
SHARED = {"/v1/chains"}  # the gateway's, and the same for all


async def belongings(client: httpx.AsyncClient, gateway: Gateway) -> dict[str, str]:
    """One of each thing that a merchant has, by its parameter's name in paths."""
    payment = await create_payment(client, order_id="A-1", webhook_url="http://127.0.0.1:9/mine")
    endpoint = (await client.post("/v1/webhook_endpoints", json={"url": "http://127.0.0.1:9/mine"})).json()
    await create_payment(client, order_id="A-2")  # told to that endpoint
    async with gateway.context.db.write() as session:  # to an endpoint and to a payment's own URL: a stranger's replay
        await session.execute(update(WebhookDelivery).values(status="dead", next_attempt_at=None))
    key = (await client.post("/v1/keys", json={"name": "mine", "scopes": ["admin"]})).json()
    delivery = (await client.get("/v1/webhook_deliveries")).json()["data"][0]
    event = (await client.get("/v1/events")).json()["data"][0]
    return {
        "payment_id": payment["id"],
        "endpoint_id": endpoint["id"],
        "key_id": key["id"],
        "delivery_id": delivery["id"],
        "event_id": event["id"],
        "sweep_id": await add_sweep(gateway, 1, NATIVE_ASSET, payment),
    }


async def rows_of(gateway: Gateway, merchant_id: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that is stored for a merchant, but when its keys were last used."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    async with gateway.context.db.read() as session:
        for table in Base.metadata.sorted_tables:
            owner = table.c.id if table.name == "merchants" else table.c.get("merchant_id")
            if owner is None:
                continue
            columns = [column for column in table.c if column.name != "last_used_at"]
            rows = await session.execute(select(*columns).where(owner == merchant_id).order_by(*table.primary_key))
            found[table.name] = [tuple(row) for row in rows]
    return found


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda part: part)
async def test_a_route_shows_and_touches_nothing_of_another_merchant(
    client: httpx.AsyncClient, gateway: Gateway, method: str, path: str
) -> None:
    mine = await belongings(client, gateway)
    stranger_id = await add_merchant(gateway, STRANGER)
    async with gateway.context.db.read() as session:
        [owner_id] = await session.scalars(select(Merchant.id).where(Merchant.id != stranger_id))
    before = await rows_of(gateway, owner_id)
    assert min(len(before[name]) for name in ("payments", "events", "webhook_endpoints", "webhook_deliveries")) >= 1

    filters = {"order_id": "A-1", "payment_id": mine["payment_id"], "endpoint_id": mine["endpoint_id"]}
    cursors = [{}, filters, *({"cursor": each} for each in (*mine.values(), "0"))]
    async with client_of(gateway, STRANGER) as stranger:
        for query in cursors if method == "GET" else [{}]:
            answer = await stranger.request(method, path.format(**mine), params=query, json=BODIES.get((method, path)))
            if not (query and answer.status_code == 422):  # a cursor that is none
                expected = (404,) if "{" in path else (200, 201)
                assert answer.status_code in expected, (query, answer.text)
            if path not in SHARED and method == "GET":
                assert_says_nothing_of(answer, mine, owner_id, query)
    await gateway.key_use.close()
    assert await rows_of(gateway, owner_id) == before


def assert_says_nothing_of(answer: httpx.Response, mine: dict[str, str], owner_id: str, query: dict[str, str]) -> None:
    """Ids that were not in the question, and what only the owner knows."""
    asked = {*query.values(), *(part for part in answer.request.url.path.split("/"))}
    for secret in {*mine.values(), owner_id, "127.0.0.1:9/mine", "A-2"} - asked:
        assert secret not in answer.text, (secret, answer.text)
    if answer.is_success and "data" in answer.json():
        names = {row.get("name") for row in answer.json()["data"]}
        assert answer.json()["data"] == [] or names == {"test"}  # the stranger's own key


async def test_what_would_be_missed_is_noticed(gateway: Gateway, client: httpx.AsyncClient) -> None:
    """The owner's own answers do say it: the test above can fail."""
    mine = await belongings(client, gateway)
    with pytest.raises(AssertionError):
        assert_says_nothing_of(await client.get("/v1/payments"), mine, "mer_", {})

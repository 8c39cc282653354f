"""Goal: a merchant adds, changes and removes receivers, learns each secret once, and reads what was sent to them."""

import asyncio
from typing import Any

import httpx

from app.core import limits
from app.services.gateway import Gateway
from tests.support.gateway import Devnet, add_merchant, client_of, create_payment, open_gateway, row_counts
from tests.support.problems import read_problem

PATH = "/v1/webhook_endpoints"
URL = "http://127.0.0.1:9/hooks"
DELIVERY_FIELDS = {
    *("id", "event_id", "event_type", "payment_id", "endpoint_id", "url", "status", "attempt_count"),
    *("next_attempt_at", "delivered_at", "created_at", "attempts"),
}


async def add_endpoint(client: httpx.AsyncClient, **changed: Any) -> dict[str, Any]:
    response = await client.post(PATH, json={"url": URL} | changed)
    assert response.status_code == 201, response.text
    endpoint: dict[str, Any] = response.json()
    return endpoint


async def deliveries(client: httpx.AsyncClient, **query: str) -> list[dict[str, Any]]:
    response = await client.get("/v1/webhook_deliveries", params=query)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_the_secret_is_shown_at_creation_and_never_again(client: httpx.AsyncClient, gateway: Gateway) -> None:
    created = await add_endpoint(client, event_types=["payment.settled", "payment.confirmed", "payment.confirmed"])
    secret = created.pop("secret")
    assert secret.startswith("whsec_")
    assert created["id"].startswith("whe_")
    assert created["event_types"] == ["payment.confirmed", "payment.settled"]
    path = f"{PATH}/{created['id']}"
    changed = await client.patch(path, json={"event_types": None})
    for response in (await client.get(path), await client.get(PATH), changed, await client.get("/v1/events")):
        assert response.status_code == 200
        assert secret.removeprefix("whsec_") not in response.text
    async with gateway.context.db.read() as session:
        rows = (await session.connection()).exec_driver_sql("SELECT secret FROM webhook_endpoints")
        [stored] = (await rows).one()
    assert secret.encode() not in bytes(stored)


async def test_two_endpoints_have_secrets_of_their_own(client: httpx.AsyncClient) -> None:
    assert (await add_endpoint(client))["secret"] != (await add_endpoint(client))["secret"]


async def test_an_endpoint_can_be_read_changed_and_removed(client: httpx.AsyncClient) -> None:
    created = await add_endpoint(client)
    del created["secret"]
    path = f"{PATH}/{created['id']}"
    assert (await client.get(path)).json() == created
    assert created["event_types"] is None

    narrowed = await client.patch(path, json={"event_types": ["payment.confirmed"]})
    assert narrowed.json() == created | {"event_types": ["payment.confirmed"]}
    moved = await client.patch(path, json={"url": URL + "/2"})
    assert moved.json() == narrowed.json() | {"url": URL + "/2"}
    assert (await client.patch(path, json={"event_types": None})).json() == created | {"url": URL + "/2"}
    assert (await client.patch(path, json={})).json() == created | {"url": URL + "/2"}

    removed = await client.delete(path)
    assert (removed.status_code, removed.content) == (204, b"")
    for response in (await client.get(path), await client.patch(path, json={}), await client.delete(path)):
        read_problem(response, 404, "not_found")
    assert (await client.get(PATH)).json() == {"data": [], "next_cursor": None}


async def test_the_list_is_walked_page_by_page(client: httpx.AsyncClient) -> None:
    made = {(await add_endpoint(client))["id"] for _ in range(5)}
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await client.get(PATH, params=query)).json()
        seen += [endpoint["id"] for endpoint in page["data"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert sorted(seen) == sorted(made)


async def test_a_merchant_has_so_many_endpoints_and_no_more(client: httpx.AsyncClient) -> None:
    for _ in range(limits.ENDPOINTS_PER_MERCHANT):
        last = await add_endpoint(client)
    read_problem(await client.post(PATH, json={"url": URL}), 409, "conflict")
    await client.delete(f"{PATH}/{last['id']}")
    await add_endpoint(client)


async def test_another_merchants_endpoints_and_deliveries_are_not_there(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    endpoint = await add_endpoint(client)
    await create_payment(client)
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as another:
        path = f"{PATH}/{endpoint['id']}"
        for response in (
            await another.get(path),
            await another.patch(path, json={"url": URL + "/mine"}),
            await another.delete(path),
        ):
            read_problem(response, 404, "not_found")
        assert (await another.get(PATH)).json()["data"] == []
        assert await deliveries(another) == []
        assert await deliveries(another, endpoint_id=endpoint["id"]) == []
        await create_payment(another)  # and their events do not reach the first merchant
    assert [endpoint["url"] for endpoint in (await client.get(PATH)).json()["data"]] == [URL]
    assert len(await deliveries(client)) == 1


async def test_each_event_goes_to_every_endpoint_that_wants_it_and_to_the_payments_own_url(
    client: httpx.AsyncClient,
) -> None:
    everything = await add_endpoint(client)
    cancellations = await add_endpoint(client, event_types=["payment.cancelled"])
    removed = await add_endpoint(client)
    await client.delete(f"{PATH}/{removed['id']}")
    payment = await create_payment(client, webhook_url=URL + "/own")
    await client.post(f"/v1/payments/{payment['id']}/cancel")
    found = await deliveries(client)
    assert {(each["event_type"], each["endpoint_id"]) for each in found} == {
        ("payment.created", everything["id"]),
        ("payment.created", None),
        ("payment.cancelled", everything["id"]),
        ("payment.cancelled", cancellations["id"]),
        ("payment.cancelled", None),
    }
    assert len(found) == 5
    events = {each["id"] for each in (await client.get("/v1/events")).json()["data"]}
    for each in found:
        assert set(each) - {"object"} == DELIVERY_FIELDS
        assert each["event_id"] in events
        assert each["url"] == (URL if each["endpoint_id"] else URL + "/own")
        assert (each["status"], each["attempt_count"], each["attempts"]) == ("pending", 0, [])
    assert {each["id"] for each in await deliveries(client, endpoint_id=cancellations["id"])} == {
        each["id"] for each in found if each["endpoint_id"] == cancellations["id"]
    }
    assert len(await deliveries(client, payment_id=payment["id"], status="pending")) == 5
    assert await deliveries(client, status="dead") == []
    assert await deliveries(client, payment_id="%00") == []


LEADS_INSIDE = [
    "http://127.0.0.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "https://0177.0.0.1/",
    "https://localhost/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data",
    "https://100.64.0.1/",
    "https://[fd00::1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "http://93.184.215.14/",
]


async def test_a_url_that_leads_inside_is_refused_wherever_it_can_be_given(
    db_url: str, redis_url: str, devnet: Devnet
) -> None:
    async with (
        open_gateway(db_url, redis_url, devnet.chain(), webhook_allow_networks="") as gateway,
        client_of(gateway) as client,
    ):
        endpoint = await add_endpoint(client, url="https://93.184.215.14/hooks")
        path = f"{PATH}/{endpoint['id']}"
        before = await row_counts(gateway.context.db)
        for url in LEADS_INSIDE:
            payment = {"chain": "devnet", "token": "USDC", "amount": "1", "webhook_url": url}
            read_problem(await client.post(PATH, json={"url": url}), 422, "blocked_url")
            read_problem(await client.patch(path, json={"url": url}), 422, "blocked_url")
            read_problem(await client.post("/v1/payments", json=payment), 422, "blocked_url")
        assert await row_counts(gateway.context.db) == before
        assert (await client.get(path)).json()["url"] == "https://93.184.215.14/hooks"


async def test_events_of_payments_made_at_once_all_get_their_deliveries(client: httpx.AsyncClient) -> None:
    await add_endpoint(client)
    await asyncio.gather(*(create_payment(client) for _ in range(20)))
    assert len(await deliveries(client, limit="100")) == 20

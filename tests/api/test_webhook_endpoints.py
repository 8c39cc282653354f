"""Goal: a merchant adds, changes and removes receivers, learns each secret once, and reads what was sent to them."""

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, update

from app.core import limits
from app.core.clock import utc_now
from app.core.netguard import IPAddress, NetGuard, guarded_client
from app.db.models import WebhookDelivery, WebhookReceiver
from app.services.gateway import Gateway
from tests.support.gateway import Devnet, add_merchant, client_of, create_payment, open_gateway, row_counts
from tests.support.outbox import send_all
from tests.support.problems import read_problem
from tests.support.receiver import Receiver, Reply

PATH = "/v1/webhook_endpoints"
URL = "http://127.0.0.1:9/hooks"
DELIVERY_FIELDS = {
    *("id", "event_id", "event_type", "payment_id", "endpoint_id", "url", "status", "attempt_count"),
    *("next_attempt_at", "delivered_at", "created_at", "attempts", "dead_reason"),
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


async def test_nor_has_it_more_when_they_are_made_at_once(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENDPOINTS_PER_MERCHANT", 5)
    answers = await asyncio.gather(*(client.post(PATH, json={"url": URL}) for _ in range(130)))
    assert Counter(answer.status_code for answer in answers) == {201: 5, 409: 125}
    assert len((await client.get(PATH)).json()["data"]) == 5


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
            for answer, field in (
                (await client.post(PATH, json={"url": url}), "url"),
                (await client.patch(path, json={"url": url}), "url"),
                (await client.post("/v1/payments", json=payment), "webhook_url"),
            ):
                problem = read_problem(answer, 422, "blocked_url")
                assert problem["errors"] == [{"path": field, "message": problem["detail"]}]
        assert await row_counts(gateway.context.db) == before
        assert (await client.get(path)).json()["url"] == "https://93.184.215.14/hooks"


@pytest.mark.parametrize("addresses", [None, ["169.254.169.254"]], ids=["away", "leads inside"])
async def test_a_retry_gets_its_answer_although_the_name_is_refused_by_now(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, addresses: list[str] | None
) -> None:
    headers, body = {"Idempotency-Key": "k"}, {"url": "http://localhost:9/hooks"}
    first = await client.post(PATH, json=body, headers=headers)

    async def look_up(_guard: NetGuard, _host: str) -> list[IPAddress]:
        if addresses is None:
            raise OSError("Temporary failure in name resolution")
        return [ip_address(address) for address in addresses]

    monkeypatch.setattr(NetGuard, "_look_up", look_up)
    again = await client.post(PATH, json=body, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert len((await client.get(PATH)).json()["data"]) == 1
    read_problem(await client.post(PATH, json=body), 422, "blocked_url")
    read_problem(await client.post(PATH, json=body, headers={"Idempotency-Key": "other"}), 422, "blocked_url")
    changed = body | {"event_types": ["payment.settled"]}
    read_problem(await client.post(PATH, json=changed, headers=headers), 422, "idempotency_key_reused")


async def test_events_of_payments_made_at_once_all_get_their_deliveries(client: httpx.AsyncClient) -> None:
    await add_endpoint(client)
    await asyncio.gather(*(create_payment(client) for _ in range(20)))
    assert len(await deliveries(client, limit="100")) == 20


# --- tests and replays


async def send(gateway: Gateway) -> int:
    async with guarded_client(gateway.context.guard) as http:
        return await send_all(gateway.context, http)


async def dead(
    gateway: Gateway, client: httpx.AsyncClient, receiver: Receiver, count: int, **payment: Any
) -> list[str]:
    """So many deliveries that were tried once and have died; their ids, oldest first."""
    before = {each["id"] for each in await deliveries(client, limit="100")}
    receiver.answer(*[500] * count)
    for _ in range(count):
        await create_payment(client, **payment)
    await send(gateway)
    made = sorted({each["id"] for each in await deliveries(client, limit="100")} - before)
    async with gateway.context.db.write() as session:
        await session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id.in_(made))
            .values(status="dead", dead_reason="attempts_used_up", next_attempt_at=None)
        )
        await session.execute(delete(WebhookReceiver))
    receiver.requests.clear()
    return made


async def test_a_test_event_is_sent_at_once_and_its_answer_told(
    client: httpx.AsyncClient, gateway: Gateway, receiver: Receiver
) -> None:
    created = await add_endpoint(client, url=receiver.url, event_types=["payment.settled"])
    receiver.secret = created.pop("secret")
    receiver.answer(Reply(200, body=b"hello"), Reply(500, body=b"broken"))
    before = await row_counts(gateway.context.db)
    path = f"{PATH}/{created['id']}/test"
    good = (await client.post(path)).json()
    [request] = receiver.requests
    assert request.verified, request.problem
    assert request.payload == {
        "type": "webhook_endpoint.test",
        "timestamp": request.payload["timestamp"],
        "data": created,
    }
    assert good["webhook_id"] == request.webhook_id
    assert (good["type"], good["delivered"], good["status_code"]) == ("webhook_endpoint.test", True, 200)
    assert (good["error"], good["response_body"]) == (None, "hello")
    bad = (await client.post(path)).json()
    assert (bad["delivered"], bad["status_code"], bad["error"]) == (False, 500, "http_500")
    assert bad["response_body"] == "broken"
    await receiver.stop()
    away = (await client.post(path)).json()
    assert (away["delivered"], away["status_code"], away["error"]) == (False, None, "connect_failed")
    assert await row_counts(gateway.context.db) == before  # it is in no log, and not held against the endpoint


async def test_a_disabled_endpoint_can_be_tested_before_it_is_enabled(
    client: httpx.AsyncClient, receiver: Receiver
) -> None:
    created = await add_endpoint(client, url=receiver.url)
    path = f"{PATH}/{created['id']}"
    assert (await client.patch(path, json={"enabled": False})).json()["status"] == "disabled"
    assert (await client.post(f"{path}/test")).json()["delivered"] is True
    assert (await client.get(path)).json()["status"] == "disabled"


@pytest.mark.parametrize("status", ["delivered", "dead", "pending"])
async def test_a_replay_is_a_manual_attempt_under_the_same_id(
    client: httpx.AsyncClient, gateway: Gateway, receiver: Receiver, status: str
) -> None:
    await add_endpoint(client, url=receiver.url)
    receiver.answer(200 if status == "delivered" else 500)
    await create_payment(client)
    await send(gateway)
    if status == "dead":
        async with gateway.context.db.write() as session:
            await session.execute(update(WebhookDelivery).values(status="dead", next_attempt_at=None))
    [before] = await deliveries(client, status=status)
    response = await client.post(f"/v1/webhook_deliveries/{before['id']}/replay")
    assert response.status_code == 200, response.text
    answered = response.json()
    assert (answered["id"], answered["status"], answered["attempt_count"]) == (before["id"], "pending", 1)
    assert answered["next_attempt_at"]
    assert await send(gateway) == 1
    [after] = await deliveries(client)
    assert (after["status"], after["attempt_count"]) == ("delivered", 2)
    assert [attempt["manual"] for attempt in after["attempts"]] == [False, True]
    assert [request.webhook_id for request in receiver.requests] == [before["event_id"]] * 2
    assert receiver.requests[0].body == receiver.requests[1].body
    assert await send(gateway) == 0


async def test_a_replay_that_fails_begins_the_schedule_anew(
    client: httpx.AsyncClient, gateway: Gateway, receiver: Receiver
) -> None:
    await add_endpoint(client, url=receiver.url)
    [delivery] = await dead(gateway, client, receiver, 1)
    receiver.answer(then=500)
    await client.post(f"/v1/webhook_deliveries/{delivery}/replay")
    assert await send(gateway) == 1
    [shown] = await deliveries(client)
    assert (shown["status"], shown["dead_reason"]) == ("pending", None)
    first, second = shown["attempts"]
    assert (first["manual"], second["manual"]) == (False, True)
    pause = datetime.fromisoformat(second["next_attempt_at"]) - datetime.fromisoformat(second["at"])
    assert 3 < pause.total_seconds() < 10  # the first of the schedule
    async with gateway.context.db.write() as session:
        await session.execute(update(WebhookDelivery).values(next_attempt_at=utc_now()))
    assert await send(gateway) == 1
    [shown] = await deliveries(client)
    assert [attempt["manual"] for attempt in shown["attempts"]] == [False, True, False]


async def test_what_cannot_be_replayed_is_a_clear_conflict(
    client: httpx.AsyncClient, gateway: Gateway, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, url=receiver.url)
    [delivery] = await dead(gateway, client, receiver, 1)
    path, replay = f"{PATH}/{endpoint['id']}", f"/v1/webhook_deliveries/{delivery}/replay"
    bulk = {"since": "2020-01-01T00:00:00Z", "endpoint_id": endpoint["id"]}
    await client.patch(path, json={"enabled": False})
    read_problem(await client.post(replay), 409, "conflict")
    read_problem(await client.post("/v1/webhook_deliveries/replay", json=bulk), 409, "conflict")
    await client.patch(path, json={"enabled": True})
    async with gateway.context.db.write() as session:
        await session.execute(
            update(WebhookDelivery).values(status="pending", leased_until=utc_now() + timedelta(seconds=20))
        )
    read_problem(await client.post(replay), 409, "conflict")  # it is being sent
    await client.delete(path)
    read_problem(await client.post(replay), 409, "conflict")
    read_problem(await client.post("/v1/webhook_deliveries/replay", json=bulk), 404, "not_found")
    assert (await client.post("/v1/webhook_deliveries/replay", json={"since": bulk["since"]})).json() == {"replayed": 0}
    assert await send(gateway) == 0
    assert receiver.requests == []


async def test_all_dead_ones_since_a_time_are_replayed_oldest_first_with_a_bound(
    client: httpx.AsyncClient, gateway: Gateway, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_REPLAY_ROWS", 3)
    endpoint = await add_endpoint(client, url=receiver.url)
    early = await dead(gateway, client, receiver, 2)
    since = utc_now().isoformat()
    late = await dead(gateway, client, receiver, 4)
    own = await dead(gateway, client, receiver, 1, webhook_url=receiver.url_for("/own"))
    assert len(own) == 2  # the endpoint's and the payment's own
    path = "/v1/webhook_deliveries/replay"
    only = {"since": since, "endpoint_id": endpoint["id"]}

    first = await client.post(path, json=only, headers={"Idempotency-Key": "replay-1"})
    assert (first.status_code, first.json()) == (200, {"replayed": 3})
    again = await client.post(path, json=only, headers={"Idempotency-Key": "replay-1"})
    assert (again.json(), again.headers["idempotent-replayed"]) == ({"replayed": 3}, "true")
    assert {each["id"] for each in await deliveries(client, status="pending")} == set(late[:3])
    assert (await client.post(path, json=only)).json() == {"replayed": 2}
    assert (await client.post(path, json=only)).json() == {"replayed": 0}
    assert (await client.post(path, json={"since": since})).json() == {"replayed": 1}  # the payment's own
    assert await send(gateway) == 6
    assert {each["id"] for each in await deliveries(client, status="dead")} == set(early)
    manual = [each["attempts"][-1]["manual"] for each in await deliveries(client, status="delivered")]
    assert manual == [True] * 6
    naive = "2020-01-01T00:00:00"  # is UTC
    assert (await client.post(path, json={"since": naive})).json() == {"replayed": 2}


async def test_a_replay_goes_to_the_endpoints_url_of_today(
    client: httpx.AsyncClient, gateway: Gateway, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, url=receiver.url_for("/old"))
    [delivery] = await dead(gateway, client, receiver, 1)
    await client.patch(f"{PATH}/{endpoint['id']}", json={"url": receiver.url_for("/new")})
    await client.post(f"/v1/webhook_deliveries/{delivery}/replay")
    await send(gateway)
    assert [request.path for request in receiver.requests] == ["/new"]


async def test_another_merchants_endpoints_cannot_be_rotated_tested_or_replayed(
    client: httpx.AsyncClient, gateway: Gateway, receiver: Receiver
) -> None:
    endpoint = await add_endpoint(client, url=receiver.url)
    [delivery] = await dead(gateway, client, receiver, 1)
    await add_merchant(gateway, "pwk_of_another")
    bulk = {"since": "2020-01-01T00:00:00Z"}
    async with client_of(gateway, "pwk_of_another") as another:
        for path in (
            f"{PATH}/{endpoint['id']}/rotate_secret",
            f"{PATH}/{endpoint['id']}/test",
            f"/v1/webhook_deliveries/{delivery}/replay",
            f"/v1/webhook_deliveries/{delivery.lower()}/replay",
        ):
            read_problem(await another.post(path), 404, "not_found")
        named = bulk | {"endpoint_id": endpoint["id"]}
        read_problem(await another.post("/v1/webhook_deliveries/replay", json=named), 404, "not_found")
        assert (await another.post("/v1/webhook_deliveries/replay", json=bulk)).json() == {"replayed": 0}
    assert receiver.requests == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"since": "yesterday"},
        {"since": None},
        {"since": 1_700_000_000},
        {"since": "1700000000"},
        {"since": "0001-01-01T00:00:00+14:00"},
        {"since": "2020-01-01", "all": 1},
    ],
)
async def test_a_bulk_replay_needs_a_time(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    read_problem(await client.post("/v1/webhook_deliveries/replay", json=body), 422, "validation_error")

"""Goal: a storefront gets exactly the payment it asked for, finds it again, and sees nobody else's."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from app.db.models import Payment
from app.services.gateway import Gateway
from tests.support.gateway import PUBLIC_URL, Devnet, add_merchant, client_of, create_payment, row_counts
from tests.support.problems import read_problem

FIELDS = {
    *("id", "object", "status", "flags", "version", "chain", "chain_id", "token", "token_address", "decimals"),
    *("amount", "amount_units", "amount_received", "amount_received_units", "amount_due", "address", "payment_uri"),
    *("checkout_url", "confirmations_required", "detected_in_block", "transactions", "options", "order_id", "metadata"),
    *("description", "redirect_url", "created_at", "expires_at", "detected_at", "confirmed_at", "settled_at"),
}
EXTRA_FIELDS = {"webhook_url", "sweeps", "price"}
OPTION_FIELDS = {
    *("chain", "chain_id", "token", "token_address", "decimals", "amount", "amount_units", "amount_received"),
    *("amount_received_units", "amount_due", "confirmations_required", "payment_uri"),
}
RATE_FIELDS = {"rate", "rate_source", "rate_at"}
EVENT_FIELDS = {"id", "type", "payment_id", "version", "created_at", "cause", "data"}
A_DAY = timedelta(days=1)


@pytest.fixture
async def another(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A second merchant's client."""
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as http:
        yield http


async def read_list(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    response = await client.get("/v1/payments", params=query)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_a_token_payment_has_every_field_of_the_contract(client: httpx.AsyncClient, devnet: Devnet) -> None:
    payment = await create_payment(
        client,
        amount="25.500",
        order_id="A-1001",
        description="Two mugs ☕",
        metadata={"cart": [1, {"sku": "☕"}], "ratio": 0.5, "none": None},
        redirect_url="https://shop.example.com/thanks?order=A-1001",
        webhook_url="http://127.0.0.1:9/hooks",
        confirmations_required=7,
        tolerance="0.5%",
        expires_in=600,
    )
    address = payment["address"]
    uri = f"ethereum:{devnet.usdc}@31337/transfer?address={address}&uint256=25500000"
    assert set(payment) == FIELDS | EXTRA_FIELDS
    assert re.fullmatch(r"pay_[0-9A-HJKMNP-TV-Z]{26}", payment["id"])
    created_at = datetime.fromisoformat(payment["created_at"])
    assert datetime.fromisoformat(payment["expires_at"]) - created_at == timedelta(seconds=600)
    assert abs(datetime.now(UTC) - created_at) < timedelta(minutes=1)
    assert payment == payment | {
        "object": "payment",
        "status": "pending",
        "flags": [],
        "version": 1,
        "chain": "devnet",
        "chain_id": 31337,
        "token": "USDC",
        "token_address": devnet.usdc,
        "decimals": 6,
        "amount": "25.5",
        "amount_units": "25500000",
        "amount_received": "0",
        "amount_received_units": "0",
        "amount_due": "25.5",
        "payment_uri": uri,
        "checkout_url": f"{PUBLIC_URL}/pay/{payment['id']}",
        "confirmations_required": 7,
        "detected_in_block": None,
        "transactions": [],
        "sweeps": [],
        "order_id": "A-1001",
        "metadata": {"cart": [1, {"sku": "☕"}], "ratio": 0.5, "none": None},
        "description": "Two mugs ☕",
        "redirect_url": "https://shop.example.com/thanks?order=A-1001",
        "webhook_url": "http://127.0.0.1:9/hooks",
        "detected_at": None,
        "confirmed_at": None,
        "settled_at": None,
    }
    [option] = payment["options"]
    assert set(option) == OPTION_FIELDS | RATE_FIELDS
    assert option == {name: payment[name] for name in OPTION_FIELDS} | dict.fromkeys(RATE_FIELDS)
    assert payment["price"] is None


async def test_a_native_payment_has_no_token_address_and_a_native_uri(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client, token="eth", amount="0.000000000000000001")
    assert payment["token"] == "ETH"
    assert payment["token_address"] is None
    assert payment["decimals"] == 18
    assert payment["amount_units"] == "1"
    assert payment["payment_uri"] == f"ethereum:{payment['address']}@31337?value=1"


async def test_a_token_may_be_named_by_its_contract(client: httpx.AsyncClient, devnet: Devnet) -> None:
    for name in (devnet.usdc, devnet.usdc.lower(), "usdc"):
        assert (await create_payment(client, token=name))["token_address"] == devnet.usdc


async def test_what_is_left_out_has_the_documented_default(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)
    lasts = datetime.fromisoformat(payment["expires_at"]) - datetime.fromisoformat(payment["created_at"])
    assert lasts == timedelta(hours=1)
    assert payment["confirmations_required"] == 3
    assert payment["metadata"] == {}
    assert [payment[name] for name in ("order_id", "description", "redirect_url", "webhook_url")] == [None] * 4


async def test_an_amount_is_exact_at_any_size(client: httpx.AsyncClient) -> None:
    largest = str(2**256 - 1)
    for amount, units in [
        (largest[:-6] + "." + largest[-6:], largest),
        ("0.000001", "1"),
        ("000123", "123000000"),
        ("1." + "0" * 6, "1000000"),
    ]:
        payment = await create_payment(client, amount=amount)
        assert payment["amount_units"] == payment["options"][0]["amount_units"] == units
        assert (await client.get(f"/v1/payments/{payment['id']}")).json() == payment


async def test_what_is_just_within_bounds_is_taken(client: httpx.AsyncClient) -> None:
    for changed in [
        {"expires_in": 60},
        {"expires_in": 2_592_000},
        {"order_id": "x" * 128},
        {"description": "☕" * 500},
        {"confirmations_required": 1},
        {"confirmations_required": 10_000},
        {"metadata": {"k": "x" * (4096 - len('{"k": ""}'))}},
        {"metadata": {"k": "\U0001f600" * ((4096 - len('{"k": ""}')) // 4)}},
        {"metadata": nested_metadata(32)},
        {"tolerance": "24.999999"},
        {"tolerance": "99.9999%"},
        {"redirect_url": "http://shop.example.com/" + "x" * (2000 - 24)},
    ]:
        payment = await create_payment(client, **changed)
        assert (await client.get(f"/v1/payments/{payment['id']}")).json() == payment
        [(name, value)] = changed.items()
        if name == "expires_in":
            lasts = datetime.fromisoformat(payment["expires_at"]) - datetime.fromisoformat(payment["created_at"])
            assert lasts == timedelta(seconds=value)
        elif name != "tolerance":
            assert payment[name] == value


def nested_metadata(levels: int) -> dict[str, Any]:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"k": value}
    metadata: dict[str, Any] = value
    return metadata


async def test_a_payment_reads_the_same_as_it_was_created(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client, order_id="A-1", metadata={"z": 1, "a": [True, None, "é"]})
    response = await client.get(f"/v1/payments/{payment['id']}")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == payment
    assert await read_list(client) == [payment]


async def test_creation_is_an_event_with_its_cause(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)
    response = await client.get(f"/v1/payments/{payment['id']}/events")
    [event] = response.json()["data"]
    assert set(event) == EVENT_FIELDS
    assert event["id"].startswith("evt_")
    assert (event["type"], event["payment_id"], event["version"]) == ("payment.created", payment["id"], 1)
    assert event["cause"]["kind"] == "api_key"
    assert event["cause"]["key_id"].startswith("key_")
    assert event["data"] == payment
    assert (await client.get("/v1/events")).json()["data"] == [event]


# --- cancelling


async def test_a_pending_payment_can_be_cancelled_once(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)
    response = await client.post(f"/v1/payments/{payment['id']}/cancel")
    assert response.status_code == 200
    assert response.json() == payment | {"status": "cancelled", "version": 2}
    events = (await client.get(f"/v1/payments/{payment['id']}/events")).json()["data"]
    assert [(event["type"], event["version"]) for event in events] == [("payment.created", 1), ("payment.cancelled", 2)]
    assert events[1]["data"] == response.json()

    again = await client.post(f"/v1/payments/{payment['id']}/cancel")
    assert "cancelled" in read_problem(again, 409, "not_cancellable")["detail"]
    assert len((await client.get(f"/v1/payments/{payment['id']}/events")).json()["data"]) == 2


async def test_two_that_cancel_at_once_cancel_once(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)
    answers = await asyncio.gather(*(client.post(f"/v1/payments/{payment['id']}/cancel") for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409]
    assert len((await client.get(f"/v1/payments/{payment['id']}/events")).json()["data"]) == 2


@pytest.mark.parametrize("status", ["detected", "confirmed", "settled", "expired"])
async def test_only_a_pending_payment_can_be_cancelled(
    client: httpx.AsyncClient, gateway: Gateway, status: str
) -> None:
    payment = await create_payment(client)
    await set_status(gateway, payment["id"], status)
    before = await row_counts(gateway.context.db)
    problem = read_problem(await client.post(f"/v1/payments/{payment['id']}/cancel"), 409, "not_cancellable")
    assert status in problem["detail"]
    assert await row_counts(gateway.context.db) == before


async def set_status(gateway: Gateway, payment_id: str, status: str) -> None:
    """As if the watcher had seen what leads there."""
    async with gateway.context.db.write() as session:
        payment = await session.get_one(Payment, payment_id)
        payment.status, payment.holds_order = status, status != "expired"


# --- one payment per order


async def test_an_order_has_one_open_payment(client: httpx.AsyncClient, gateway: Gateway) -> None:
    payment = await create_payment(client, order_id="A-1")
    before = await row_counts(gateway.context.db)
    body = {"chain": "devnet", "token": "ETH", "amount": "1", "order_id": "A-1"}
    problem = read_problem(await client.post("/v1/payments", json=body), 409, "duplicate_order_id")
    assert payment["id"] in problem["detail"]
    assert [error["path"] for error in problem["errors"]] == ["order_id"]
    assert await row_counts(gateway.context.db) == before


@pytest.mark.parametrize("status", ["detected", "confirmed", "settled"])
async def test_an_order_that_was_paid_stays_taken(client: httpx.AsyncClient, gateway: Gateway, status: str) -> None:
    payment = await create_payment(client, order_id="A-1")
    await set_status(gateway, payment["id"], status)
    body = {"chain": "devnet", "token": "ETH", "amount": "1", "order_id": "A-1"}
    assert payment["id"] in read_problem(await client.post("/v1/payments", json=body), 409)["detail"]


async def test_two_that_race_for_an_order_get_one_payment_and_its_name(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    body = {"chain": "devnet", "token": "USDC", "amount": "1", "order_id": "A-1"}
    answers = await asyncio.gather(*(client.post("/v1/payments", json=body) for _ in range(10)))
    [won] = [answer.json() for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    for answer in refused:
        assert won["id"] in read_problem(answer, 409, "duplicate_order_id")["detail"]
    counts = await row_counts(gateway.context.db)
    assert (counts["payments"], counts["events"], counts["deposit_addresses"]) == (1, 1, 1)


@pytest.mark.parametrize("end", ["cancelled", "expired"])
async def test_an_order_is_free_again_after_its_payment_ended(
    client: httpx.AsyncClient, gateway: Gateway, end: str
) -> None:
    first = await create_payment(client, order_id="A-1")
    if end == "cancelled":
        await client.post(f"/v1/payments/{first['id']}/cancel")
    else:
        await set_status(gateway, first["id"], "expired")
    second = await create_payment(client, order_id="A-1")
    assert second["address"] != first["address"]
    assert {payment["id"] for payment in await read_list(client, order_id="A-1")} == {first["id"], second["id"]}


async def test_another_merchant_may_use_the_same_order_id(
    client: httpx.AsyncClient, another: httpx.AsyncClient
) -> None:
    await create_payment(client, order_id="A-1")
    await create_payment(another, order_id="A-1")


# --- whose


async def test_another_merchants_payment_is_not_there(client: httpx.AsyncClient, another: httpx.AsyncClient) -> None:
    payment = await create_payment(client, order_id="A-1")
    path = f"/v1/payments/{payment['id']}"
    for answer in (await another.get(path), await another.post(f"{path}/cancel"), await another.get(f"{path}/events")):
        read_problem(answer, 404, "not_found")
    assert await read_list(another) == []
    assert await read_list(another, address=payment["address"]) == []
    assert (await another.get("/v1/events")).json() == {"data": [], "next_cursor": None}
    assert (await client.get(path)).json() == payment


async def test_another_merchants_cursor_shows_nothing_of_it(
    client: httpx.AsyncClient, another: httpx.AsyncClient
) -> None:
    theirs = await create_payment(client)
    own = await create_payment(another)
    assert {payment["id"] for payment in await read_list(another, cursor=theirs["id"])} <= {own["id"]}


# --- the list


async def test_the_list_is_narrowed_by_each_filter(client: httpx.AsyncClient, gateway: Gateway, devnet: Devnet) -> None:
    usdc = await create_payment(client, order_id="A-1")
    ether = await create_payment(client, token="ETH", amount="1")
    await client.post(f"/v1/payments/{ether['id']}/cancel")

    async def ids(**query: Any) -> set[str]:
        return {payment["id"] for payment in await read_list(client, **query)}

    both = {usdc["id"], ether["id"]}
    assert await ids() == both
    assert await ids(status="pending") == {usdc["id"]}
    assert await ids(status="cancelled") == {ether["id"]}
    assert await ids(status="settled") == set()
    assert await ids(order_id="A-1") == {usdc["id"]}
    assert await ids(order_id="A-2") == set()
    assert await ids(chain="devnet") == both
    assert await ids(chain="elsewhere") == set()
    assert await ids(token="usdc") == {usdc["id"]}
    assert await ids(token=devnet.usdc) == {usdc["id"]}
    assert await ids(token="ETH") == {ether["id"]}
    assert await ids(token="0x" + "11" * 20) == set()
    assert await ids(address=ether["address"]) == {ether["id"]}
    assert await ids(address=ether["address"].lower()) == {ether["id"]}
    assert await ids(address="0x" + "11" * 20) == set()
    assert await ids(chain="devnet", token="ETH", status="pending") == set()


async def test_the_list_is_narrowed_by_time(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)
    created_at = datetime.fromisoformat(payment["created_at"])
    for query, found in [
        ({"created_after": payment["created_at"]}, True),
        ({"created_before": payment["created_at"]}, False),
        ({"created_after": (created_at + timedelta(microseconds=1)).isoformat()}, False),
        ({"created_before": (created_at + timedelta(microseconds=1)).isoformat()}, True),
        ({"created_after": (created_at - A_DAY).isoformat(), "created_before": (created_at + A_DAY).isoformat()}, True),
        ({"created_after": created_at.replace(tzinfo=None).isoformat()}, True),  # UTC where no zone is given
        ({"created_after": "0001-01-01", "created_before": "9999-12-31"}, True),
    ]:
        assert [one["id"] for one in await read_list(client, **query)] == ([payment["id"]] if found else []), query


async def test_walking_the_pages_loses_and_repeats_nothing_while_payments_are_made(client: httpx.AsyncClient) -> None:
    there_before = {(await create_payment(client))["id"] for _ in range(7)}
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = (await client.get("/v1/payments", params=query)).json()
        assert len(page["data"]) <= 3
        seen += [payment["id"] for payment in page["data"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
        await create_payment(client)
    assert len(seen) == len(set(seen))
    assert there_before <= set(seen)
    assert seen == sorted(seen, reverse=True)


async def test_a_full_last_page_has_no_next_one(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await create_payment(client)
    assert (await client.get("/v1/payments", params={"limit": 2})).json()["next_cursor"] is None
    assert (await client.get("/v1/payments", params={"limit": 1})).json()["next_cursor"] is not None


async def test_the_pages_of_events_follow_each_other(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)
    await client.post(f"/v1/payments/{payment['id']}/cancel")
    path = f"/v1/payments/{payment['id']}/events"
    first = (await client.get(path, params={"limit": 1})).json()
    second = (await client.get(path, params={"limit": 1, "cursor": first["next_cursor"]})).json()
    assert [first["data"][0]["version"], second["data"][0]["version"]] == [1, 2]
    assert second["next_cursor"] is None

    newest = (await client.get("/v1/events", params={"limit": 1})).json()
    oldest = (await client.get("/v1/events", params={"limit": 1, "cursor": newest["next_cursor"]})).json()
    assert {newest["data"][0]["version"], oldest["data"][0]["version"]} == {1, 2}
    assert oldest["next_cursor"] is None


async def test_the_chains_are_told_with_their_tokens(client: httpx.AsyncClient, devnet: Devnet) -> None:
    [chain] = (await client.get("/v1/chains")).json()["data"]
    head = await devnet.anvil.block_number()
    assert chain == chain | {
        "name": "devnet",
        "chain_id": 31337,
        "head": head,
        "cursor": head,
        "lag_blocks": 0,
        "state": "ok",
        "confirmations_required": 3,
        "native": {"symbol": "ETH", "address": None, "decimals": 18},
        "tokens": [{"symbol": "USDC", "address": devnet.usdc, "decimals": 6}],
    }

"""Goal: whoever walks a list to its end has seen all that was there exactly once, whatever is added meanwhile."""

import asyncio
import secrets
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from app.core import limits
from app.core.clock import utc_now
from app.core.evm import NATIVE_ASSET
from app.core.ids import new_id
from app.db.models import DepositAddress, Event, Payment, PaymentOption
from app.db.repositories import merchants
from app.services.gateway import Gateway
from tests.support.gateway import CHAIN_ID, Devnet, client_of, create_payment, open_gateway

MANY = 10_000
INDEX_FROM = 1_000_000


async def add_payments(gateway: Gateway, count: int) -> set[str]:
    """Payments with an event each, written straight into the database; their ids."""
    now = utc_now()
    async with gateway.context.db.write() as session:
        merchant = await merchants.first(session)
        assert merchant is not None
        numbers = range(INDEX_FROM, INDEX_FROM + count)
        ids = [new_id("pay") for _ in numbers]
        rows: list[tuple[Any, list[dict[str, Any]]]] = [
            (
                DepositAddress,
                [{"id": n, "branch": 0, "address": secrets.token_bytes(20), "created_at": now} for n in numbers],
            ),
            (
                Payment,
                [
                    {
                        "id": payment_id,
                        "merchant_id": merchant.id,
                        "deposit_address_id": number,
                        "status": "pending",
                        "flags": [],
                        "version": 1,
                        "option_position": 0,
                        "metadata_": {},
                        "created_at": now,
                        "expires_at": now + timedelta(days=1),
                    }
                    for payment_id, number in zip(ids, numbers, strict=True)
                ],
            ),
            (
                PaymentOption,
                [
                    {
                        "payment_id": payment_id,
                        "position": 0,
                        "chain": "devnet",
                        "chain_id": CHAIN_ID,
                        "asset": NATIVE_ASSET,
                        "amount_units": 1,
                        "tolerance_units": 0,
                        "received_units": 0,
                        "confirmations_required": 1,
                    }
                    for payment_id in ids
                ],
            ),
        ]
        for model, values in rows:
            await session.execute(insert(model), values)
    return set(ids)


async def add_events(gateway: Gateway, payment: dict[str, Any], count: int) -> set[str]:
    """Events of a payment, versions from 2; their ids."""
    now = utc_now()
    ids = [new_id("evt") for _ in range(count)]
    async with gateway.context.db.write() as session:
        merchant = await merchants.first(session)
        assert merchant is not None
        await session.execute(
            insert(Event),
            [
                {
                    "id": event_id,
                    "merchant_id": merchant.id,
                    "payment_id": payment["id"],
                    "type": "payment.late",
                    "version": version,
                    "cause": {"kind": "clock"},
                    "data": payment,
                    "created_at": now,
                }
                for version, event_id in enumerate(ids, start=2)
            ],
        )
    return set(ids)


async def walk(client: httpx.AsyncClient, path: str, busy: asyncio.Event, **query: Any) -> list[str]:
    """All ids of a list, by its pages."""
    seen: list[str] = []
    while True:
        response = await client.get(path, params={"limit": 100} | query)
        assert response.status_code == 200, response.text
        page = response.json()
        seen += [row["id"] for row in page["data"]]
        if page["next_cursor"] is None:
            return seen
        query["cursor"] = page["next_cursor"]
        busy.clear()
        await busy.wait()  # something was added between two pages


async def keep_adding(client: httpx.AsyncClient, busy: asyncio.Event) -> None:
    while True:
        await create_payment(client)
        busy.set()


async def walk_while_payments_are_made(client: httpx.AsyncClient, path: str) -> list[str]:
    busy = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:  # whichever fails ends the other
        adding = tasks.create_task(keep_adding(client, busy))
        seen = await walk(client, path, busy)
        adding.cancel()
    return seen


@pytest.mark.slow
async def test_ten_thousand_payments_are_walked_while_others_are_made(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    there = await add_payments(gateway, MANY)
    seen = await walk_while_payments_are_made(client, "/v1/payments")
    assert len(seen) == len(set(seen))
    assert there <= set(seen)
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize("whose", ["all", "payment"])
async def test_a_long_trail_is_walked_while_it_grows(client: httpx.AsyncClient, gateway: Gateway, whose: str) -> None:
    payment = await create_payment(client)
    there = await add_events(gateway, payment, 1_000)
    path = "/v1/events" if whose == "all" else f"/v1/payments/{payment['id']}/events"
    seen = await walk_while_payments_are_made(client, path)
    assert len(seen) == len(set(seen))
    assert there <= set(seen)


async def test_the_trail_is_narrowed_by_each_filter(client: httpx.AsyncClient) -> None:
    one, other = await create_payment(client), await create_payment(client)
    await client.post(f"/v1/payments/{one['id']}/cancel")

    async def found(**query: Any) -> list[tuple[str, str]]:
        response = await client.get("/v1/events", params=query)
        assert response.status_code == 200, response.text
        return sorted((event["payment_id"], event["type"]) for event in response.json()["data"])

    everything = sorted(
        [(one["id"], "payment.created"), (other["id"], "payment.created"), (one["id"], "payment.cancelled")]
    )
    assert await found() == everything
    assert await found(type="payment.cancelled") == [(one["id"], "payment.cancelled")]
    assert await found(payment_id=other["id"]) == [(other["id"], "payment.created")]
    assert await found(payment_id="pay_01J00000000000000000000000") == []
    assert await found(payment_id="nonsense") == []
    assert await found(created_before=one["created_at"]) == []
    assert await found(created_after=one["created_at"]) == everything
    assert await found(created_after=other["created_at"], type="payment.created") == [(other["id"], "payment.created")]
    assert (await client.get("/v1/events", params={"type": "payment.exploded"})).status_code == 422

    endpoint = (await client.post("/v1/webhook_endpoints", json={"url": "http://127.0.0.1:9/"})).json()
    await client.patch(f"/v1/webhook_endpoints/{endpoint['id']}", json={"enabled": False})
    [disabled] = (await client.get("/v1/events", params={"type": "webhook_endpoint.disabled"})).json()["data"]
    assert (disabled["payment_id"], disabled["data"]["id"]) == (None, endpoint["id"])


async def test_chains_come_in_pages_too_in_the_order_of_the_settings(
    db_url: str, redis_url: str, devnet: Devnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RPC_ATTEMPTS", 1)
    away = [
        devnet.chain(name=name, chain_id=number, rpc_urls=("http://127.0.0.1:9",))
        for number, name in ((1, "b"), (2, "a"))
    ]
    async with open_gateway(db_url, redis_url, devnet.chain(), *away) as gateway, client_of(gateway) as client:
        assert [chain["name"] for chain in (await client.get("/v1/chains")).json()["data"]] == ["devnet", "b", "a"]
        seen, cursor = [], None
        while not seen or cursor is not None:
            params = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
            answer = (await client.get("/v1/chains", params=params)).json()
            seen.append([chain["name"] for chain in answer["data"]])
            cursor = answer["next_cursor"]
        assert seen == [["devnet", "b"], ["a"]]

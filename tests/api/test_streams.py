"""Goal: whoever listens to a payment hears each change once, in order, across lost connections, and costs little."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from app.core import limits
from app.services.gateway import Gateway
from tests.support.gateway import API_KEY, add_merchant, client_of, create_payment, serving
from tests.support.problems import read_problem

TIMEOUT_S = 60.0


class Stream:
    """A stream's lines as its reader understands them."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def block(self) -> dict[str, str]:
        """The next block of lines, comments under an empty name."""
        found: dict[str, str] = {}
        async with asyncio.timeout(TIMEOUT_S):
            async for line in self._lines:
                if not line:
                    return found
                name, _, value = line.partition(":")
                found[name] = value.strip()
        raise EOFError

    async def event(self) -> dict[str, str]:
        while "event" not in (block := await self.block()):
            pass
        return block

    async def events(self, count: int) -> list[dict[str, str]]:
        return [await self.event() for _ in range(count)]


@pytest.fixture
async def url(gateway: Gateway) -> AsyncIterator[str]:
    async with serving(gateway) as base_url:
        yield base_url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        yield client


@asynccontextmanager
async def listening(http: httpx.AsyncClient, payment_id: str, last: str | None = None) -> AsyncIterator[Stream]:
    headers = {"Last-Event-ID": last} if last else {}
    async with http.stream("GET", f"/v1/payments/{payment_id}/stream", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        yield Stream(response)


async def trail(http: httpx.AsyncClient, payment_id: str) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await http.get(f"/v1/payments/{payment_id}/events")).json()["data"]
    return data


async def test_each_change_is_told_as_it_happens_in_the_form_of_the_audit_trail(http: httpx.AsyncClient) -> None:
    payment = await create_payment(http)
    async with listening(http, payment["id"]) as stream:
        created = await stream.event()
        await http.post(f"/v1/payments/{payment['id']}/cancel")
        cancelled = await stream.event()
    told = [created, cancelled]
    events = await trail(http, payment["id"])
    assert [json.loads(each["data"]) for each in told] == events
    assert [each["event"] for each in told] == ["payment.created", "payment.cancelled"]
    assert [each["id"] for each in told] == [event["id"] for event in events]


async def test_a_lost_connection_is_taken_up_where_it_was(http: httpx.AsyncClient) -> None:
    payment = await create_payment(http)
    async with listening(http, payment["id"]) as stream:
        created = await stream.event()
    await http.post(f"/v1/payments/{payment['id']}/cancel")
    async with listening(http, payment["id"], created["id"]) as stream:
        assert (await stream.event())["event"] == "payment.cancelled"
    other = await create_payment(http)
    async with listening(http, other["id"], created["id"]) as stream:  # another payment's event: from the beginning
        assert (await stream.event())["event"] == "payment.created"


async def test_a_stream_is_its_merchants_alone(http: httpx.AsyncClient, gateway: Gateway) -> None:
    payment = await create_payment(http)
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as another:
        read_problem(await another.get(f"/v1/payments/{payment['id']}/stream"), 404, "not_found")
    async with client_of(gateway, "pwk_of_nobody") as nobody:
        read_problem(await nobody.get(f"/v1/payments/{payment['id']}/stream"), 401, "unauthorized")


async def test_a_silent_stream_has_a_heartbeat_and_an_end(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAM_HEARTBEAT_S", 0.01)
    payment = await create_payment(http)
    async with listening(http, payment["id"]) as stream:
        assert (await stream.block())[""] == "open"
        assert "event" in await stream.block()
        assert await stream.block() == {"": "alive"}
        monkeypatch.setattr(limits, "STREAM_LIFE_S", 0.0)
        async with listening(http, payment["id"]) as ended:
            assert (await ended.block())["retry"] == "1000"
            with pytest.raises(EOFError):
                await ended.block()


async def test_an_address_has_ten_streams_and_gets_the_place_of_one_that_ended(
    http: httpx.AsyncClient, gateway: Gateway
) -> None:
    payment = await create_payment(http)
    path = f"/v1/payments/{payment['id']}/stream"
    async with AsyncExitStack() as stack:
        for _ in range(limits.STREAMS_PER_ADDRESS):
            await stack.enter_async_context(listening(http, payment["id"]))
        refused = await http.get(path)
        read_problem(refused, 429, "rate_limited")
        assert refused.headers["retry-after"]
    async with asyncio.timeout(TIMEOUT_S):
        while gateway.streams._open:  # the server has seen that they are gone
            await asyncio.sleep(0.01)
    async with listening(http, payment["id"]) as stream:
        assert (await stream.event())["event"] == "payment.created"
    read_problem(await http.get("/v1/payments/pay_01J00000000000000000000000/stream"), 404)
    async with asyncio.timeout(TIMEOUT_S):
        while gateway.streams._open:
            await asyncio.sleep(0.01)


async def test_open_streams_hold_no_connection_and_one_query_serves_them_all(
    http: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STREAMS_PER_ADDRESS", 40)
    payments = [await create_payment(http) for _ in range(2)]
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listening(http, payments[n % 2]["id"])) for n in range(40)]
        for stream in streams:
            assert (await stream.event())["event"] == "payment.created"
        async with asyncio.timeout(TIMEOUT_S):
            while len(gateway.streams._waiting) < 40 or gateway.context.db.engine.pool.checkedout():  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
        await http.post(f"/v1/payments/{payments[0]['id']}/cancel")
        for stream in streams[::2]:
            assert (await stream.event())["event"] == "payment.cancelled"
        assert len(gateway.streams._waiting) >= 20  # the other payment's sleep on


async def test_streams_end_when_the_server_does(gateway: Gateway) -> None:
    """`serving` ends its server without a bound of its own: with a stream left open it would wait for ever."""
    async with asyncio.timeout(TIMEOUT_S), serving(gateway) as url:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as http:
            payment = await create_payment(http)
            async with listening(http, payment["id"]) as stream:
                await stream.event()
                gateway.streams.close()
                with pytest.raises(EOFError):
                    await stream.event()
            read_problem(await http.get(f"/v1/payments/{payment['id']}/stream"), 503, "service_unavailable")

"""Goal: `/health` says how the endpoints are now, as whoever asks them sees it, and not how a server found them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from app.core import limits
from app.services.gateway import Gateway
from app.workers.runner import run_workers
from tests.support.gateway import Devnet, client_of, open_gateway
from tests.support.node import ProxyNode

WAIT_S = 60.0

# arq closes its pool under a name that redis calls old; workers in this process say it where other tests start them.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")


@pytest.fixture
def database_backend() -> None:
    """SQLite alone: which database it is says nothing of nodes."""


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[None]:
    stop = asyncio.Event()
    context = gateway.context
    work = run_workers(context.settings, context.chains, context.settings.redis_url, ["listener"], stop)
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        stop.set()
        await task


async def told(client: httpx.AsyncClient) -> tuple[str, str]:
    checks = {each["name"]: each for each in (await client.get("/health")).json()["checks"]}
    return checks["rpc:devnet"]["status"], checks["rpc:devnet"]["detail"]


async def comes(client: httpx.AsyncClient, status: str, *states: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            found, detail = await told(client)
            if found == status and [each.rpartition(" ")[2] for each in detail.split(", ")] == list(states):
                return
            await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_S", 1)  # arq wants a whole number
    monkeypatch.setattr(limits, "SPARE_EVERY_S", 0.2)
    monkeypatch.setattr(limits, "BREAKER_MAX_S", 0.5)
    monkeypatch.setattr(limits, "BREAKER_MIN_S", 0.5)


async def test_endpoints_are_told_as_the_listener_sees_them(db_url: str, redis_url: str, devnet: Devnet) -> None:
    """The second one was away when all began, and is back; then the first one goes, and comes back."""
    async with ProxyNode(devnet.anvil.url) as first, ProxyNode(devnet.anvil.url) as spare:
        await spare.stop()
        chain = devnet.chain(rpc_urls=(f"{first.url}/v3/key", f"{spare.url}/v3/key"))
        async with open_gateway(db_url, redis_url, chain) as gateway, client_of(gateway) as client:
            assert await told(client) == ("degraded", "no listener tells of its endpoints")
            async with listening(gateway):
                for state in ("open", "half_open"):
                    await comes(client, "degraded", "closed", state)
                await spare.start()
                await comes(client, "ok", "closed", "closed")
                await first.stop()
                await comes(client, "degraded", "open", "closed")
                await first.start()
                await comes(client, "ok", "closed", "closed")
                assert (await told(client))[1] == f"#0 {first.url}: closed, #1 {spare.url}: closed"


async def test_the_worst_that_a_listener_tells_counts(db_url: str, redis_url: str, devnet: Devnet) -> None:
    async with open_gateway(db_url, redis_url, devnet.chain()) as gateway, client_of(gateway) as client:
        redis = gateway.wake_ups.redis
        for pid, state in enumerate(("closed", "open", "half_open")):
            await redis.set(f"paywatch:endpoints:host:{pid}", f'{{"devnet": [["http://node", "{state}"]]}}')
        assert await told(client) == ("degraded", "#0 http://node: open")
        await redis.set("paywatch:endpoints:host:9", '{"devnet": [["http://node", "http://node has chain id 5"]]}')
        assert await told(client) == ("degraded", "#0 http://node: http://node has chain id 5")

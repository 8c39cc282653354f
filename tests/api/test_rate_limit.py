"""Goal: nobody takes more than a share, nobody pays for another, and a Redis that is away holds up nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from app.api.address import client_address
from app.core import limits
from app.core.config import Settings
from app.services.gateway import Gateway
from tests.support.gateway import API_KEY, Devnet, add_merchant, app_of, client_of, open_gateway
from tests.support.problems import read_problem
from tests.support.redis import RedisServer

LIMIT = 5
JSON = {"content-type": "application/json"}


@pytest.fixture
async def limited(
    db_url: str, redis_url: str, devnet: Devnet, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Gateway]:
    """A gateway with a window that no test outlives, which counts however slow the machine is."""
    monkeypatch.setattr(limits, "RATE_LIMIT_TIMEOUT_S", 60.0)
    async with open_gateway(
        db_url, redis_url, devnet.chain(), rate_limit=f"{LIMIT}/hour", trusted_proxies="10.0.0.0/8"
    ) as gateway:
        yield gateway


@asynccontextmanager
async def peer(gateway: Gateway, address: str, key: str = "", forwarded: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """A client at an address."""
    headers = ({"Authorization": f"Bearer {key}"} if key else {}) | (
        {"X-Forwarded-For": forwarded} if forwarded else {}
    )
    transport = httpx.ASGITransport(app=app_of(gateway), client=(address, 1234), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://paywatch.test", headers=headers) as client:
        yield client


async def use_up(client: httpx.AsyncClient, path: str, status: int) -> None:
    assert [(await client.get(path)).status_code for _ in range(LIMIT)] == [status] * LIMIT
    response = await client.get(path)
    read_problem(response, 429, "rate_limited")
    assert 3_500 < int(response.headers["retry-after"]) <= 3_600


async def test_each_key_has_its_own_share(limited: Gateway) -> None:
    await add_merchant(limited, "pwk_of_another")
    async with client_of(limited) as one, client_of(limited, "pwk_of_another") as other:
        await use_up(one, "/v1/payments", 200)
        read_problem(await one.post("/v1/payments", json={}), 429, "rate_limited")
        assert (await other.get("/v1/payments")).status_code == 200


async def test_a_key_is_counted_alike_from_everywhere(limited: Gateway) -> None:
    async with peer(limited, "192.0.2.1", API_KEY) as one, peer(limited, "192.0.2.2", API_KEY) as other:
        await use_up(one, "/v1/payments", 200)
        assert (await other.get("/v1/payments")).status_code == 429


@pytest.mark.parametrize("path", ["/v1/payments", "/docs", "/nothing"])
async def test_without_a_key_the_address_is_counted(limited: Gateway, path: str) -> None:
    status = {"/v1/payments": 401, "/docs": 200, "/nothing": 404}[path]
    async with peer(limited, "192.0.2.1") as one, peer(limited, "192.0.2.2") as other:
        await use_up(one, path, status)
        assert (await other.get(path)).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/v1/nothing", b"", 404),
        ("DELETE", "/v1/chains", b"", 405),
        ("POST", "/v1/payments", b"{", 400),
    ],
)
async def test_what_is_refused_before_a_key_is_asked_for_counts_against_the_address(
    limited: Gateway, method: str, path: str, content: bytes, status: int
) -> None:
    async with peer(limited, "192.0.2.1") as one, peer(limited, "192.0.2.2") as other:
        answers = [await one.request(method, path, content=content, headers=JSON) for _ in range(LIMIT + 1)]
        assert [answer.status_code for answer in answers] == [status] * LIMIT + [429]
        read_problem(answers[-1], 429, "rate_limited")
        assert int(answers[-1].headers["retry-after"]) > 3_500
        assert (await other.request(method, path, content=content, headers=JSON)).status_code == status


async def test_keys_that_are_made_up_count_against_the_address(limited: Gateway) -> None:
    for number in range(LIMIT):
        async with peer(limited, "192.0.2.1", f"pwk_{number}") as client:
            read_problem(await client.get("/v1/payments"), 401, "unauthorized")
    async with peer(limited, "192.0.2.1", "pwk_guess") as client:
        read_problem(await client.get("/v1/payments"), 429, "rate_limited")
    async with peer(limited, "192.0.2.1", API_KEY) as client:  # and harm no key at that address
        assert (await client.get("/v1/payments")).status_code == 200


async def test_behind_a_trusted_proxy_its_clients_are_counted(limited: Gateway) -> None:
    async with (
        peer(limited, "10.0.0.1", forwarded="198.51.100.1, 192.0.2.1") as one,
        peer(limited, "10.0.0.1", forwarded="198.51.100.1, 192.0.2.2") as other,
    ):
        await use_up(one, "/docs", 200)
        assert (await other.get("/docs")).status_code == 200


async def test_nobody_else_gets_another_address_by_saying_so(limited: Gateway) -> None:
    async with (
        peer(limited, "192.0.2.1", forwarded="198.51.100.1") as one,
        peer(limited, "192.0.2.1", forwarded="198.51.100.2") as other,
    ):
        await use_up(one, "/docs", 200)
        assert (await other.get("/docs")).status_code == 429


async def test_monitoring_is_never_limited(limited: Gateway) -> None:
    async with peer(limited, "192.0.2.1") as client:
        for path in ("/health/live", "/health/ready", "/health", "/metrics"):
            assert {(await client.get(path)).status_code for _ in range(LIMIT + 2)} == {200}


async def test_many_at_once_get_no_more_than_the_share(limited: Gateway) -> None:
    async with client_of(limited) as client:
        answers = await asyncio.gather(*(client.get("/v1/chains") for _ in range(4 * LIMIT)))
    assert sum(answer.status_code == 200 for answer in answers) == LIMIT


async def test_a_window_ends(db_url: str, redis_url: str, devnet: Devnet) -> None:
    async with (
        open_gateway(db_url, redis_url, devnet.chain(), rate_limit="1/second") as gateway,
        client_of(gateway) as client,
    ):
        refused: list[httpx.Response] = []
        while not refused:
            answers = await asyncio.gather(*(client.get("/v1/payments") for _ in range(10)))
            refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        while (await client.get("/v1/payments")).status_code == 429:
            await asyncio.sleep(0.05)


async def test_without_a_limit_or_without_redis_requests_pass(
    db_url: str, devnet: Devnet, redis_server: RedisServer, redis_url: str
) -> None:
    for rate in ("", "1/hour"):
        async with (
            open_gateway(db_url, redis_url, devnet.chain(), rate_limit=rate) as gateway,
            client_of(gateway) as client,
        ):
            if rate:
                redis_server.stop()
            assert {(await client.get("/v1/chains")).status_code for _ in range(2 * LIMIT)} == {200}


async def test_a_redis_that_hangs_is_asked_once_and_then_left_alone(
    db_url: str, devnet: Devnet, redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RATE_LIMIT_REST_S", 3_600.0)
    asked = 0
    async with (
        open_gateway(db_url, redis_url, devnet.chain(), rate_limit="1/hour") as gateway,
        client_of(gateway) as client,
    ):
        hit = gateway.throttle._limiter.hit

        async def counted(*args: Any) -> bool:
            nonlocal asked
            asked += 1
            return await hit(*args)

        monkeypatch.setattr(gateway.throttle._limiter, "hit", counted)
        redis_server.process.pause()
        try:
            assert {(await client.get("/v1/chains")).status_code for _ in range(2 * LIMIT)} == {200}
        finally:
            redis_server.process.resume()
    assert asked == 1


# --- addresses


@pytest.mark.parametrize(
    ("peer_address", "forwarded", "client"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "6.6.6.6, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", ",", "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("10.0.0.1", "2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("10.0.0.1", "1.1.1.1," * 9_000 + "198.51.100.1", "198.51.100.1"),
        (None, "198.51.100.1", "unknown"),
    ],
)
def test_the_clients_address_is_the_nearest_that_no_trusted_proxy_has(
    peer_address: str | None, forwarded: str | None, client: str
) -> None:
    trusted = Settings(_env_file=None, trusted_proxies="10.0.0.0/8, fd00::/8").trusted_proxies
    scope = {
        "type": "http",
        "client": (peer_address, 1) if peer_address else None,
        "headers": [(b"x-forwarded-for", forwarded.encode())] if forwarded else [],
    }
    assert client_address(HTTPConnection(scope), trusted) == client

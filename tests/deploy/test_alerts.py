"""Goal: an alert is true in the fault that it is of, by what our own metrics say meanwhile, and in no other.

Time is counted, not waited for: what a process exposes is scraped every 15 seconds of it.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from prometheus_client import generate_latest

from app.blockchain.errors import RateLimitedError
from app.blockchain.manager import BlockchainManager, ChainNodes
from app.core import limits, metrics
from app.core.chains import load_chains
from app.core.queue import WakeUps, connect, queue_name
from app.db.engine import Database
from tests.services.blockchain.watch import chain_yaml
from tests.support.clock import Clock
from tests.support.exposition import Exposition, read_exposition
from tests.support.prometheus import SCRAPE_EVERY_S, Prometheus, Series

ROOT = Path(__file__).parents[2]
RULES: Final = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
CHAIN: Final = "watched"
LIMITED: Final = frozenset({("chain", CHAIN), ("endpoint", "#0 http://limited.example")})
AN_HOUR_S: Final = 3_600


def scrape(*names: str) -> Exposition:
    """What this process says of these samples."""
    return read_exposition(generate_latest(metrics.REGISTRY.restricted_registry(names)).decode())  # type: ignore[no-untyped-call]


def gauge(name: str, value: float, **labels: str) -> Exposition:
    return Exposition("", {name: [(labels, value)]}, {name: "gauge"})


# --- nodes


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[BlockchainManager]:
    path = tmp_path / "chains.yaml"
    urls = ["http://limited.example", "http://other.example"]
    path.write_text(chain_yaml("", {}, 6, name=CHAIN, rpc_urls=urls))
    it = BlockchainManager(load_chains(path, {}).enabled)
    yield it
    asyncio.run(it.close())


def limits_us(retry_after_s: float | None) -> RateLimitedError:
    return RateLimitedError("HTTP 429: too many requests", retry_after_s)


def step(nodes: ChainNodes, error: RateLimitedError | None, *, spares: bool) -> None:
    """As a listener's: the preferred endpoint is asked, and `spares` too; the first one of all answers with `error`."""
    picked = nodes.pick()
    assert picked is not None
    for endpoint in (picked, *(nodes.others(picked) if spares else ())):
        if error is not None and endpoint is nodes.endpoints[0]:
            nodes.failed(endpoint, error)
        else:
            nodes.succeeded(endpoint)


def rests(manager: BlockchainManager, clock: Clock, errors: Sequence[RateLimitedError | None]) -> set[Series]:
    """For which endpoints NodeRests fires, if the first one answers a step of each second with that."""
    [nodes] = manager._nodes.values()
    prometheus = Prometheus()
    for second, error in enumerate(errors):
        clock.now += 1
        step(nodes, error, spares=second % int(limits.SPARE_EVERY_S) == 0)
        if second % int(SCRAPE_EVERY_S) == 7:
            prometheus.scraped(second, scrape("paywatch_rpc_breaker_state"))
    return {each for each in prometheus.fires(RULES["NodeRests"]) if ("chain", CHAIN) in each}


@pytest.mark.parametrize("retry_after_s", [None, 30.0, limits.RETRY_AFTER_MAX_S])
def test_an_endpoint_that_limits_every_request_rests(
    manager: BlockchainManager, clock: Clock, retry_after_s: float | None
) -> None:
    """Another one serves meanwhile: hardly a request is limited any more."""
    assert rests(manager, clock, [limits_us(retry_after_s)] * AN_HOUR_S) == {LIMITED}


def test_an_endpoint_that_fails_now_and_then_does_not(manager: BlockchainManager, clock: Clock) -> None:
    assert not rests(manager, clock, [limits_us(None) if second % 30 == 0 else None for second in range(AN_HOUR_S)])


def test_a_pool_that_asked_once_and_never_again_says_nothing(manager: BlockchainManager, clock: Clock) -> None:
    """The API's, of a node that was away when the server began: half-open for good."""
    [nodes] = manager._nodes.values()
    nodes.failed(nodes.endpoints[0], limits_us(60.0))
    prometheus = Prometheus()
    for second in range(0, AN_HOUR_S, int(SCRAPE_EVERY_S)):
        clock.now += SCRAPE_EVERY_S
        prometheus.scraped(second, scrape("paywatch_rpc_breaker_state"))
    half_open = prometheus.ask('max by (chain) (paywatch_rpc_breaker_state{state="half_open"}) > 0', second)
    assert frozenset({("chain", CHAIN)}) in half_open
    assert not [each for each in prometheus.fires(RULES["NodeRests"]) if ("chain", CHAIN) in each]


def test_an_endpoint_that_limits_some_requests_is_told_although_it_serves() -> None:
    prometheus = Prometheus()
    request = metrics.RPC_REQUEST_SECONDS
    for second in range(0, AN_HOUR_S, int(SCRAPE_EVERY_S)):
        for outcome in ("ok", "ok", "rate_limited", "ok"):
            request.labels(CHAIN, "#0 http://limited.example", "eth_getLogs", outcome).observe(0.1)
        prometheus.scraped(second, scrape("paywatch_rpc_request_seconds_count"))
    assert LIMITED in prometheus.fires(RULES["NodeRateLimited"])


# --- queues


async def test_a_wake_up_that_nobody_takes_begins_anew(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So where jobs are stuck the oldest is hardly older than JOB_EXPIRES_S."""
    monkeypatch.setattr(limits, "JOB_EXPIRES_S", 0.05)
    wake_ups = WakeUps(connect(redis_url))
    try:
        await wake_ups.listener("devnet")
        [(_, first)] = await wake_ups.redis.zrange(queue_name("listener"), 0, -1, withscores=True)
        while await wake_ups.redis.exists("arq:job:listen:devnet"):
            await asyncio.sleep(0.01)
        await wake_ups.listener("devnet")
        [(_, second)] = await wake_ups.redis.zrange(queue_name("listener"), 0, -1, withscores=True)
        assert second > first
    finally:
        await wake_ups.close()


@pytest.mark.parametrize(
    ("longest_s", "fires"),
    [
        pytest.param(limits.JOB_EXPIRES_S, True, id="nobody-takes-them"),
        pytest.param(limits.JOB_EXPIRES_S + 12, True, id="nor-asks-often"),
        pytest.param(limits.LISTENER_JOB_TIMEOUT_S, False, id="each-takes-all-its-time"),
        pytest.param(limits.WEBHOOK_JOB_TIMEOUT_S, False, id="and-that-of-the-longest"),
    ],
)
@pytest.mark.parametrize("phase_s", [0, 7, 14])
def test_jobs_that_wait_until_they_expire_are_told(longest_s: int, fires: bool, phase_s: int) -> None:
    prometheus = Prometheus()
    for second in range(0, AN_HOUR_S, int(SCRAPE_EVERY_S)):
        age_s = (second + phase_s) % longest_s
        prometheus.scraped(second, gauge("paywatch_queue_oldest_job_seconds", age_s, role="listener"))
    assert prometheus.fires(RULES["QueueStuck"]) == ({frozenset({("role", "listener")})} if fires else set())


# --- pools


async def test_one_full_pool_is_told_beside_an_empty_one_and_two_half_full_ones_are_not(tmp_path: Path) -> None:
    """In embedded mode the server's and the workers' are in one process."""
    full, other = (Database(f"sqlite+aiosqlite:///{tmp_path / name}.db") for name in ("full", "other"))
    prometheus = Prometheus()

    async def use(held: AsyncExitStack, db: Database, connections: int) -> None:
        for _ in range(connections):
            session: Any = await held.enter_async_context(db.read())
            await session.connection()

    def pass_minutes(after_s: float) -> None:
        for number in range(9):
            prometheus.scraped(after_s + number * SCRAPE_EVERY_S, scrape("paywatch_db_pool_use_ratio"))

    try:
        async with AsyncExitStack() as held:
            await use(held, full, limits.DB_POOL_SIZE // 2)
            await use(held, other, limits.DB_POOL_SIZE // 2)
            pass_minutes(0)
            assert not prometheus.fires(RULES["PoolExhausted"])
        async with AsyncExitStack() as held:
            await use(held, full, limits.DB_POOL_SIZE + limits.DB_POOL_OVERFLOW)
            pass_minutes(200)
            assert prometheus.fires(RULES["PoolExhausted"]) == {frozenset({("instance", "one")})}
        pass_minutes(400)
        assert not prometheus.ask(RULES["PoolExhausted"]["expr"], 500)
    finally:
        await full.close()
        await other.close()

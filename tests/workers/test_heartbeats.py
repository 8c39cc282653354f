"""Goal: a role lives while any of its workers does, whoever else stops, and one that does nothing has no heartbeat."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from app.core import limits, pulse, queue
from app.core.chains import Sweep
from app.services.gateway import Gateway
from app.services.status import health
from app.workers.runner import run_workers
from tests.support.gateway import chains_of

# arq closes its pool under a name that redis calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")

DEADLINE_S = 60.0


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await holds():
            await asyncio.sleep(0.02)


async def test_a_rolling_restart_leaves_the_role_alive(gateway: Gateway, redis_url: str) -> None:
    settings, chains, redis = gateway.context.settings, gateway.context.chains, gateway.wake_ups.redis
    stops = [asyncio.Event(), asyncio.Event()]
    workers = [asyncio.create_task(run_workers(settings, chains, redis_url, ["listener"], stop)) for stop in stops]

    async def living() -> int:
        return await pulse.count_alive(redis, "listener")

    async def is_well() -> bool:
        checks = {check.name: check.status for check in (await health(gateway.context, gateway.wake_ups)).checks}
        return checks["worker:listener"] == "ok"

    try:
        await until(lambda: _equals(living(), 2))
        stops[0].set()
        await workers[0]
        assert await living() == 1
        assert await is_well()
    finally:
        for stop in stops:
            stop.set()
        await asyncio.gather(*workers)
    assert await living() == 0  # whoever stops says so
    assert not await is_well()


@pytest.mark.parametrize("which", ["one-under-way", "one-that-comes-due"])
async def test_no_heartbeat_outlives_the_farewell(
    gateway: Gateway, redis_url: str, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """A slow Redis, as on a busy machine: the last beat is there before the worker is forgotten, or never."""
    beat, farewell = pulse.beat, pulse.stop
    beats, under_way, stop = 0, asyncio.Event(), asyncio.Event()

    async def slow_beat(*who: Any) -> None:
        nonlocal beats
        beats += 1
        if beats > 1 and which == "one-under-way":
            under_way.set()
            await asyncio.sleep(0.3)
        await beat(*who)

    async def slow_farewell(*who: Any) -> None:
        await farewell(*who)
        await asyncio.sleep(0.3)

    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(pulse, "beat", slow_beat)
    monkeypatch.setattr(pulse, "stop", slow_farewell)
    settings, chains, redis = gateway.context.settings, gateway.context.chains, gateway.wake_ups.redis
    worker = asyncio.create_task(run_workers(settings, chains, redis_url, ["listener"], stop))
    try:
        if which == "one-under-way":
            await until(lambda: _equals(_value(under_way.is_set()), True))
        else:
            await until(lambda: _equals(pulse.count_alive(redis, "listener"), 1))
    finally:
        stop.set()
        await worker
    assert await pulse.count_alive(redis, "listener") == 0


async def test_a_worker_that_says_nothing_any_more_is_forgotten(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = gateway.wake_ups.redis
    await pulse.beat(redis, "webhook", "killed")
    assert await pulse.count_alive(redis, "webhook") == 1
    monkeypatch.setattr(limits, "HEARTBEAT_EXPIRE_S", -1)
    assert await pulse.count_alive(redis, "webhook") == 0
    monkeypatch.setattr(limits, "HEARTBEAT_EXPIRE_S", 1)
    await pulse.beat(redis, "webhook", "killed")
    await until(lambda: _equals(redis.exists(pulse.heartbeats_key("webhook")), 0))


@pytest.mark.parametrize("is_swept", [True, False], ids=["no-key", "nothing-to-sweep"])
async def test_a_sweeper_that_cannot_sweep_stays_and_has_no_heartbeat(
    gateway: Gateway, redis_url: str, is_swept: bool
) -> None:
    [chain] = gateway.context.chains.enabled
    sweep = Sweep(mode="auto", treasury=b"\x7e" * 20) if is_swept else Sweep(mode="off")
    settings = gateway.context.settings.model_copy(update={"mnemonic": None})
    stop = asyncio.Event()
    chains = chains_of(replace(chain, sweep=sweep))
    roles = ["listener", "sweeper"]
    worker = asyncio.create_task(run_workers(settings, chains, redis_url, roles, stop))
    alone = asyncio.create_task(run_workers(settings, chains, redis_url, ["sweeper"], stop))
    redis = queue.connect(redis_url)
    try:
        await until(lambda: _equals(pulse.count_alive(redis, "listener"), 1))
        assert await pulse.count_alive(redis, "sweeper") == 0
        assert not alone.done()  # whoever supervises it would start it again and again
    finally:
        stop.set()
        await asyncio.gather(worker, alone)
        await redis.aclose(close_connection_pool=True)


async def _value(value: object) -> object:
    return value


async def _equals(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted

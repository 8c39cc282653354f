"""Goal: embedded mode's Redis comes back, however often a restart fails, and is gone when the server is."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.core import limits
from app.workers import embedded
from app.workers.embedded import embedded_redis


class Starts:
    """Every Redis that was started, and what is in the way of the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.processes: list[asyncio.subprocess.Process] = []
        self.tries = 0
        self.refused = 0
        self._start = asyncio.create_subprocess_exec
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._started)

    async def _started(self, *arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        self.tries += 1
        if self.refused > 0:
            self.refused -= 1
            raise OSError(12, "Cannot allocate memory")
        self.processes.append(await self._start(*arguments, **options))
        return self.processes[-1]

    def kill(self) -> None:
        os.kill(self.processes[-1].pid, signal.SIGKILL)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    monkeypatch.setattr(limits, "WORKER_RESTART_S", 0.05)
    return Starts(monkeypatch)


async def answers(url: str) -> bool:
    client = Redis(unix_socket_path=url.removeprefix("unix://"))
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def test_a_redis_that_dies_comes_back_although_its_restarts_are_refused_or_slow(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded_redis() as url:
        assert await answers(url)
        monkeypatch.setattr(limits, "EMBEDDED_REDIS_START_S", 0.0)
        starts.refused = 2
        starts.kill()
        await until(lambda: starts.tries > 4)
        monkeypatch.setattr(limits, "EMBEDDED_REDIS_START_S", 60.0)
        async with asyncio.timeout(60):
            while not await answers(url):
                await asyncio.sleep(0.05)
    assert all(process.returncode is not None for process in starts.processes)


async def test_a_server_ends_well_while_its_redis_does_not_come_back(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with embedded_redis():
        monkeypatch.setattr(limits, "EMBEDDED_REDIS_START_S", 0.0)
        starts.kill()
        await until(lambda: starts.tries > 2)
    assert all(process.returncode is not None for process in starts.processes)


async def test_a_redis_that_is_just_starting_is_ended_too(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_client: Redis) -> bool:
        return False

    async with embedded_redis():
        monkeypatch.setattr("app.workers.embedded._answers", silent)
        starts.kill()
        await until(lambda: len(starts.processes) > 1)
    assert all(process.returncode is not None for process in starts.processes)


async def test_a_redis_that_is_just_being_ended_is_waited_for(starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did not start in time, and the server ends meanwhile."""
    begun, goes_on, stop = asyncio.Event(), asyncio.Event(), embedded._stop

    async def slow(process: asyncio.subprocess.Process) -> None:
        begun.set()
        await goes_on.wait()
        await stop(process)

    async with embedded_redis():
        monkeypatch.setattr(embedded, "_stop", slow)
        monkeypatch.setattr(limits, "EMBEDDED_REDIS_START_S", 0.0)
        starts.kill()
        await begun.wait()
        asyncio.get_running_loop().call_later(0.1, goes_on.set)
    assert all(process.returncode is not None for process in starts.processes)

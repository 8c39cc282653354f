"""Ranges that are fetched while the one before them is written."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from app.blockchain.blocks import BlockRun
from app.blockchain.rpc import Endpoint


class Ahead:
    """At most one range per chain is on its way; one that nobody takes costs a request and changes nothing."""

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[Endpoint, int, asyncio.Task[BlockRun]]] = {}

    def start(self, chain_id: int, endpoint: Endpoint, first: int, fetch: Coroutine[Any, Any, BlockRun]) -> None:
        self._drop(chain_id)
        task = asyncio.create_task(fetch)
        task.add_done_callback(_look_at)
        self._tasks[chain_id] = (endpoint, first, task)

    def take(self, chain_id: int, endpoint: Endpoint, first: int) -> asyncio.Task[BlockRun] | None:
        """The range that begins at `first`, if it was asked of the same endpoint; any other is dropped."""
        if chain_id not in self._tasks:
            return None
        asked, at, task = self._tasks[chain_id]
        if asked is endpoint and at == first and not task.cancelled():
            del self._tasks[chain_id]
            return task
        self._drop(chain_id)
        return None

    def close(self) -> None:
        for chain_id in list(self._tasks):
            self._drop(chain_id)

    def _drop(self, chain_id: int) -> None:
        if chain_id in self._tasks:
            self._tasks.pop(chain_id)[2].cancel()


def _look_at(task: asyncio.Task[BlockRun]) -> None:
    """Retrieve the exception of a range that nobody takes: whoever needs the range asks again and sees it then."""
    if not task.cancelled():
        task.exception()

"""Kills what runs at any of its awaits: requests to the node, SQL statements, commits."""

import asyncio
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import event

from tests.services.blockchain.requests import Requests
from tests.services.blockchain.watch import Watch

KILLS_MAX = 400  # of one story: more awaits than that in one step would be a story of its own


class Killed(asyncio.CancelledError):
    """The worker's task is cancelled right here, as when its process is told to stop."""


class Killer:
    """Kills a step or a round at its n-th point: before or after each request, each SQL statement and each commit."""

    def __init__(self, watch: Watch, requests: Requests) -> None:
        self._engine = watch.context.db.engine.sync_engine
        self._dialect = self._engine.dialect
        self._requests = requests
        self._left: int | None = None
        self.struck = False

    @contextmanager
    def at(self, point: int) -> Any:
        """Within it the `point`-th point kills; `struck` says whether it came to that."""
        self._left, self.struck = point, False
        try:
            yield
        finally:
            self._left = None

    def _pass(self, *_: Any) -> None:
        if self._left is None:
            return
        self._left -= 1
        if self._left == 0:
            self._left, self.struck = None, True
            raise Killed

    async def _pass_request(self, _methods: set[str]) -> None:
        self._pass()

    async def _pass_answer(self, _methods: set[str], body: bytes) -> bytes:
        self._pass()
        return body

    def __enter__(self) -> "Killer":
        event.listen(self._engine, "before_cursor_execute", self._pass)
        event.listen(self._engine, "after_cursor_execute", self._pass)
        commit = self._commit = self._dialect.do_commit

        def do_commit(connection: Any) -> None:
            self._pass()
            commit(connection)
            self._pass()

        self._dialect.do_commit = do_commit  # type: ignore[method-assign]
        self._requests.on_request, self._requests.on_answer = self._pass_request, self._pass_answer
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._pass)
        event.remove(self._engine, "after_cursor_execute", self._pass)
        self._dialect.do_commit = self._commit  # type: ignore[method-assign]
        self._requests.on_request = self._requests.on_answer = None


async def kill_at_every_point(watch: Watch, requests: Requests) -> int:
    """Steps until one has nothing left to do, each step killed at its first point, its second, and so on.

    What is stored is in order after every kill. Returns how many there were.
    """
    kills, point = 0, 1
    with Killer(watch, requests) as killer:
        for _ in range(KILLS_MAX):
            before = await watch.state()
            with killer.at(point), suppress(Killed):
                await watch.step()
            struck = killer.struck
            kills += struck
            await watch.audit(against_node=False)
            after = await watch.state()
            if after.last_scanned_hash != before.last_scanned_hash:
                point = 1
            elif struck:
                point += 1
            else:
                return kills
    raise AssertionError("the steps never came to rest")

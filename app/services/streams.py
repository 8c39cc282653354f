"""Open streams of payments: who may have one, and when a payment that somebody waits for has changed."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from app.core import limits
from app.core.errors import RateLimited, ServiceUnavailable
from app.core.logger import get_logger
from app.db.engine import Database
from app.db.repositories import events, payments
from app.services.events import EventView, event_view

log = get_logger(__name__)


@dataclass(eq=False)
class _Waiter:
    payment_id: str
    version: int
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Streams:
    """All streams of one process. One query every `STREAM_POLL_S` serves them together; none holds a connection."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._open: Counter[str] = Counter()
        self._waiting: set[_Waiter] = set()
        self._watcher: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def place(self, address: str) -> Iterator[None]:
        """Room for one more stream of a client's address. Raises RateLimited, or ServiceUnavailable."""
        if self._closed or self._open.total() >= limits.STREAMS_MAX:
            raise ServiceUnavailable("no more streams here; ask GET /v1/payments/{id} instead, or try again")
        if self._open[address] >= limits.STREAMS_PER_ADDRESS:
            raise RateLimited(
                f"at most {limits.STREAMS_PER_ADDRESS} streams at a time from one address",
                retry_after_s=limits.STREAM_RETRY_S,
            )
        self._open[address] += 1
        try:
            yield
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    async def follow(self, payment_id: str, version: int) -> AsyncIterator[EventView | None]:
        """A payment's events after `version`, as they come; None is a heartbeat. It ends after `STREAM_LIFE_S`."""
        ends_at = time.monotonic() + limits.STREAM_LIFE_S
        while not self._closed and time.monotonic() < ends_at:
            async with self._db.read() as session:
                rows = await events.list_of_payment(session, payment_id, version, limits.PAGE_MAX)
            for row in rows:
                version = row.version
                yield event_view(row)
            if not rows and not await self._changed(payment_id, version):
                yield None

    def close(self) -> None:
        """End all streams, and begin none."""
        self._closed = True
        for waiter in self._waiting:
            waiter.changed.set()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _changed(self, payment_id: str, version: int) -> bool:
        """Wait until the payment's version is past `version`, for one heartbeat at most."""
        if self._closed:
            return True
        waiter = _Waiter(payment_id, version)
        self._waiting.add(waiter)
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(limits.STREAM_HEARTBEAT_S):
                await waiter.changed.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(waiter)
        return True

    async def _watch(self) -> None:
        """Wake whoever waits for a payment that has changed, for as long as anybody waits."""
        while self._waiting:
            try:
                async with self._db.read() as session:
                    versions = await payments.versions(session, {waiter.payment_id for waiter in self._waiting})
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.warning("streams wait for the database", reason=type(error).__name__)
                versions = {}
            for waiter in self._waiting:
                if versions.get(waiter.payment_id, 0) > waiter.version:
                    waiter.changed.set()
            await asyncio.sleep(limits.STREAM_POLL_S)

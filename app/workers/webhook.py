"""The webhook's sender and its tasks."""

import asyncio
import contextlib
import time
from typing import Any

import httpx
import structlog
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError, SQLAlchemyError

from app.core import limits
from app.core.logger import get_logger, report_error
from app.core.queue import HOUSEKEEPING_TASK, WEBHOOK_TASK
from app.services.context import Context
from app.services.idempotency import forget_old
from app.services.webhook import DueDelivery, Outcome, claim, forget_silent, record, send
from app.services.webhook_backlog import end_some
from app.workers.job import job

log = get_logger(__name__)


class Sender:
    """Sends what is due, from one loop for the whole process.

    Each request is a task of its own, so that one that waits for its receiver holds up neither the next claim nor an
    ARQ job; at most `WEBHOOK_CONNECTIONS` are under way. The loop alone writes: what ended since its last turn, in one
    transaction. Redis only wakes it: it looks by itself every `WEBHOOK_TICK_S` for retries that have become due and
    for what a lost wake-up or a dead sender left.
    """

    def __init__(self, context: Context, client: httpx.AsyncClient) -> None:
        self.context = context
        self._client = client
        self._woken = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._ended: list[Outcome] = []

    def wake(self) -> None:
        self._woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop` is set; what is under way may end within `WORKER_STOP_S`, then gives its leases back."""
        structlog.contextvars.bind_contextvars(task=WEBHOOK_TASK)  # of this asyncio task alone, and those it makes
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self.wake())
        ending = asyncio.create_task(self._end_backlogs(stop))
        try:
            while not stop.is_set():
                self._woken.clear()
                if not await self._turn():
                    await self._rest()
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=limits.WORKER_STOP_S)
        finally:
            stopping.cancel()
            for task in (ending, *self._under_way):
                task.cancel()
            await asyncio.gather(ending, *self._under_way, return_exceptions=True)
            await self._write()

    async def _turn(self) -> int:
        """Record what has ended, then claim and begin what is due and there is room for; returns how many."""
        if not await self._write():
            return 0
        room = limits.WEBHOOK_CONNECTIONS - len(self._under_way)
        if room == 0:
            return 0
        try:
            claimed = await claim(self.context, room)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.error("claiming webhooks failed", reason=f"{type(error).__name__}: {error}")
            return 0
        for delivery in claimed:
            task = asyncio.create_task(self._send(delivery))
            self._under_way.add(task)
            task.add_done_callback(self._done)
        return len(claimed)

    async def _write(self) -> bool:
        """Record what has ended. While the database is away it is kept, nothing more is claimed, and False is told."""
        ended = list(self._ended)
        if not ended:
            return True
        try:
            await record(self.context, ended)
        except (DataError, IntegrityError, ProgrammingError) as error:  # would fail again; the leases end by themselves
            report_error(log, error, deliveries=[each.delivery.id for each in ended])
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.error("recording webhooks failed", reason=f"{type(error).__name__}: {error}")
            return False
        del self._ended[: len(ended)]
        return True

    async def _send(self, delivery: DueDelivery) -> None:
        structlog.contextvars.bind_contextvars(payment=delivery.payment_id, delivery=delivery.id)
        try:
            self._ended.append(Outcome(delivery, await send(self.context, self._client, delivery)))
        except asyncio.CancelledError:
            self._ended.append(Outcome(delivery, None))
            raise

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            report_error(log, error)
        self.wake()  # its receiver has room for the next one

    async def _end_backlogs(self, stop: asyncio.Event) -> None:
        """End what receivers that get nothing more are still owed. It waits for nobody, and nobody waits for it."""
        while not stop.is_set():
            ended = 0
            try:
                ended = await end_some(self.context)
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                log.error("ending webhooks failed", reason=f"{type(error).__name__}: {error}")
            except Exception as error:  # noqa: BLE001 it is reported, and the next turn tries again
                report_error(log, error)
            with contextlib.suppress(TimeoutError):
                pause_s = limits.BATCH_PAUSE_S if ended else limits.WEBHOOK_TICK_S
                await asyncio.wait_for(stop.wait(), pause_s)

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), limits.WEBHOOK_TICK_S)


@job(WEBHOOK_TASK)
async def send_webhook_task(ctx: dict[str, Any]) -> None:
    """Something may be due."""
    sender: Sender = ctx["sender"]
    sender.wake()


@job(HOUSEKEEPING_TASK)
async def housekeeping(ctx: dict[str, Any]) -> None:
    """Forget what is no longer needed: old failures of receivers, and the answers of old idempotency keys.

    In batches, for `HOUSEKEEPING_S`; what is left then is the next turn's.
    """
    sender: Sender = ctx["sender"]
    until = time.monotonic() + limits.HOUSEKEEPING_S
    for forget in (forget_silent, forget_old):
        while time.monotonic() < until:
            async with sender.context.db.write() as session:
                forgotten = await forget(session)
            if forgotten < limits.HOUSEKEEPING_ROWS:
                break
            await asyncio.sleep(limits.BATCH_PAUSE_S)

"""Runs the workers of some roles in this process until it is told to stop."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

from arq.worker import Function, Worker, func
from redis.exceptions import RedisError

from app.core import limits, metrics, pulse, queue
from app.core.chains import ChainsFile
from app.core.config import Settings
from app.core.logger import get_logger
from app.core.netguard import guarded_client
from app.core.queue import WakeUps
from app.core.vitals import keep_vitals
from app.services.blockchain.endpoints import ask_spares, tell_endpoints
from app.services.blockchain.heads import follow_heads
from app.services.blockchain.sweeper import swept_chains
from app.services.context import open_context
from app.workers.audit import backup_pass_task, reconcile_task
from app.workers.job import Task
from app.workers.listener import Listener, listen_for_payments
from app.workers.sweeper import load_sweeper, sweep_funds
from app.workers.webhook import Sender, housekeeping, send_webhook_task

log = get_logger(__name__)

TASKS: dict[str, dict[str, Task]] = {
    "listener": {
        queue.LISTEN_TASK: listen_for_payments,
        queue.BACKUP_TASK: backup_pass_task,
        queue.RECONCILE_TASK: reconcile_task,
    },
    "webhook": {queue.WEBHOOK_TASK: send_webhook_task, queue.HOUSEKEEPING_TASK: housekeeping},
    "sweeper": {queue.SWEEP_TASK: sweep_funds},
}
# arq keeps a dead worker's claim for the longest timeout of its role and 10 s more: both stay under 30 s.
JOB_TIMEOUT_S = {
    "listener": limits.LISTENER_JOB_TIMEOUT_S,
    "webhook": limits.WEBHOOK_JOB_TIMEOUT_S,
    "sweeper": limits.SWEEPER_JOB_TIMEOUT_S,
}


async def run_workers(
    settings: Settings, chains: ChainsFile, redis_url: str, roles: Collection[str], stop: asyncio.Event
) -> None:
    """Work until `stop` is set, then finish what is running within `WORKER_STOP_S`.

    Redis may come and go: each role's worker is started anew until it holds.
    """
    context = open_context(settings, chains)
    sweeper = await load_sweeper(context) if "sweeper" in roles else None
    wake_ups = WakeUps(queue.connect(redis_url))
    client = guarded_client(context.guard)
    sender = Sender(context, client)
    ctx = {"listener": Listener(context, wake_ups), "sender": sender, "sweeper": sweeper}
    # Nobody takes the sweeper's jobs without a key, so that no heartbeat says that somebody does.
    works = [role for role in TASKS if role in roles and (role != "sweeper" or sweeper is not None)]
    running: list[Coroutine[Any, Any, object]] = [_supervise(role, ctx, redis_url, stop) for role in works]
    running.append(stop.wait())
    background = [asyncio.create_task(keep_vitals(wake_ups.redis, ",".join(sorted(roles))))]
    if "listener" in roles:
        background.append(asyncio.create_task(tell_endpoints(context, wake_ups.redis)))
        background.append(asyncio.create_task(ask_spares(context)))
        for chain in chains.enabled:
            metrics.known_chain(chain.name)
            running.append(_tick(partial(wake_ups.listener, chain.name), chain.poll_interval_s, stop))
            running.append(_tick(partial(wake_ups.backup_pass, chain.name), limits.BACKUP_EVERY_S, stop))
            running.append(_tick(partial(wake_ups.reconcile, chain.name), limits.RECONCILE_EVERY_S, stop))
            background.append(asyncio.create_task(follow_heads(chain, wake_ups.listener)))
    if "webhook" in roles:
        running.append(sender.run(stop))
        running.append(_tick(wake_ups.housekeeping, limits.HOUSEKEEPING_EVERY_S, stop))
    if sweeper is not None:
        running += [
            _tick(partial(wake_ups.sweeper, chain.name), chain.sweep.interval_s, stop)
            for chain in swept_chains(context)
        ]
    log.info("workers started", roles=sorted(roles), chains=[chain.name for chain in chains.enabled])
    try:
        await asyncio.gather(*running)
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await client.aclose()
        await wake_ups.close()
        await context.close()
        log.info("workers stopped")


async def _tick(wake: Callable[[], Awaitable[None]], interval_s: float, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await wake()
        await _pause(stop, interval_s)


class _Worker(Worker):
    """Its heartbeat is its own. arq's would be one key for all workers of the role, which any of them deletes."""

    def __init__(self, role: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._role, self._id, self._beat_at = role, secrets.token_hex(8), float("-inf")
        self._beating = asyncio.Lock()  # one that is under way, or begins later, would outlive the farewell
        self._ends = False

    async def record_health(self) -> None:
        async with self._beating:
            if not self._ends and time.monotonic() - self._beat_at >= limits.HEARTBEAT_S:
                self._beat_at = time.monotonic()
                await pulse.beat(self.pool, self._role, self._id)

    async def close(self) -> None:
        async with self._beating:
            self._ends = True
            with contextlib.suppress(RedisError, OSError):
                await pulse.stop(self.pool, self._role, self._id)
        await super().close()


async def _supervise(role: str, ctx: dict[str, Any], redis_url: str, stop: asyncio.Event) -> None:
    while not stop.is_set():
        worker = _Worker(
            role,
            functions=_functions(role),
            queue_name=queue.queue_name(role),
            redis_pool=queue.connect(redis_url),
            handle_signals=False,
            max_jobs=limits.JOBS_AT_ONCE,
            job_timeout=JOB_TIMEOUT_S[role],
            keep_result=0,
            poll_delay=limits.JOB_POLL_S,
            ctx=dict(ctx),
            log_results=False,
        )
        running = asyncio.create_task(worker.async_run())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:  # when cancelled too: an arq worker that nobody stops goes on
            stopping.cancel()
            await _stop_worker(worker)
            [ended] = await asyncio.gather(running, return_exceptions=True)
        if isinstance(ended, RedisError | OSError):
            log.warning("worker lost redis", role=role, reason=type(ended).__name__)
        elif isinstance(ended, BaseException) and not stop.is_set():
            raise ended  # at the stop arq's loop sometimes takes one more turn, on the pool that it has closed
        await _pause(stop, limits.WORKER_RESTART_S)
    log.info("worker stopped", role=role)


def _functions(role: str) -> Sequence[Function]:
    timeout_s = JOB_TIMEOUT_S[role]
    return [
        func(task, name=name, timeout=timeout_s, keep_result=0, max_tries=limits.JOB_TRIES)  # type: ignore[arg-type]
        for name, task in TASKS[role].items()
    ]


async def _stop_worker(worker: Worker) -> None:
    """Take no new jobs, let the running ones finish for a while, then cancel them: each is safe to drop anywhere."""
    worker.allow_pick_jobs = False
    if worker.tasks:
        await asyncio.wait(worker.tasks.values(), timeout=limits.WORKER_STOP_S)
    with contextlib.suppress(asyncio.CancelledError, RedisError, OSError):
        await worker.close()


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)

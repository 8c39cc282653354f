"""Redis carries wake-ups: each role has an ARQ queue, and losing one costs time, never money."""

import asyncio
import time
from typing import Final

from arq.connections import ArqRedis
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from app.core import limits, pulse
from app.core.logger import get_logger

log = get_logger(__name__)

ROLES: Final = ("listener", "webhook", "sweeper")
LISTEN_TASK: Final = "listen_for_payments"
WEBHOOK_TASK: Final = "send_webhook_task"
BACKUP_TASK: Final = "backup_pass"
RECONCILE_TASK: Final = "reconcile"
SWEEP_TASK: Final = "sweep_funds"
HOUSEKEEPING_TASK: Final = "housekeeping"
VITALS_PREFIX: Final = "paywatch:vitals:"
ENDPOINTS_PREFIX: Final = "paywatch:endpoints:"


def queue_name(role: str) -> str:
    return f"paywatch:{role}"


def vitals_key(host: str, pid: int, role: str) -> str:
    """Where a process tells how it is (`app.core.vitals`); the key ends by itself."""
    return f"{VITALS_PREFIX}{host}:{pid}:{role}"


def endpoints_key(host: str, pid: int) -> str:
    """Where a listener tells how its chains' endpoints are; the key ends by itself."""
    return f"{ENDPOINTS_PREFIX}{host}:{pid}"


def connect(redis_url: str) -> ArqRedis:
    """A client that connects when it is first used. Give it back with `aclose()`."""
    pool = ConnectionPool.from_url(
        redis_url,
        socket_connect_timeout=limits.REDIS_CONNECT_TIMEOUT_S,
        socket_timeout=limits.REDIS_TIMEOUT_S,
        health_check_interval=limits.REDIS_HEALTH_CHECK_S,
    )
    return ArqRedis(pool_or_conn=pool)


class WakeUps:
    """Wakes workers after a commit. A failure is logged and otherwise ignored: the periodic jobs find the work."""

    def __init__(self, redis: ArqRedis) -> None:
        self.redis = redis
        self._rests_until = 0.0

    async def webhooks(self) -> None:
        """Wake a webhook sender. Requests wait for this, so a Redis that hangs is asked briefly and then left alone."""
        if time.monotonic() < self._rests_until:
            return
        timeout_s = limits.WAKE_UP_TIMEOUT_S
        if not await self._enqueue(WEBHOOK_TASK, role="webhook", job_id=None, timeout_s=timeout_s):
            self._rests_until = time.monotonic() + limits.WAKE_UP_REST_S

    async def listener(self, chain: str) -> None:
        """Let a worker look at a chain; one job per chain at a time, whoever asks."""
        await self._enqueue(LISTEN_TASK, chain, role="listener", job_id=f"listen:{chain}")

    async def backup_pass(self, chain: str) -> None:
        await self._enqueue(BACKUP_TASK, chain, role="listener", job_id=f"backup:{chain}")

    async def reconcile(self, chain: str) -> None:
        await self._enqueue(RECONCILE_TASK, chain, role="listener", job_id=f"reconcile:{chain}")

    async def sweeper(self, chain: str) -> None:
        """Let the sweeper have a round on a chain; one job per chain at a time."""
        await self._enqueue(SWEEP_TASK, chain, role="sweeper", job_id=f"sweep:{chain}")

    async def housekeeping(self) -> None:
        await self._enqueue(HOUSEKEEPING_TASK, role="webhook", job_id="housekeeping")

    async def _enqueue(
        self, task: str, *args: str, role: str, job_id: str | None, timeout_s: float | None = None
    ) -> bool:
        """Whether Redis took it, within `timeout_s`; None: REDIS_TIMEOUT_S for each command."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.redis.enqueue_job(
                    task, *args, _job_id=job_id, _queue_name=queue_name(role), _expires=limits.JOB_EXPIRES_S
                )
            if job_id is not None:  # periodic
                await pulse.asked(self.redis, task, *args or ("",))
        except (RedisError, OSError) as error:
            log.warning("wake-up lost", wakes=task, reason=type(error).__name__)
            return False
        return True

    async def close(self) -> None:
        await self.redis.aclose(close_connection_pool=True)

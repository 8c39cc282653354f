"""Rate limits, counted in Redis for all processes together. Without Redis requests pass."""

import asyncio
import math
import time

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from app.core import limits
from app.core.config import RequestRate
from app.core.errors import RateLimited
from app.core.logger import get_logger

log = get_logger(__name__)


class Throttle:
    """Counts each caller's requests in fixed windows: the first request opens one. `rate` None lets all pass.

    It connects when it is first used, and has connections of its own, without a `socket_timeout`: redis-py makes a
    task of every command for that, a twentieth of a request's CPU, and `hit` has a timeout around all.
    """

    def __init__(self, redis_url: str, rate: RequestRate | None) -> None:
        self._pool = ConnectionPool.from_url(
            redis_url,
            socket_connect_timeout=limits.REDIS_CONNECT_TIMEOUT_S,
            health_check_interval=limits.REDIS_HEALTH_CHECK_S,
        )
        self._item = None if rate is None else RateLimitItemPerSecond(rate.requests, rate.period_s)
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix="paywatch:rate",
            connection_pool=self._pool,  # type: ignore[arg-type]  # documented, but not typed
        )
        self._limiter = FixedWindowRateLimiter(storage)
        self._rests_until = 0.0

    async def hit(self, caller: str) -> None:
        """Count a request of a caller; one round trip. Raises RateLimited when it is one too many."""
        if self._item is None or time.monotonic() < self._rests_until:
            return
        try:
            async with asyncio.timeout(limits.RATE_LIMIT_TIMEOUT_S):
                if await self._limiter.hit(self._item, caller):
                    return
                ends_at, _ = await self._limiter.get_window_stats(self._item, caller)
        except (RedisError, OSError, TimeoutError) as error:
            self._rests_until = time.monotonic() + limits.RATE_LIMIT_REST_S
            log.warning("requests are not limited for now", reason=type(error).__name__)
            return
        wait_s = max(1, math.ceil(ends_at - time.time()))
        amount, period_s = self._item.amount, self._item.get_expiry()
        raise RateLimited(f"more than {amount} requests in {period_s} s; wait {wait_s} s", retry_after_s=wait_s)

    async def close(self) -> None:
        await self._pool.aclose()

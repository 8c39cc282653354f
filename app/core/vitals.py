"""How a process is, told to Redis with each heartbeat, so that the doctor can ask whoever runs."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from app import __version__
from app.core import limits, metrics, queue
from app.core.clock import rfc3339, utc_now

if TYPE_CHECKING:
    from arq.connections import ArqRedis


@dataclass(frozen=True, slots=True)
class Vitals:
    """One process. `loop_lag_s`: the worst of its last heartbeat; `rss_bytes`: resident memory, 0 where unknown.

    `pool_in_use`: database connections that were in use all through it, of the fullest of its pools, which has
    `pool_limit` in all.
    """

    host: str
    pid: int
    role: str
    loop_lag_s: float
    rss_bytes: int
    pool_in_use: int
    pool_limit: int
    started_at: str
    version: str

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> "Vitals":
        """From a hash of Redis. Raises ValueError or KeyError for one of another version's form."""
        return cls(
            host=fields["host"],
            pid=int(fields["pid"]),
            role=fields["role"],
            loop_lag_s=float(fields["loop_lag_s"]),
            rss_bytes=int(fields["rss_bytes"]),
            pool_in_use=int(fields["pool_in_use"]),
            pool_limit=int(fields["pool_limit"]),
            started_at=fields["started_at"],
            version=fields["version"],
        )


async def keep_vitals(redis: "ArqRedis", role: str) -> None:
    """Tell this process's vitals every `HEARTBEAT_S`. Runs until cancelled; without Redis it tries again."""
    host, pid, started_at, version = socket.gethostname(), os.getpid(), rfc3339(utc_now()), __version__
    key = queue.vitals_key(host, pid, role)
    lag_s, pool_in_use = 0.0, 0
    while True:
        fields = {
            "host": host,
            "pid": str(pid),
            "role": role,
            "loop_lag_s": f"{lag_s:.3f}",
            "rss_bytes": str(_rss_bytes()),
            "pool_in_use": str(pool_in_use),
            "pool_limit": str(int(metrics.DB_POOL_LIMIT.largest())),
            "started_at": started_at,
            "version": version,
        }
        try:
            async with redis.pipeline() as pipeline:
                pipeline.hset(key, mapping=fields)
                pipeline.expire(key, limits.VITALS_EXPIRE_S)
                await pipeline.execute()
        except (RedisError, OSError):
            pass  # who is away is said by those who need it
        lag_s, pool_in_use = await _one_heartbeat()


async def _one_heartbeat() -> tuple[float, int]:
    """Over one heartbeat, how late the loop came back at worst, and how many connections were always in use."""
    worst_s, least = 0.0, _pool_in_use()
    until = time.monotonic() + limits.HEARTBEAT_S
    while (due := time.monotonic() + limits.VITALS_TICK_S) <= until + limits.VITALS_TICK_S:
        await asyncio.sleep(limits.VITALS_TICK_S)
        worst_s, least = max(worst_s, time.monotonic() - due), min(least, _pool_in_use())
    return worst_s, least


def _pool_in_use() -> int:
    return int(metrics.DB_POOL_CONNECTIONS.largest("in_use"))


def _rss_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # its peak, where the present is not told

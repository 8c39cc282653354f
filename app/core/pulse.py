"""Signs of life in Redis: which workers live, and when each task last did what it is for. All by Redis' own clock.

A heartbeat is of one worker of one process, so that whoever stops takes only its own along. A task counts as done when
it did its work, not when it was put off; before the first time, since it was first asked for.
"""

from typing import Final

from redis.asyncio import Redis

from app.core import limits

_RUNS: Final = "paywatch:runs"
_DIFFERENCES: Final = "paywatch:differences"


def heartbeats_key(role: str) -> str:
    """A sorted set of workers by the time of their last heartbeat; it ends by itself."""
    return f"paywatch:{role}:heartbeats"


async def beat(redis: Redis, role: str, worker: str) -> None:
    """Tell that this worker lives, and forget those that have not for long."""
    now_s, key = await _now_s(redis), heartbeats_key(role)
    async with redis.pipeline() as pipeline:
        pipeline.zadd(key, {worker: now_s})
        pipeline.zremrangebyscore(key, "-inf", now_s - limits.HEARTBEAT_EXPIRE_S)
        pipeline.expire(key, limits.HEARTBEAT_EXPIRE_S)
        await pipeline.execute()


async def stop(redis: Redis, role: str, worker: str) -> None:
    """Tell that this worker ends."""
    await redis.zrem(heartbeats_key(role), worker)


async def count_alive(redis: Redis, role: str) -> int:
    """Workers of a role with a heartbeat within HEARTBEAT_EXPIRE_S."""
    count: int = await redis.zcount(heartbeats_key(role), await _now_s(redis) - limits.HEARTBEAT_EXPIRE_S, "+inf")
    return count


async def asked(redis: Redis, task: str, chain: str) -> None:
    """Let a task that was never done be late from now on; `chain` is empty for a task that has none."""
    await redis.zadd(_RUNS, {f"{task}:{chain}": await _now_s(redis)}, nx=True)


async def done(redis: Redis, task: str, chain: str) -> None:
    await redis.zadd(_RUNS, {f"{task}:{chain}": await _now_s(redis)})


async def ages_s(redis: Redis) -> dict[tuple[str, str], float]:
    """How long ago each (task, chain) was done, or first asked for."""
    now_s = await _now_s(redis)
    runs = await redis.zrange(_RUNS, 0, -1, withscores=True)
    return {_task_and_chain(member): max(now_s - at_s, 0.0) for member, at_s in runs}


async def tell_differences(redis: Redis, chain: str, count: int) -> None:
    """How many balances differed from the records when the reconciliation of a chain looked last."""
    await redis.zadd(_DIFFERENCES, {chain: count})


async def differences(redis: Redis) -> dict[str, int]:
    """By chain, of those that were looked at since Redis began."""
    found = await redis.zrange(_DIFFERENCES, 0, -1, withscores=True)
    return {chain.decode(): int(count) for chain, count in found}


async def _now_s(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return float(seconds + microseconds / 1e6)


def _task_and_chain(member: bytes) -> tuple[str, str]:
    task, _, chain = member.decode().partition(":")
    return task, chain

"""Whether every periodic task is done as often as it should be: a living worker may have a dead task."""

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from app.core import limits, pulse, queue
from app.services.context import Context


@dataclass(frozen=True, slots=True)
class TaskRun:
    """A task of a chain, or of none (""). `age_s`: since it was last done; None before it was first asked for.

    `late`: that is too long, although its role has a worker; one that has none is said of the role.
    """

    role: str
    task: str
    chain: str
    age_s: float | None
    late: bool

    @property
    def place(self) -> str:
        """Where health and doctor name it: the chain, else the role."""
        return self.chain or self.role


async def task_runs(context: Context, redis: Redis) -> list[TaskRun]:
    """Every periodic task that there must be. Raises RedisError, OSError."""
    ages_s = await pulse.ages_s(redis)
    alive = {role for role in queue.ROLES if await pulse.count_alive(redis, role)}
    found = []
    for role, task, chain, interval_s in _wanted(context):
        age_s = ages_s.get((task, chain))
        late = age_s is not None and age_s > max(limits.TASK_LATE_S, limits.TASK_LATE_ROUNDS * interval_s)
        found.append(TaskRun(role, task, chain, age_s, late and role in alive))
    return found


def told(runs: Sequence[TaskRun]) -> str:
    """In a sentence: the late ones, or all."""
    late = [run for run in runs if run.late]
    named = [f"{run.task} {'not yet' if run.age_s is None else f'{run.age_s:.0f} s ago'}" for run in late or runs]
    return ("last done too long ago: " if late else "last done: ") + ", ".join(named)


def _wanted(context: Context) -> list[tuple[str, str, str, float]]:
    """(role, task, chain, seconds between two of its ticks)."""
    wanted = [("webhook", queue.HOUSEKEEPING_TASK, "", limits.HOUSEKEEPING_EVERY_S)]
    for chain in context.chains.enabled:
        wanted.append(("listener", queue.LISTEN_TASK, chain.name, chain.poll_interval_s))
        wanted.append(("listener", queue.BACKUP_TASK, chain.name, limits.BACKUP_EVERY_S))
        wanted.append(("listener", queue.RECONCILE_TASK, chain.name, limits.RECONCILE_EVERY_S))
        if chain.sweep.mode != "off":
            wanted.append(("sweeper", queue.SWEEP_TASK, chain.name, chain.sweep.interval_s))
    return wanted

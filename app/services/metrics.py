"""What Prometheus is told. docs/monitoring.md says what each metric means.

What the database and Redis know is read when it is asked for, so it is the same whichever process answers. What this
process has counted itself (`app.core.metrics`) follows; it is told whatever is away.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits, pulse
from app.core.clock import utc_now
from app.core.logger import get_logger
from app.core.metrics import NAMESPACE, REGISTRY
from app.core.queue import WakeUps, queue_name
from app.db.repositories import chains, delivery_log, pauses, payments, sweeps
from app.services.context import Context
from app.services.decide import Flag, Status
from app.services.outages import OUTAGES
from app.services.status import ChainStatus, is_swept, list_chains, swept_lanes, switches, wanted_roles
from app.services.task_runs import task_runs

log = get_logger(__name__)

_SWEEP_STATUSES: Final = ("signed", "mined", "confirmed", "failed", "frozen", "released")


async def exposition(context: Context, wake_ups: WakeUps) -> bytes:
    """Everything in Prometheus' text format. Raises nothing for what is away: that is told too."""
    told = _Told()
    database_up, redis_up = await asyncio.gather(
        _tell_database(context, told), _read(_tell_redis(context, wake_ups, told), "redis")
    )
    told.gauge("database_up", "1 while the database answers.").set(database_up)
    told.gauge("redis_up", "1 while Redis answers.").set(redis_up)
    # In a thread: thousands of lines take tens of milliseconds.
    return generate_latest(told.registry) + await asyncio.to_thread(generate_latest, REGISTRY)


class _Told:
    """The metrics of one answer."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, namespace=NAMESPACE, registry=self.registry)

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, namespace=NAMESPACE, registry=self.registry)

    def by_label(self, name: str, meaning: str, label: str, values: Mapping[str, float]) -> None:
        gauge = self.gauge(name, meaning, label)
        for key, value in values.items():
            gauge.labels(key).set(value)


Tell = Callable[[Context, AsyncSession, _Told], Awaitable[None]]


async def _read(telling: Awaitable[None], what: str) -> bool:
    """Whether it could be told in time. What was told until then is true, so it stays."""
    try:
        async with asyncio.timeout(limits.METRICS_READ_S):
            await telling
    except (*OUTAGES, RedisError) as error:
        log.warning("metrics are incomplete", missing=what, reason=type(error).__name__)
        return False
    return True


async def _tell_database(context: Context, told: _Told) -> bool:
    """Whether it answers. One that does, but counts millions of rows too slowly, is not away."""
    if not await _read(_in_session(context, _tell_chains, told), "database"):
        return False
    for tell in (_tell_payments, _tell_webhooks, _tell_sweeps):
        await _read(_in_session(context, tell, told), tell.__name__.removeprefix("_tell_"))
    return True


async def _in_session(context: Context, tell: Tell, told: _Told) -> None:
    async with context.db.read_aside() as session:
        await tell(context, session, told)


async def _tell_chains(context: Context, session: AsyncSession, told: _Told) -> None:
    """A chain whose node was never reached has a state and no numbers."""
    head = told.gauge("chain_head_block", "The newest block that the node has told of.", "chain")
    cursor = told.gauge("chain_cursor_block", "The last scanned block.", "chain")
    lag_blocks = told.gauge("chain_lag_blocks", "Blocks between head and cursor.", "chain")
    lag_seconds = told.gauge("chain_lag_seconds", "For how long the cursor has not been the head.", "chain")
    age = told.gauge("chain_cursor_age_seconds", "How old the last scanned block is, by its own time.", "chain")
    finalized = told.gauge("chain_finalized_block", "Up to here our own chain is known to be final.", "chain")
    backup = told.gauge("chain_backup_block", "Up to here the backup pass has read again.", "chain")
    state = told.gauge("chain_state", "1 for the state that the chain is in.", "chain", "state")
    missed = told.counter(
        "chain_missed_transfers", "Transfers that the scan had missed and a backup pass found.", "chain"
    )
    views, states, now = await list_chains(context, session), await chains.list_states(session), utc_now()
    for chain in views:
        for each in get_args(ChainStatus):
            state.labels(chain.name, each).set(each == chain.state)
        if chain.cursor is not None:
            scanned_time = states[chain.chain_id].last_scanned_time
            age.labels(chain.name).set(max((now - scanned_time).total_seconds(), 0.0))
            head.labels(chain.name).set(chain.head or 0)
            cursor.labels(chain.name).set(chain.cursor)
            lag_blocks.labels(chain.name).set(chain.lag_blocks or 0)
            lag_seconds.labels(chain.name).set(chain.lag_seconds or 0)
    paused = switches(context, {pause.what for pause in await pauses.list_pauses(session)}, states)
    stopped = "1 while an operator has stopped it: webhooks, sweep:<chain> or chain:<chain>."
    told.by_label("paused", stopped, "what", paused)
    for row in states.values():
        missed.labels(row.name).inc(row.missed_transfers)
        finalized.labels(row.name).set(row.finalized_block)
        backup.labels(row.name).set(row.backup_block)


async def _tell_payments(context: Context, session: AsyncSession, told: _Told) -> None:
    now = utc_now()
    statuses = dict.fromkeys(get_args(Status), 0) | await payments.count_by_status(session)
    told.by_label("payments", "Payments by status.", "status", statuses)
    flags = dict.fromkeys(get_args(Flag), 0) | await payments.count_by_flag(session)
    told.by_label("payments_flagged", "Payments by flag; one can have several.", "flag", flags)
    waits = told.gauge(
        "payments_oldest_seconds",
        "How long the payment has waited that does so longest: pending beyond its time, detected, confirmed.",
        *("chain", "status"),
    )
    found = await payments.oldest(session, now)
    for chain in context.chains.enabled:
        for status in ("pending", "detected", "confirmed"):
            since = found.get((chain.chain_id, status), now)
            waits.labels(chain.name, status).set(max((now - since).total_seconds(), 0.0))


async def _tell_webhooks(_: Context, session: AsyncSession, told: _Told) -> None:
    now = utc_now()
    counts = await delivery_log.counts(session, now)
    told.gauge("webhooks_pending", "Deliveries that are not delivered and not dead.").set(counts.pending)
    told.gauge("webhooks_due", "Those of them whose time has come.").set(counts.due)
    told.gauge("webhooks_dead", "Deliveries that were given up; replay brings them back.").set(counts.dead)
    due_since = await delivery_log.oldest_due(session, now) or now
    told.gauge(
        "webhooks_oldest_due_seconds",
        "How long the delivery has been due that waits longest, without those of receivers that are only probed.",
    ).set((now - due_since).total_seconds())
    probed = await delivery_log.count_probed(session)
    told.gauge("webhook_receivers_probed", "Receivers that fail so often that they are only probed.").set(probed)
    told.gauge("webhook_endpoints_disabled", "Endpoints that were disabled by what they answered, or by hand.").set(
        counts.endpoints_disabled
    )


async def _tell_sweeps(context: Context, session: AsyncSession, told: _Told) -> None:
    lanes = {context.by_id[lane.chain_id].name: lane for lane in await swept_lanes(context, session)}
    told.by_label(
        "gas_account_wei",
        "What the gas account had when a round looked last.",
        "chain",
        {name: lane.balance_units or 0 for name, lane in lanes.items()},
    )
    told.by_label(
        "gas_account_short_wei",
        "What the gas account lacked then; 0 when it is funded.",
        "chain",
        {name: lane.short_units or 0 for name, lane in lanes.items()},
    )
    counts = await sweeps.count_by_status(session)
    swept = [each for each in context.chains.chains if is_swept(context, each.chain_id)]
    signed_on = {chain_id for chain_id, _ in counts}
    swept += [each for each in context.chains.chains if each.chain_id in signed_on and each not in swept]
    by_status = told.gauge("sweeps", "Transactions of the sweeper by status.", "chain", "status")
    frozen = told.gauge("sweeps_frozen", "Sweeps that wait for an operator to look at their account.", "chain")
    for chain in swept:
        for status in _SWEEP_STATUSES:
            by_status.labels(chain.name, status).set(counts.get((chain.chain_id, status), 0))
        frozen.labels(chain.name).set(counts.get((chain.chain_id, "frozen"), 0))
    gas = told.counter("sweep_gas", "Gas that sweeps have used.", "chain", "kind")
    fees = told.counter("sweep_fees_wei", "What that gas cost, with an L2's data fee.", "chain", "kind")
    for (chain_id, kind), spent in (await sweeps.spent(session)).items():
        if chain_id in context.by_id:
            gas.labels(context.by_id[chain_id].name, kind).inc(spent.gas)
            fees.labels(context.by_id[chain_id].name, kind).inc(spent.fee_wei)


async def _tell_redis(context: Context, wake_ups: WakeUps, told: _Told) -> None:
    alive = told.gauge("worker_alive", "1 while a worker of that role has a heartbeat.", "role")
    jobs = told.gauge("queue_jobs", "Jobs that wait or run.", "role")
    oldest = told.gauge("queue_oldest_job_seconds", "How long the oldest of them has been there.", "role")
    redis, now = wake_ups.redis, utc_now().timestamp()
    for role in wanted_roles(context):
        is_alive = await pulse.count_alive(redis, role) > 0
        waiting = await redis.zcard(queue_name(role))
        first = await redis.zrange(queue_name(role), 0, 0, withscores=True)
        # Not before all is known: naming a role's sample makes it 0, and an unknown worker is no dead one.
        alive.labels(role).set(is_alive)
        jobs.labels(role).set(waiting)
        oldest.labels(role).set(max(now - first[0][1] / 1000, 0.0) if first else 0.0)
    age = told.gauge("task_age_seconds", "Since the task was last done, or first asked for.", "task", "chain")
    late = told.gauge("task_late", "1 while that is too long, although its role has a worker.", "task", "chain")
    for run in await task_runs(context, wake_ups.redis):
        late.labels(run.task, run.chain).set(run.late)
        if run.age_s is not None:
            age.labels(run.task, run.chain).set(run.age_s)
    differ = told.gauge("reconcile_differences", "Balances that were not as recorded when last compared.", "chain")
    for name, count in (await pulse.differences(redis)).items():
        if name in context.by_name:
            differ.labels(name).set(count)

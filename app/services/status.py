"""How the gateway is: its chains, its database, its workers."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits, metrics, pulse
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.evm import checksum
from app.core.money import format_units
from app.core.queue import WakeUps
from app.db.models import ChainState, NonceLane
from app.db.repositories import chains, delivery_log, payments, sweeps
from app.db.repositories.delivery_log import WebhookCounts
from app.services import pauses
from app.services.blockchain.endpoints import told_endpoints
from app.services.context import Context
from app.services.pauses import PauseView
from app.services.task_runs import task_runs, told
from app.services.views import View

ChainStatus = Literal["ok", "lagging", "halted"]
CheckStatus = Literal["ok", "degraded", "down"]


class AssetView(View):
    symbol: str
    address: str | None
    decimals: int


class ChainView(View):
    """A configured chain; head, cursor and lag are null until its node was reached for the first time."""

    name: str
    chain_id: int
    head: int | None
    cursor: int | None
    lag_blocks: int | None
    lag_seconds: float | None
    state: ChainStatus
    reason: str | None
    confirmations_required: int
    native: AssetView
    tokens: list[AssetView]


class Overview(View):
    """What an operator wants at one glance; `payments` by status, those without any left out.

    A chain that an operator halted is among `chains`, not `pauses`.
    """

    chains: list[ChainView]
    payments: dict[str, int]
    webhooks_due: int
    pauses: list[PauseView]


class Check(View):
    name: str
    status: CheckStatus
    detail: str


class Health(View):
    status: CheckStatus
    checks: list[Check]


async def list_chains(context: Context, session: AsyncSession) -> list[ChainView]:
    states = await chains.list_states(session)
    now = utc_now()
    return [
        _chain_view(chain, states.get(chain.chain_id), context.mismatches.get(chain.chain_id), now)
        for chain in context.chains.enabled
    ]


async def overview(context: Context) -> Overview:
    """Chains, payments and webhooks as the database knows them; no node, worker or Redis is asked."""
    async with context.db.read() as session:
        paused = await pauses.list_pauses(session)
        return Overview(
            chains=await list_chains(context, session),
            payments=await payments.count_by_status(session),
            webhooks_due=await delivery_log.count_due(session, utc_now()),
            pauses=paused,
        )


async def readiness(context: Context, wake_ups: WakeUps) -> list[Check]:
    """The two things without which no request can be served: the database, and Redis."""
    return [await _database(context), await _redis(wake_ups)]


async def health(context: Context, wake_ups: WakeUps) -> Health:
    """Everything; down only when a dependency of `readiness` is."""
    checks = await readiness(context, wake_ups)
    if checks[0].status == "ok":
        async with context.db.read_aside() as session:
            views = await list_chains(context, session)
            counts = await delivery_log.counts(session, utc_now())
            lanes = await swept_lanes(context, session)
            frozen = await sweeps.frozen(session)
            paused = await pauses.list_pauses(session)
        checks += _full_pool()
        checks += [_chain_check(view) for view in views]
        checks.append(Check(name="webhooks", status="ok", detail=_webhooks(counts)))
        checks += [Check(name=f"pause:{pause.what}", status="degraded", detail=pause.told) for pause in paused]
        checks += [_gas_check(context.by_id[lane.chain_id], lane) for lane in lanes]
        checks += [
            _frozen_check(chain, frozen[chain.chain_id]) for chain in context.chains.enabled if chain.chain_id in frozen
        ]
    if checks[1].status == "ok":
        checks += await _workers(context, wake_ups)
        endpoints = await _endpoints(wake_ups)
        checks += [_endpoint_check(chain, endpoints.get(chain.name, {})) for chain in context.chains.enabled]
    statuses = {check.status for check in checks}
    status: CheckStatus = "down" if "down" in statuses else "degraded" if "degraded" in statuses else "ok"
    return Health(status=status, checks=checks)


def _chain_view(chain: Chain, state: ChainState | None, mismatch: str | None, now: datetime) -> ChainView:
    native, *tokens = [
        AssetView(
            symbol=asset.symbol,
            address=None if asset.is_native else checksum(asset.address),
            decimals=asset.decimals,
        )
        for asset in chain.assets
    ]
    lag_blocks = max(state.head_block - state.last_scanned_block, 0) if state else None
    lag_seconds = _lag_seconds(chain, state, now) if state else None
    return ChainView(
        name=chain.name,
        chain_id=chain.chain_id,
        head=max(state.head_block, state.last_scanned_block) if state else None,
        cursor=state.last_scanned_block if state else None,
        lag_blocks=lag_blocks,
        lag_seconds=lag_seconds,
        state=_state_name(chain, state, lag_seconds, mismatch),
        reason=_reason(chain, state, now) if state else mismatch or "its node has not been reached yet",
        confirmations_required=chain.confirmations_required,
        native=native,
        tokens=tokens,
    )


def _reason(chain: Chain, state: ChainState, now: datetime) -> str | None:
    if state.halt_code is None and state.head_block <= state.last_scanned_block and _is_old(chain, state, now):
        age_s = (now - state.last_scanned_time).total_seconds()
        return f"the newest block of its nodes, {state.last_scanned_block}, is {age_s:.0f} s old: do they stand still?"
    return state.halt_detail


def _is_old(chain: Chain, state: ChainState, now: datetime) -> bool:
    return chain.max_head_age_s is not None and now - state.last_scanned_time > timedelta(seconds=chain.max_head_age_s)


def _lag_seconds(chain: Chain, state: ChainState, now: datetime) -> float:
    """How long ago the cursor was the head, or 0 while it is; never negative, whatever the clocks say.

    A head that is too old is none: the chain has gone on without the nodes that are asked.
    """
    behind = state.head_block > state.last_scanned_block or _is_old(chain, state, now)
    since = state.last_scanned_time if behind else state.head_seen_at
    seconds = (now - since).total_seconds()
    return round(max(seconds, 0.0), 3) if behind or seconds > limits.HEAD_SEEN_EVERY_S * 2 else 0.0


def _state_name(chain: Chain, state: ChainState | None, lag_seconds: float | None, mismatch: str | None) -> ChainStatus:
    if state is None:
        return "halted" if mismatch else "lagging"
    if state.halt_code is not None:
        return "halted"
    slow = max(limits.LAGGING_AFTER_S, chain.poll_interval_s * limits.LAGGING_POLLS)
    return "lagging" if lag_seconds is not None and lag_seconds > slow else "ok"


def switches(context: Context, paused: Collection[str], states: Mapping[int, ChainState]) -> dict[str, bool]:
    """Whether an operator has stopped it, by `webhooks`, `sweep:<chain>`, `chain:<chain>`."""
    found = {pauses.WEBHOOKS: pauses.WEBHOOKS in paused}
    for chain in context.chains.enabled:
        state = states.get(chain.chain_id)
        found[f"chain:{chain.name}"] = state is not None and state.halt_code == "operator"
        if is_swept(context, chain.chain_id):
            found[pauses.sweeping_of(chain.name)] = bool(
                {pauses.SWEEPING, pauses.sweeping_of(chain.name)}.intersection(paused)
            )
    return found


def _chain_check(view: ChainView) -> Check:
    detail = view.reason or f"cursor {view.cursor}, {view.lag_blocks} blocks and {view.lag_seconds} s behind"
    return Check(name=f"chain:{view.name}", status="ok" if view.state == "ok" else "degraded", detail=detail)


async def swept_lanes(context: Context, session: AsyncSession) -> list[NonceLane]:
    """The gas account's lanes on the chains that are swept, one for each."""
    return [lane for lane in await sweeps.current_gas_lanes(session) if is_swept(context, lane.chain_id)]


def is_swept(context: Context, chain_id: int) -> bool:
    chain = context.by_id.get(chain_id)
    return chain is not None and chain.enabled and chain.sweep.mode != "off"


def wanted_roles(context: Context) -> list[str]:
    """The workers that there must be."""
    swept = any(is_swept(context, chain.chain_id) for chain in context.chains.enabled)
    return ["listener", "webhook", *(["sweeper"] if swept else [])]


def _gas_check(chain: Chain, lane: NonceLane) -> Check:
    """The gas account as the sweeper's last round saw it; an empty one keeps tokens where they are."""
    native = chain.native
    if lane.balance_units is None:
        return Check(name=f"gas:{chain.name}", status="ok", detail="not looked at yet")
    detail = f"{checksum(lane.account)} holds {format_units(lane.balance_units, native.decimals)} {native.symbol}"
    if lane.short_units:
        detail += f"; fund it with {format_units(lane.short_units, native.decimals)} {native.symbol}"
    return Check(name=f"gas:{chain.name}", status="degraded" if lane.short_units else "ok", detail=detail)


def _frozen_check(chain: Chain, ids: Sequence[str]) -> Check:
    named = ", ".join(ids[: limits.HEALTH_NAMES]) + (" ..." if len(ids) > limits.HEALTH_NAMES else "")
    detail = f"{len(ids)} frozen: {named}; look at the account, then `paywatch sweep release`"
    return Check(name=f"sweeps:{chain.name}", status="degraded", detail=detail)


async def _endpoints(wake_ups: WakeUps) -> Mapping[str, Mapping[str, str]]:
    try:
        return await told_endpoints(wake_ups.redis)
    except (RedisError, OSError):
        return {}


def _endpoint_check(chain: Chain, states: Mapping[str, str]) -> Check:
    detail = ", ".join(f"#{name}: {state}" for name, state in states.items()) or "no listener tells of its endpoints"
    well = bool(states) and all(state == "closed" for state in states.values())
    return Check(name=f"rpc:{chain.name}", status="ok" if well else "degraded", detail=detail)


def _webhooks(counts: WebhookCounts) -> str:
    return f"{counts.due} due, {counts.dead} dead, {counts.endpoints_disabled} endpoints disabled"


async def _database(context: Context) -> Check:
    try:
        async with context.db.read_aside() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return Check(name="database", status="down", detail=type(error).__name__)
    return Check(name="database", status="ok", detail=context.db.engine.dialect.name)


def _full_pool() -> list[Check]:
    """Nothing, as long as this process has a database connection left for requests."""
    limit, in_use = metrics.DB_POOL_LIMIT.largest(), metrics.DB_POOL_CONNECTIONS.largest("in_use")
    if in_use < limit:
        return []
    detail = f"all of {limit:.0f} connections are in use; `paywatch doctor` names what holds the database up"
    return [Check(name="database pool", status="degraded", detail=detail)]


async def _redis(wake_ups: WakeUps) -> Check:
    try:
        await wake_ups.redis.ping()
    except (RedisError, OSError) as error:
        return Check(name="redis", status="down", detail=type(error).__name__)
    return Check(name="redis", status="ok", detail="answers")


async def _workers(context: Context, wake_ups: WakeUps) -> list[Check]:
    """Of each role whether somebody lives; of what they do, only what is late or was found to differ."""
    checks: list[Check] = []
    try:
        for role in wanted_roles(context):
            alive = await pulse.count_alive(wake_ups.redis, role)
            detail = f"{alive} alive" if alive else "no worker of this role has a heartbeat"
            checks.append(Check(name=f"worker:{role}", status="ok" if alive else "degraded", detail=detail))
        late = [run for run in await task_runs(context, wake_ups.redis) if run.late]
        differences = await pulse.differences(wake_ups.redis)
    except (RedisError, OSError) as error:
        return [*checks, Check(name="workers", status="degraded", detail=type(error).__name__)]
    for place in sorted({run.place for run in late}):
        detail = told([run for run in late if run.place == place])
        checks.append(Check(name=f"tasks:{place}", status="degraded", detail=detail))
    for chain in context.chains.enabled:
        if count := differences.get(chain.name):
            detail = f"{count} differed from what was recorded: `paywatch reconcile --chain {chain.name}`"
            checks.append(Check(name=f"balances:{chain.name}", status="degraded", detail=detail))
    return checks

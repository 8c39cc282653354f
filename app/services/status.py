"""How the gateway is: its chains, its database, its workers."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.evm import checksum
from app.core.money import format_units
from app.core.queue import WakeUps, heartbeat_key
from app.db.models import ChainState, NonceLane
from app.db.repositories import chains, payments, sweeps, webhooks
from app.services.context import Context
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
    """What an operator wants at one glance; `payments` by status, those without any left out."""

    chains: list[ChainView]
    payments: dict[str, int]
    webhooks_due: int


class Numbers(Overview):
    """The overview, and what else is counted.

    By chain: `missed_transfers`, found only by a backup pass, ever; `gas_units` and `gas_short_units`, what the gas
    account had when a round looked last, and what it lacked; `sweeps_frozen`, for an operator to look at.
    """

    webhooks_pending: int
    webhooks_dead: int
    endpoints_disabled: int
    missed_transfers: dict[str, int]
    gas_units: dict[str, int]
    gas_short_units: dict[str, int]
    sweeps_frozen: dict[str, int]


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
    return Overview(**(await numbers(context)).model_dump(include=set(Overview.model_fields)))


async def numbers(context: Context) -> Numbers:
    """All that is counted, by the database alone."""
    async with context.db.read() as session:
        counts = await webhooks.counts(session, utc_now())
        states = await chains.list_states(session)
        lanes = {context.by_id[lane.chain_id].name: lane for lane in await _swept_lanes(context, session)}
        frozen = await sweeps.frozen(session)
        return Numbers(
            chains=await list_chains(context, session),
            payments=await payments.count_by_status(session),
            webhooks_due=counts.due,
            webhooks_pending=counts.pending,
            webhooks_dead=counts.dead,
            endpoints_disabled=counts.endpoints_disabled,
            missed_transfers={state.name: state.missed_transfers for state in states.values()},
            gas_units={name: lane.balance_units or 0 for name, lane in lanes.items()},
            gas_short_units={name: lane.short_units or 0 for name, lane in lanes.items()},
            sweeps_frozen={
                chain.name: len(frozen.get(chain.chain_id, ()))
                for chain in context.chains.enabled
                if _is_swept(context, chain.chain_id) or chain.chain_id in frozen
            },
        )


async def readiness(context: Context, wake_ups: WakeUps) -> list[Check]:
    """The two things without which no request can be served: the database, and Redis."""
    return [await _database(context), await _redis(wake_ups)]


async def health(context: Context, wake_ups: WakeUps) -> Health:
    """Everything; down only when a dependency of `readiness` is."""
    checks = await readiness(context, wake_ups)
    if checks[0].status == "ok":
        async with context.db.read() as session:
            views = await list_chains(context, session)
            counts = await webhooks.counts(session, utc_now())
            lanes = await _swept_lanes(context, session)
            frozen = await sweeps.frozen(session)
        checks += [_chain_check(view) for view in views]
        checks.append(Check(name="webhooks", status="ok", detail=_webhooks(counts)))
        checks += [_gas_check(context.by_id[lane.chain_id], lane) for lane in lanes]
        checks += [
            _frozen_check(chain, frozen[chain.chain_id]) for chain in context.chains.enabled if chain.chain_id in frozen
        ]
    checks += [_endpoint_check(context, chain) for chain in context.chains.enabled]
    if checks[1].status == "ok":
        checks += [await _worker(wake_ups, role) for role in _roles(context)]
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
    lag_seconds = _lag_seconds(state, now) if state else None
    return ChainView(
        name=chain.name,
        chain_id=chain.chain_id,
        head=max(state.head_block, state.last_scanned_block) if state else None,
        cursor=state.last_scanned_block if state else None,
        lag_blocks=lag_blocks,
        lag_seconds=lag_seconds,
        state=_state_name(chain, state, lag_seconds, mismatch),
        reason=state.halt_detail if state else mismatch or "its node has not been reached yet",
        confirmations_required=chain.confirmations_required,
        native=native,
        tokens=tokens,
    )


def _lag_seconds(state: ChainState, now: datetime) -> float:
    """How long ago the cursor was the head, or 0 while it is; never negative, whatever the clocks say."""
    behind = state.head_block > state.last_scanned_block
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


def _chain_check(view: ChainView) -> Check:
    detail = view.reason or f"cursor {view.cursor}, {view.lag_blocks} blocks and {view.lag_seconds} s behind"
    return Check(name=f"chain:{view.name}", status="ok" if view.state == "ok" else "degraded", detail=detail)


async def _swept_lanes(context: Context, session: AsyncSession) -> list[NonceLane]:
    """The gas account's lanes on the chains that are swept."""
    return [lane for lane in await sweeps.gas_lanes(session) if _is_swept(context, lane.chain_id)]


def _is_swept(context: Context, chain_id: int) -> bool:
    chain = context.by_id.get(chain_id)
    return chain is not None and chain.enabled and chain.sweep.mode != "off"


def _roles(context: Context) -> list[str]:
    """The workers that there must be."""
    swept = any(_is_swept(context, chain.chain_id) for chain in context.chains.enabled)
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


def _endpoint_check(context: Context, chain: Chain) -> Check:
    states = context.nodes.nodes(chain).states()
    detail = ", ".join(f"#{index} {name}: {state}" for index, (name, state) in enumerate(states))
    well = all(state == "closed" for _, state in states)
    return Check(name=f"rpc:{chain.name}", status="ok" if well else "degraded", detail=detail)


def _webhooks(counts: webhooks.WebhookCounts) -> str:
    return f"{counts.due} due, {counts.dead} dead, {counts.endpoints_disabled} endpoints disabled"


async def _database(context: Context) -> Check:
    try:
        async with context.db.read() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        return Check(name="database", status="down", detail=type(error).__name__)
    return Check(name="database", status="ok", detail=context.db.engine.dialect.name)


async def _redis(wake_ups: WakeUps) -> Check:
    try:
        await wake_ups.redis.ping()
    except (RedisError, OSError) as error:
        return Check(name="redis", status="down", detail=type(error).__name__)
    return Check(name="redis", status="ok", detail="answers")


async def _worker(wake_ups: WakeUps, role: str) -> Check:
    try:
        alive = await wake_ups.redis.exists(heartbeat_key(role))
    except (RedisError, OSError) as error:
        return Check(name=f"worker:{role}", status="degraded", detail=type(error).__name__)
    if alive:
        return Check(name=f"worker:{role}", status="ok", detail="alive")
    return Check(name=f"worker:{role}", status="degraded", detail="no worker of this role has a heartbeat")

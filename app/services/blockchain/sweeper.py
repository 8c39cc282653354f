"""The sweeper: brings confirmed money from the deposit addresses to the treasury, cheaply and exactly once.

A round may die between any two lines, and any number of rounds may run at once: a transaction is signed and stored
under a row lock, in one database transaction, and broadcast only after its commit; the next round takes up from there.
What is settled is not said here: the scanner sees it on the chain.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.collector import Contracts
from app.blockchain.errors import NodeBehindError, NodeError
from app.blockchain.fees import read_fees
from app.blockchain.sending import Outcome, read_accounts
from app.blockchain.signer import Signer
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.errors import ConfigError, NotFound
from app.core.evm import checksum
from app.core.logger import get_logger
from app.core.money import format_units
from app.db.repositories import chains, sweeps
from app.db.repositories.sweeps import SweepRecord
from app.services.blockchain.chains import ChainCheck, check, prepare
from app.services.blockchain.sweeping.budget import GasBudget
from app.services.blockchain.sweeping.collect import plan_deployment
from app.services.blockchain.sweeping.jobs import Job, Plan, Waiting
from app.services.blockchain.sweeping.plan import make_plan
from app.services.blockchain.sweeping.round import Memory, NotReadyError, Round, ensure_lane, gwei, open_round
from app.services.blockchain.sweeping.sign import record_refusal, reopen, sign_and_send
from app.services.blockchain.sweeping.track import track
from app.services.context import Context
from app.services.wallet import configured_mnemonic

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """`signed`: transactions that were stored. `problem`: why the node could not be asked or believed.

    `ready`: false while the chain is halted or was not scanned yet, which is said elsewhere.
    """

    signed: int = 0
    plan: Plan | None = None
    problem: str | None = None
    ready: bool = True


@dataclass
class Sweeper:
    """The wallet's keys, and what the rounds of one process remember of each chain."""

    context: Context
    signer: Signer
    memories: dict[int, Memory] = field(default_factory=dict)

    def memory(self, chain: Chain) -> Memory:
        return self.memories.setdefault(chain.chain_id, Memory())


async def open_sweeper(context: Context) -> Sweeper | None:
    """Loads the wallet's keys (a keystore takes a second); None when only its xpub is there. Raises ConfigError."""
    mnemonic = await asyncio.to_thread(configured_mnemonic, context.settings)
    return None if mnemonic is None else Sweeper(context, await asyncio.to_thread(Signer, mnemonic))


def swept_chains(context: Context) -> list[Chain]:
    """Enabled chains whose money is to be brought to a treasury."""
    return [chain for chain in context.chains.enabled if chain.sweep.mode != "off"]


async def sweep_round(sweeper: Sweeper, chain: Chain) -> RoundOutcome:
    """Follow what is under way, plan what comes next, sign and broadcast it. One endpoint serves the whole round.

    While sweeping is paused what is under way is followed, and that is all.
    Raises ConfigError when the keys are of another wallet than the addresses.
    """
    try:
        async with asking(sweeper, chain) as round_:
            await ensure_lane(round_)
            lacking = await track(round_)
            if round_.paused:
                return RoundOutcome()
            plan, undone = await make_plan(round_, lacking)
            await reopen(round_, undone)
            await _tell_gas(round_, plan)
            for refusal in plan.refusals:
                await record_refusal(round_, refusal)
            signed = await _sign_all(round_, plan.jobs)
    except NodeError as error:
        return RoundOutcome(problem=str(error), ready=not isinstance(error, NotReadyError))
    return RoundOutcome(signed, plan)


async def _sign_all(round_: Round, jobs: Sequence[Job]) -> int:
    """What is not signed any more within the budget is planned again by the next round."""
    deadline = time.monotonic() + limits.SWEEP_SIGN_BUDGET_S
    signed = 0
    for job in jobs:
        if time.monotonic() > deadline:
            break
        sent = await sign_and_send(round_, job)
        signed += sent is not None
        if sent is not None and sent.outcome is Outcome.REJECTED and job.kind == "collect":
            round_.memory.eip7702 = None  # what the probe said may be wrong
        if sent is not None and sent.outcome is Outcome.INSUFFICIENT_FUNDS and job.place is None:
            break  # what follows from the same account would hear the same
    return signed


@asynccontextmanager
async def asking(sweeper: Sweeper, chain: Chain) -> AsyncIterator[Round]:
    """A round with the preferred endpoint, whose breaker learns how it went. Raises NodeError."""
    nodes = sweeper.context.nodes.nodes(chain)
    endpoint = nodes.pick()
    if endpoint is None:
        raise NotReadyError("no endpoint is on this chain")
    try:
        yield await open_round(sweeper.context, chain, endpoint, sweeper.signer, sweeper.memory(chain))
    except NotReadyError:
        raise
    except NodeError as error:
        # One that is only behind keeps its place unless another one can take over.
        if not isinstance(error, NodeBehindError) or nodes.pick(other_than=endpoint) is not None:
            nodes.failed(endpoint, error)
        raise
    nodes.succeeded(endpoint)


async def _tell_gas(round_: Round, plan: Plan) -> None:
    """Keep what the gas account holds and lacks, where health and the dashboard find it."""
    async with round_.context.db.write() as session:
        lane = await sweeps.lock_lane(session, round_.chain.chain_id, round_.gas_address)
        lane.balance_units, lane.short_units, lane.looked_at = round_.gas.balance_wei, plan.short_wei, utc_now()
    native = round_.chain.native
    lacks = f"{format_units(plan.short_wei, native.decimals)} {native.symbol}" if plan.short_wei else None
    if round_.memory.news("gas", lacks and "low"):
        log.warning(
            "the gas account is low: fund it",
            chain=round_.chain.name,
            account=checksum(round_.gas_address),
            balance=f"{format_units(round_.gas.balance_wei, native.decimals)} {native.symbol}",
            amount=lacks,
        )


# --- the operator's


@dataclass(frozen=True, slots=True)
class Prospect:
    """What rounds would sign now, and what waits, in wei and base units.

    `scanned`: false while no server or listener has made the chain's cursor, so that nothing is known of any money.
    """

    chain: Chain
    treasury: bytes
    gas_account: bytes
    gas_balance_wei: int
    short_wei: int
    base_fee_gwei: str
    jobs: Sequence[Job]
    waiting: Sequence[Waiting]
    scanned: bool = True


async def prospect(sweeper: Sweeper, chain: Chain) -> Prospect:
    """The plan of the next rounds; nothing is signed, broadcast or written. Raises ConfigError when the node cannot
    say.
    """
    if not await _has_cursor(sweeper.context, chain):
        return await _unscanned(sweeper, chain)
    jobs: list[Job] = []
    waiting: list[Waiting] = []
    short_wei = 0
    try:
        async with asking(sweeper, chain) as round_:
            while True:
                plan, _ = await make_plan(round_)
                jobs += plan.jobs
                waiting += plan.waiting
                short_wei = max(short_wei, plan.short_wei)
                if round_.memory.after_id == 0:
                    break
    except NodeError as error:
        raise ConfigError(f"chain {chain.name!r}: {error}") from error
    return Prospect(
        chain=chain,
        treasury=round_.treasury,
        gas_account=round_.gas_address,
        gas_balance_wei=round_.gas.balance_wei,
        short_wei=short_wei,
        base_fee_gwei=gwei(round_.fees.now_wei),
        jobs=jobs,
        waiting=waiting,
    )


async def _unscanned(sweeper: Sweeper, chain: Chain) -> Prospect:
    """What can be told before the first start. The cursor is the scanner's to make: where it stands decides which
    blocks are read.
    """
    checked = await check(sweeper.context, chain)
    if isinstance(checked, ChainCheck):
        raise ConfigError(f"chain {chain.name!r}: {checked.problem}")
    account = sweeper.signer.gas_account.address
    nodes = sweeper.context.nodes.nodes(chain)
    endpoint = nodes.pick()
    if endpoint is None or chain.sweep.treasury is None:
        raise ConfigError(f"chain {chain.name!r} has no usable endpoint, or no sweep.treasury")
    try:
        fees = await read_fees(endpoint)
        accounts = await read_accounts(endpoint, [account])
    except NodeError as error:
        raise ConfigError(f"chain {chain.name!r}: {error}") from error
    return Prospect(
        chain=chain,
        treasury=chain.sweep.treasury,
        gas_account=account,
        gas_balance_wei=accounts[account].balance_wei,
        short_wei=0,
        base_fee_gwei=gwei(fees.now_wei),
        jobs=(),
        waiting=(),
        scanned=False,
    )


async def _has_cursor(context: Context, chain: Chain) -> bool:
    async with context.db.read() as session:
        return await chains.get_state(session, chain.chain_id) is not None


async def _require_cursor(context: Context, chain: Chain) -> None:
    """On a fresh installation, where no server has made it yet. Raises ConfigError."""
    if not await _has_cursor(context, chain):
        checked = await prepare(context, chain)
        if checked.problem is not None:
            raise ConfigError(f"chain {chain.name!r}: {checked.problem}")


async def can_release(context: Context, sweep_id: str) -> bool:
    """Whether `release_sweep` would do something; False for one that is released. Raises as that does."""
    async with context.db.read() as session:
        return await _frozen(session, sweep_id) is not None


async def release_sweep(context: Context, sweep_id: str, by: str) -> None:
    """Let a frozen sweep go, on the operator's word: what its addresses still hold is swept anew.

    Raises NotFound; ConfigError when it is neither frozen nor released.
    """
    async with context.db.write() as session:
        record = await _frozen(session, sweep_id)
        if record is None:
            return
        record.sweep.status = "released"
        record.sweep.ended_at = utc_now()
        for item in record.items:
            item.live = False
    log.warning("sweep released by an operator", sweep=sweep_id, operator=by)


async def _frozen(session: AsyncSession, sweep_id: str) -> SweepRecord | None:
    record = await sweeps.lock(session, sweep_id)
    if record is None:
        raise NotFound(f"there is no sweep {sweep_id!r}")
    if record.sweep.status not in ("frozen", "released"):
        raise ConfigError(f"sweep {sweep_id} is {record.sweep.status}; only a frozen one is released")
    return record if record.sweep.status == "frozen" else None


async def deploy_step(sweeper: Sweeper, chain: Chain) -> tuple[bytes, bytes] | None:
    """Follow what is under way and sign the next deployment.

    Returns the addresses of collector and delegate when both are there. Raises ConfigError when the node cannot be
    asked, the gas account cannot pay, or sweeping is paused.
    """
    await _require_cursor(sweeper.context, chain)
    try:
        async with asking(sweeper, chain) as round_:
            return await _deploy_next(round_)
    except NodeError as error:
        raise ConfigError(f"chain {chain.name!r}: {error}") from error


async def _deploy_next(round_: Round) -> tuple[bytes, bytes] | None:
    contracts = Contracts(round_.gas_address, round_.treasury)
    if len(await contracts.present(round_.endpoint)) == 2:
        return contracts.collector, contracts.delegate
    if round_.paused:
        raise ConfigError(f"chain {round_.chain.name!r}: sweeping is paused, and nothing is signed meanwhile")
    await ensure_lane(round_)
    await track(round_)
    async with round_.context.db.read() as session:
        live = await sweeps.followed_of(session, round_.chain.chain_id, round_.gas_address)
    plan = Plan(places=1)
    refused = await plan_deployment(round_, plan, GasBudget(round_, live), contracts)
    if refused is not None:
        raise ConfigError(f"chain {round_.chain.name!r}: {refused}")
    await _sign_all(round_, plan.jobs)
    return None

"""The planner: looks at what waits in the database and at the chain, and says what is to be signed next.

It keeps nothing from round to round. That an address was sent gas is seen by its balance; that money has moved, by the
scanner's outflows.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import timedelta

from app.blockchain.errors import FatalError, InvalidAnswerError
from app.blockchain.sending import Account, read_accounts
from app.core import limits
from app.core.errors import ConfigError
from app.core.evm import NATIVE_ASSET, checksum
from app.core.logger import get_logger
from app.core.money import parse_units
from app.db.repositories import sweeps
from app.db.repositories.sweeps import Failures, SweepRecord
from app.services.blockchain.sweeping.budget import GasBudget
from app.services.blockchain.sweeping.collect import collects_tokens, plan_collects
from app.services.blockchain.sweeping.jobs import Candidate, Item, Plan
from app.services.blockchain.sweeping.round import Round
from app.services.blockchain.sweeping.sign import in_the_way
from app.services.blockchain.sweeping.single import plan_filler, plan_natives, plan_top_up, plan_transfers

log = get_logger(__name__)


async def make_plan(round_: Round, lacking: Sequence[Item] = ()) -> tuple[Plan, list[SweepRecord]]:
    """The next transactions of a chain, and sweeps that a reorg took back. Raises NodeError.

    `lacking`: addresses whose transfer is stuck and that need so many wei more.
    """
    async with round_.context.db.read() as session:
        following = await sweeps.count_live(session, round_.chain.chain_id)
    plan = Plan(places=min(limits.SWEEP_ROUND_JOBS, limits.SWEEP_LIVE - following))
    ready = await _ready(round_, plan)
    accounts = await read_accounts(
        round_.endpoint, {each.address for each in ready} | {item.address for item in lacking}
    )
    nonces = {address: account.nonce for address, account in accounts.items()}
    async with round_.context.db.read() as session:
        undone = await sweeps.ended_from(
            session, round_.chain.chain_id, nonces | {round_.gas_address: round_.gas.nonce}
        )
        live = await sweeps.followed_of(session, round_.chain.chain_id, round_.gas_address)
    held_up = {record.sweep.account for record in undone}
    for each in [each for each in ready if each.address in held_up]:
        plan.wait(each, "a reorg took its sweep back")
    ready = await _with_keys(round_, plan, [each for each in ready if each.address not in held_up])
    budget = GasBudget(round_, live)
    await _plan_ways(round_, plan, budget, ready, accounts, lacking)
    if _has_gap(round_, live, undone) and not any(job.place is None for job in plan.jobs):
        await plan_filler(round_, plan, budget)
    plan.short_wei = budget.short_wei
    return plan, undone


async def _plan_ways(
    round_: Round,
    plan: Plan,
    budget: GasBudget,
    ready: Sequence[Candidate],
    accounts: dict[bytes, Account],
    lacking: Sequence[Item],
) -> None:
    plan.until = time.monotonic() + limits.SWEEP_PLAN_BUDGET_S
    for item in lacking:
        if not plan.is_full:
            await plan_top_up(round_, plan, budget, item)
    natives = [each for each in ready if each.asset == NATIVE_ASSET]
    tokens = len(ready) - len(natives)
    await plan_natives(round_, plan, natives, accounts, plan.places - min(plan.places // 2, tokens))
    # One thing at a time for an address: each transaction of it, and each authorization, takes its nonce.
    taken = {job.account for job in plan.jobs} | {item.address for job in plan.jobs for item in job.items}
    for token in round_.chain.tokens:
        mine = [each for each in ready if each.asset == token.address]
        for each in [each for each in mine if each.address in taken]:
            plan.wait(each, "another asset of the address goes first")
        mine = [each for each in mine if each.address not in taken]
        taken |= {each.address for each in mine}
        try:
            await _plan_token(round_, plan, budget, token.address, mine, accounts)
        except (FatalError, InvalidAnswerError) as error:  # a broken token holds up only itself
            if round_.memory.news(f"token:{token.symbol}", str(error)):
                log.error("token cannot be swept", chain=round_.chain.name, token=token.symbol, reason=str(error))
            for each in mine:
                plan.wait(each, str(error))


async def _plan_token(
    round_: Round,
    plan: Plan,
    budget: GasBudget,
    token: bytes,
    candidates: Sequence[Candidate],
    accounts: dict[bytes, Account],
) -> None:
    together = [each for each in candidates if collects_tokens(round_.chain, each)]
    alone = [each for each in candidates if not collects_tokens(round_.chain, each)]
    alone += await plan_collects(round_, plan, budget, token, together, accounts)
    await plan_transfers(round_, plan, budget, token, alone, accounts)


def _has_gap(round_: Round, live: Sequence[SweepRecord], undone: Sequence[SweepRecord]) -> bool:
    """Whether the gas account's next nonce is nobody's while later ones wait for it."""
    nonces = {record.sweep.nonce or 0 for record in (*live, *undone) if record.sweep.account == round_.gas_address}
    return round_.gas.nonce not in nonces and any(nonce > round_.gas.nonce for nonce in nonces)


# --- what may go at all


async def _ready(round_: Round, plan: Plan) -> list[Candidate]:
    """What waits and has no reason to wait longer that the database or today's fee knows of."""
    chain, memory = round_.chain, round_.memory
    async with round_.context.db.read() as session:
        rows = await sweeps.unswept(
            session, chain.chain_id, round_.cursor, chain.confirmations_required, memory.after_id
        )
        memory.after_id = rows[-1].id if len(rows) == limits.SWEEP_CANDIDATES else 0
        addresses = {row.address for row in rows}
        touching = await sweeps.touching(session, chain.chain_id, addresses)
        failures = await sweeps.failures(session, chain.chain_id, addresses)
    candidates: dict[tuple[bytes, bytes], Candidate] = {}
    for row in rows:
        known = candidates.get((row.address, row.asset))
        candidates[row.address, row.asset] = Candidate(
            address=row.address,
            asset=row.asset,
            branch=row.branch,
            index=row.index,
            payment_id=row.payment_id,
            units=row.amount_units + (known.units if known else 0),
            since=min(row.seen_at, known.since) if known else row.seen_at,
        )
    dear = round_.too_dear()
    if memory.news("fee", dear):
        log.warning("sweeping waits", chain=chain.name, reason=dear)
    ready: list[Candidate] = []
    for each in candidates.values():
        kind = "native" if each.asset == NATIVE_ASSET else "transfer"
        blocking = [sweep.id for sweep in touching.get(each.address, ()) if in_the_way(sweep, kind)]
        reason = (
            (f"in {blocking[0]}" if blocking else None)
            or (None if chain.asset_by_address(each.asset) else "its token is no longer in chains.yaml")
            or _backing_off(round_, failures.get((each.address, each.asset)))
            or (None if round_.overdue(each.since) else _too_little(round_, each) or dear)
        )
        if reason is None:
            ready.append(each)
        else:
            plan.wait(each, reason)
    return ready


async def _with_keys(round_: Round, plan: Plan, ready: Sequence[Candidate]) -> list[Candidate]:
    """Those whose private keys we have: an address of another wallet holds up only itself.

    Raises ConfigError when there was never one: then it is the words that are wrong.
    """
    memory = round_.memory
    own: set[bytes] = set()
    foreign: dict[bytes, ConfigError] = {}
    for each in ready:
        if each.address not in memory.own:
            await asyncio.sleep(0)  # a key takes a millisecond
            try:
                round_.deposit_account(each.address, each.branch, each.index)
            except ConfigError as error:
                foreign[each.address] = error
                plan.wait(each, str(error))
                continue
        own.add(each.address)
    memory.own, memory.has_keys = frozenset(own), memory.has_keys or bool(own)
    for address, problem in foreign.items():
        if not memory.has_keys:
            raise problem
        if memory.news(f"foreign:{checksum(address)}", str(problem)):
            log.error(
                "address cannot be swept", chain=round_.chain.name, address=checksum(address), reason=str(problem)
            )
    return [each for each in ready if each.address in own]


def _backing_off(round_: Round, failures: Failures | None) -> str | None:
    if failures is None:
        return None
    wait_s = min(limits.SWEEP_RETRY_MIN_S * 2 ** min(failures.count - 1, 20), limits.SWEEP_RETRY_MAX_S)
    due = failures.last_at + timedelta(seconds=wait_s)
    return None if due <= round_.began_at else f"failed {failures.count} times; tried again {due:%Y-%m-%d %H:%M} UTC"


def _too_little(round_: Round, candidate: Candidate) -> str | None:
    asset = round_.chain.asset_by_address(candidate.asset)
    least = round_.chain.sweep.min_amount.get(asset.symbol) if asset else None
    if asset is None or least is None or candidate.units >= parse_units(least, asset.decimals):
        return None
    return f"less than min_amount {least} {asset.symbol}"

"""Signs, stores, commits, and only then broadcasts: whatever is killed where, the same bytes go out again.

Who signs anything for a chain holds the row lock of the gas account's lane on it, so no two of our transactions are
decided on at once, and every decision sees the ones before it.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.fees import Fees, bumped
from app.blockchain.receipts import fetch_receipts
from app.blockchain.sending import Outcome, Sent, broadcast, estimate
from app.blockchain.signed import action_of
from app.blockchain.signer import Action, SignedTx, SigningAccount
from app.core import limits
from app.core.clock import utc_now
from app.core.errors import ConfigError
from app.core.evm import checksum, hex0x
from app.core.ids import new_id
from app.core.logger import get_logger
from app.db.models import NonceLane, Sweep, SweepAttempt, SweepItem
from app.db.repositories import addresses, chains, pauses, sweeps
from app.db.repositories.sweeps import SweepRecord
from app.services.blockchain.sweeping.jobs import Job, Refusal
from app.services.blockchain.sweeping.round import Round
from app.services.blockchain.sweeping.single import data_fee

log = get_logger(__name__)

TAKEN: Final = (Outcome.ACCEPTED, Outcome.ALREADY_KNOWN)


def in_the_way(sweep: Sweep, kind: str) -> bool:
    """Whether a sweep of the same address keeps a job of that kind waiting.

    One at a time: an authorization takes the address's nonce just as its own transaction does. But a top-up that is
    mined may be used, and a transfer that lacks gas for a higher price may be topped up.
    """
    if sweep.kind == "topup" and kind in ("transfer", "collect"):
        return sweep.status in ("signed", "frozen")
    return not (sweep.kind == "transfer" and kind == "topup" and sweep.status == "signed")


async def sign_and_send(round_: Round, job: Job) -> Sent | None:
    """Store a job's transaction and broadcast it; None when it is no longer right. Raises NodeError."""
    async with round_.context.db.write() as session:
        stored = await _store(session, round_, job)
    if stored is None:
        return None
    sweep, attempt = stored
    log.info(
        "sweep signed",
        sweep=sweep.id,
        kind=job.kind,
        addresses=len(job.items),
        nonce=sweep.nonce,
        tx_hash=hex0x(attempt.tx_hash),
    )
    return await send(round_, attempt)


async def _store(session: AsyncSession, round_: Round, job: Job) -> tuple[Sweep, SweepAttempt] | None:
    chain_id = round_.chain.chain_id
    lane = await sweeps.lock_lane(session, chain_id, round_.gas_address)
    if await _is_stopped(session, round_):
        return None
    touching = await sweeps.touching(session, chain_id, [item.address for item in job.items], round_.began_at)
    if any(in_the_way(sweep, job.kind) for found in touching.values() for sweep in found):
        return None  # another sweeper was quicker
    if job.kind == "deploy" and await sweeps.deploying(session, chain_id, round_.gas_address, round_.began_at):
        return None
    if job.place is None:
        live = await sweeps.followed_of(session, chain_id, round_.gas_address)
        if sum(record.sweep.status == "signed" for record in live) >= limits.SWEEP_PENDING:
            return None
        account = round_.signer.gas_account
    else:
        await sweeps.add_lane(session, chain_id, job.account, is_deposit=True, nonce=job.nonce)
        lane = await sweeps.lock_lane(session, chain_id, job.account)
        account = round_.deposit_account(job.account, *job.place)
    nonce = await _next_nonce(session, round_, lane, job)
    if nonce is None:
        return None
    signed = account.sign(job.action, chain_id=chain_id, nonce=nonce, gas=job.gas, fees=job.fees)
    sweep = Sweep(
        id=new_id("swp"),
        chain_id=chain_id,
        kind=job.kind,
        asset=job.asset,
        treasury=None if job.kind in ("topup", "fill") else round_.treasury,
        account=job.account,
        nonce=nonce,
        status="signed",
        created_at=utc_now(),
    )
    session.add(sweep)
    await session.flush()
    session.add_all(
        SweepItem(
            sweep_id=sweep.id,
            payment_id=item.payment_id,
            chain_id=chain_id,
            address=item.address,
            asset=job.asset,
            amount_units=item.units,
            live=True,
        )
        for item in sorted(job.items, key=lambda item: item.payment_id)  # the order in which payments get locked
    )
    attempt = _attempt(sweep, signed, job.action, job.gas, job.fees)
    session.add(attempt)
    return sweep, attempt


async def _next_nonce(session: AsyncSession, round_: Round, lane: NonceLane, job: Job) -> int | None:
    """The lowest nonce of the account that none of its sweeps has; None when that is not what the job was planned for.

    Under the lane's lock. A nonce that somebody else used is jumped over, one that was left out is filled.
    """
    used = await sweeps.used_nonces(session, lane.chain_id, lane.account, job.nonce)
    if job.place is not None and job.nonce in used:
        return None  # signed since the plan was made, or a sweep that a reorg took back and that goes out again
    if not lane.is_deposit and lane.next_nonce < job.nonce:  # another program has its key, or a backup was restored
        log.warning(
            "the gas account's nonce is ahead of the record",
            account=checksum(lane.account),
            recorded=lane.next_nonce,
            chain_nonce=job.nonce,
        )
    nonce = job.nonce
    while nonce in used:
        nonce += 1
    lane.next_nonce = max(lane.next_nonce, nonce + 1)
    return nonce


async def record_refusal(round_: Round, refusal: Refusal) -> None:
    """Keep that a token would not let an address's money go: it is tried again later, and ever less often."""
    candidate = refusal.candidate
    now = utc_now()
    async with round_.context.db.write() as session:
        await sweeps.lock_lane(session, round_.chain.chain_id, round_.gas_address)
        if await sweeps.touching(session, round_.chain.chain_id, [candidate.address], round_.began_at):
            return
        sweep = Sweep(
            id=new_id("swp"),
            chain_id=round_.chain.chain_id,
            kind=refusal.kind,
            asset=candidate.asset,
            treasury=round_.treasury,
            account=candidate.address,
            nonce=None,
            status="failed",
            error=refusal.error,
            created_at=now,
            ended_at=now,
        )
        session.add(sweep)
        await session.flush()
        session.add(
            SweepItem(
                sweep_id=sweep.id,
                payment_id=candidate.payment_id,
                chain_id=round_.chain.chain_id,
                address=candidate.address,
                asset=candidate.asset,
                amount_units=refusal.units,
                live=False,
            )
        )
    log.error("sweep refused", address=checksum(candidate.address), payment=candidate.payment_id, reason=refusal.error)


async def send(round_: Round, attempt: SweepAttempt) -> Sent:
    """Broadcast an attempt's bytes; remembers when a node took them. Raises NodeError."""
    sent = await broadcast(round_.endpoint, attempt.raw)
    if sent.outcome in TAKEN:
        async with round_.context.db.write() as session:
            await sweeps.mark_broadcast(session, attempt.tx_hash, utc_now())
    else:
        log.warning("sweep not taken", tx_hash=hex0x(attempt.tx_hash), outcome=sent.outcome.value, reason=sent.reason)
    return sent


async def replace_attempt(round_: Round, record: SweepRecord, balance_wei: int) -> int | None:
    """Sign a sweep anew at the same nonce and a higher price, and broadcast it. Raises NodeError.

    Returns how many wei a deposit address lacks for that (a top-up is due), else None.
    """
    sweep, last = record.sweep, record.attempts[-1]
    if len(record.attempts) >= limits.SWEEP_ATTEMPTS:
        if round_.memory.news(f"stuck:{sweep.id}", "stuck"):
            log.error("sweep is stuck", sweep=sweep.id, attempts=len(record.attempts))
        return None
    exact = sweep.kind == "native" and not last.cancels
    former = Fees(round_.fees.base_wei, last.max_priority_fee_units, last.max_fee_units)
    fees = bumped(former, round_.fees.exact() if exact else round_.fees)
    if round_.capped(fees, round_.overdue(sweep.created_at)) != fees:
        least = bumped(former, former)
        fees = round_.capped(fees)
        if fees.max_wei < least.max_wei or fees.priority_wei < least.priority_wei:
            if round_.memory.news(f"stuck:{sweep.id}", "ceiling"):
                log.warning("stuck sweep not replaced: its fee is at max_fee_gwei", sweep=sweep.id)
            return None
    account = await _account_of(round_, sweep)
    if account is None:
        return None
    action = action_of(last.raw)
    fee_wei = last.gas_limit * fees.max_wei
    if sweep.account != round_.gas_address:  # all that it holds goes, or it was given no more than this takes
        fee_wei += await data_fee(round_, action)
    if exact:
        value_wei = min(record.items[0].amount_units, balance_wei) - fee_wei
        if value_wei <= 0:
            return None  # what was there is gone, or is less than its fee now; the bytes that are out stay
        action = Action(action.to, value_wei, action.data)
    elif sweep.account != round_.gas_address and fee_wei > balance_wei:
        return fee_wei - balance_wei
    await _compete(round_, record, account, action, last.gas_limit, fees, cancels=last.cancels)
    return None


async def cancel(round_: Round, record: SweepRecord, reason: str) -> None:
    """Give a nonce up whose transaction no node takes: a plain transaction of nothing to ourselves competes for it."""
    account = await _account_of(round_, record.sweep)
    if account is None:
        return
    last = record.attempts[-1]
    former = Fees(round_.fees.base_wei, last.max_priority_fee_units, last.max_fee_units)
    fees = round_.capped(bumped(former, round_.fees), round_.overdue(record.sweep.created_at))
    action = Action(record.sweep.account)
    gas = await estimate(round_.endpoint, record.sweep.account, action)
    log.error("sweep given up", sweep=record.sweep.id, kind=record.sweep.kind, reason=reason)
    await _compete(round_, record, account, action, gas, fees, cancels=True, error=reason)


async def _compete(
    round_: Round,
    record: SweepRecord,
    account: SigningAccount,
    action: Action,
    gas: int,
    fees: Fees,
    *,
    cancels: bool,
    error: str | None = None,
) -> None:
    """Another attempt for a sweep's nonce, unless the sweep has moved on meanwhile."""
    seen = record.sweep
    async with round_.context.db.write() as session:
        await sweeps.lock_lane(session, round_.chain.chain_id, round_.gas_address)
        now = await sweeps.lock(session, seen.id)
        if now is None or now.sweep.status != "signed" or len(now.attempts) != len(record.attempts):
            return
        if await _is_stopped(session, round_):
            return
        signed = account.sign(action, chain_id=seen.chain_id, nonce=seen.nonce or 0, gas=gas, fees=fees)
        attempt = _attempt(seen, signed, action, gas, fees, cancels=cancels)
        session.add(attempt)
        now.sweep.error = error or now.sweep.error
    log.warning("sweep replaced", sweep=seen.id, tx_hash=hex0x(attempt.tx_hash), max_fee_wei=fees.max_wei)
    await send(round_, attempt)


async def _is_stopped(session: AsyncSession, round_: Round) -> bool:
    """Whether sweeping was paused, or the chain halted, since the round began."""
    state = await chains.get_state(session, round_.chain.chain_id)
    halted = state is None or state.halt_code is not None
    return halted or await pauses.sweeping_paused(session, round_.chain.name)


async def _account_of(round_: Round, sweep: Sweep) -> SigningAccount | None:
    """The keys that signed a sweep; None, which is told, where they are of another wallet: all the rest goes on."""
    if sweep.account == round_.gas_address:
        return round_.signer.gas_account
    if sweep.kind in ("native", "transfer"):  # the others are of a gas account
        async with round_.context.db.read() as session:
            branch, index = await addresses.place_of(session, sweep.account)
        with suppress(ConfigError):
            return round_.deposit_account(sweep.account, branch, index)
    if round_.memory.news(f"foreign:{sweep.id}", "foreign"):
        log.error("stuck sweep not replaced: another wallet signed it", sweep=sweep.id, account=checksum(sweep.account))
    return None


def _attempt(
    sweep: Sweep, signed: SignedTx, action: Action, gas: int, fees: Fees, cancels: bool = False
) -> SweepAttempt:
    return SweepAttempt(
        tx_hash=signed.hash,
        sweep_id=sweep.id,
        raw=signed.raw,
        gas_limit=gas,
        max_fee_units=fees.max_wei,
        max_priority_fee_units=fees.priority_wei,
        value_units=action.value_wei,
        cancels=cancels,
        created_at=utc_now(),
    )


async def reopen(round_: Round, records: Sequence[SweepRecord]) -> None:
    """Sweeps that a reorg took back after they had ended: their nonces are free, and the same bytes go out again."""
    receipts = await fetch_receipts(round_.endpoint, [each.tx_hash for record in records for each in record.attempts])
    for record in records:
        if any(receipts[attempt.tx_hash] is not None for attempt in record.attempts):
            continue  # it is there: the node that told the nonce lags behind the one that has the receipt
        async with round_.context.db.write() as session:
            await sweeps.lock_lane(session, round_.chain.chain_id, round_.gas_address)
            now = await sweeps.lock(session, record.sweep.id)
            if now is None or now.sweep.status != record.sweep.status or not now.attempts:
                continue
            await back_in_the_pool(session, now)
        log.warning("a reorg took a sweep back", sweep=record.sweep.id, kind=record.sweep.kind)


async def back_in_the_pool(session: AsyncSession, record: SweepRecord) -> None:
    """The sweep as it was before it was mined, under its row lock. Had it ended, others may have its addresses now."""
    sweep = record.sweep
    ended = [item for item in record.items if not item.live]
    others = await sweeps.touching(session, sweep.chain_id, [item.address for item in ended])
    for item in ended:
        item.live = item.address not in others
    sweep.status = "signed"
    sweep.ended_at = sweep.tx_hash = sweep.block_number = sweep.block_hash = None
    sweep.gas_used = sweep.gas_price_units = sweep.fee_units = None
    for item in record.items:
        item.moved_units = None
    for attempt in record.attempts:
        attempt.broadcast_at = None  # pools do not take back what a reorg dropped: it goes out again at once

"""Follows what was signed until the chain has had its word, whichever of the competing transactions it chose."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from app.blockchain.errors import NodeError, PrunedError
from app.blockchain.fees import add_prices, paid_wei
from app.blockchain.receipts import fetch_receipts, moved_units
from app.blockchain.sending import Account, Outcome, Sent, fetch_nonce, read_accounts
from app.blockchain.wire import RawReceipt, to_bytes, to_int
from app.core import limits
from app.core.clock import utc_now
from app.core.evm import NATIVE_ASSET, checksum, hex0x
from app.core.logger import get_logger
from app.db.models import Sweep, SweepAttempt
from app.db.repositories import chains, sweeps
from app.db.repositories.sweeps import SweepRecord
from app.services.blockchain.sweeping.jobs import Item
from app.services.blockchain.sweeping.round import Round
from app.services.blockchain.sweeping.sign import TAKEN, back_in_the_pool, cancel, reopen, replace_attempt, send

log = get_logger(__name__)

Receipts = Mapping[bytes, RawReceipt | None]


async def track(round_: Round) -> list[Item]:
    """Look at every sweep that has not ended. Raises NodeError.

    Returns what deposit addresses lack to pay a higher price for a transfer that is stuck: top-ups are due.
    """
    async with round_.context.db.read() as session:
        records = await sweeps.followed(session, round_.chain.chain_id)
    receipts = await fetch_receipts(round_.endpoint, [each.tx_hash for record in records for each in record.attempts])
    missing = [record for record in records if _mined_attempt(record, receipts) is None]
    accounts = await read_accounts(round_.endpoint, {record.sweep.account for record in missing})
    for record in records:
        if record not in missing:
            await _mined(round_, record, receipts)
    await _reopen_earlier(round_, missing, accounts)
    lacking: list[Item] = []
    for record in missing:
        units = await _missing(round_, record, accounts[record.sweep.account])
        if units:
            lacking.append(Item(record.items[0].payment_id, record.sweep.account, units))
    return lacking


def _mined_attempt(record: SweepRecord, receipts: Receipts) -> SweepAttempt | None:
    return next((attempt for attempt in record.attempts if receipts[attempt.tx_hash] is not None), None)


# --- mined


async def _mined(round_: Round, record: SweepRecord, receipts: Receipts) -> None:
    attempt = _mined_attempt(record, receipts)
    receipt = receipts[attempt.tx_hash] if attempt else None
    if attempt is None or receipt is None:
        return
    number, block_hash = to_int(receipt.blockNumber), to_bytes(receipt.blockHash)
    seen = record.sweep
    deep = round_.cursor - number + 1 >= round_.chain.confirmations_required
    if not deep and (seen.status, seen.block_hash) == ("mined", block_hash):
        return
    await add_prices(round_.endpoint, [receipt])
    async with round_.context.db.write() as session:
        now = await sweeps.lock(session, seen.id)
        if now is None or (now.sweep.status, now.sweep.block_hash) != (seen.status, seen.block_hash):
            return  # another sweeper has seen something newer
        header = await chains.get_header(session, round_.chain.chain_id, number)
        _write_receipt(now, attempt, receipt)
        if deep and (header is None or header.hash == block_hash):
            _end(now, attempt, receipt)
    if now.sweep.ended_at is None:
        return
    facts = {"sweep": seen.id, "kind": seen.kind, "tx_hash": hex0x(attempt.tx_hash), "fee_wei": now.sweep.fee_units}
    if now.sweep.error is None:
        log.info("sweep confirmed", **facts)
    else:
        log.error(
            "sweep confirmed in part" if now.sweep.status == "confirmed" else "sweep failed",
            **facts,
            reason=now.sweep.error,
        )


def _write_receipt(record: SweepRecord, attempt: SweepAttempt, receipt: RawReceipt) -> None:
    sweep = record.sweep
    sweep.status = "mined"
    sweep.tx_hash = attempt.tx_hash
    sweep.block_number, sweep.block_hash = to_int(receipt.blockNumber), to_bytes(receipt.blockHash)
    sweep.gas_used = to_int(receipt.gasUsed or "0x0")
    sweep.gas_price_units = to_int(receipt.effectiveGasPrice or "0x0")
    sweep.fee_units = paid_wei(receipt)
    succeeded = receipt.status == "0x1" and not attempt.cancels
    for item in record.items:
        if not succeeded:
            item.moved_units = 0
        elif item.asset == NATIVE_ASSET:
            item.moved_units = attempt.value_units
        else:
            item.moved_units = moved_units(receipt, item.asset, item.address, sweep.treasury or b"")


def _end(record: SweepRecord, attempt: SweepAttempt, receipt: RawReceipt) -> None:
    sweep = record.sweep
    sweep.ended_at = utc_now()
    for item in record.items:
        item.live = False
    idle = [item for item in record.items if item.moved_units == 0]
    if attempt.cancels:
        sweep.status, sweep.error = "failed", sweep.error or "given up"
    elif receipt.status != "0x1":
        sweep.status, sweep.error = "failed", "the transaction reverted"
    elif idle:
        sweep.status = "failed" if len(idle) == len(record.items) else "confirmed"
        sweep.error = f"{len(idle)} of {len(record.items)} addresses moved nothing"
    else:
        sweep.status, sweep.error = "confirmed", None


# --- not mined


async def _reopen_earlier(round_: Round, missing: Sequence[SweepRecord], accounts: Mapping[bytes, Account]) -> None:
    """What a sweep has to wait for goes out before it: sweeps of earlier nonces, ended before a reorg took them back.

    The plan does not look at its address while it is under way.
    """
    nonces = {account: state.nonce for account, state in accounts.items()}
    behind = {
        record.sweep.account: nonces[record.sweep.account]
        for record in missing
        if record.sweep.nonce is not None and nonces[record.sweep.account] < record.sweep.nonce
    }
    async with round_.context.db.read() as session:
        undone = await sweeps.ended_from(session, round_.chain.chain_id, behind)
    await reopen(round_, undone)


async def _missing(round_: Round, record: SweepRecord, account: Account) -> int | None:
    """No receipt of any attempt. Returns what the account lacks to have it replaced, in wei, when that is so."""
    sweep = record.sweep
    if sweep.status == "mined":
        record = await _back_in_the_pool(round_, record)
        sweep = record.sweep
    if sweep.status == "frozen":
        _tell_frozen(round_, sweep)
    if sweep.status != "signed" or sweep.nonce is None:
        return None
    if account.nonce > sweep.nonce:
        await _nonce_taken(round_, record)
        return None
    if round_.paused:
        return None
    last = record.attempts[-1]
    now = utc_now()
    waits = True  # in a pool, for a block: that is what a higher price is for
    if last.broadcast_at is None or now - last.broadcast_at > timedelta(seconds=limits.SWEEP_REBROADCAST_S):
        sent = await send(round_, last)
        if sent.outcome is Outcome.INSUFFICIENT_FUNDS and sweep.account == round_.gas_address:
            return None  # it has to be funded; a higher price would only lack more
        if sent.outcome is Outcome.REJECTED and await _refused(round_, record, sent):
            return None
        if _wants_another_price(sweep, sent):
            return await replace_attempt(round_, record, account.balance_wei)
        # A deposit address that cannot pay is topped up once that lasts.
        waits = last.broadcast_at is not None or sent.outcome in (*TAKEN, Outcome.INSUFFICIENT_FUNDS)
    stuck_s = timedelta(seconds=round_.stuck_s)
    if waits and account.nonce == sweep.nonce and now - last.created_at > stuck_s:  # else an earlier one holds it up
        return await replace_attempt(round_, record, account.balance_wei)
    return None


def _wants_another_price(sweep: Sweep, sent: Sent) -> bool:
    if sent.outcome is Outcome.INSUFFICIENT_FUNDS:
        return sweep.kind == "native"  # with a lower value; a gas account has to be funded
    return sent.outcome in (Outcome.UNDERPRICED, Outcome.FEE_TOO_LOW)


async def _refused(round_: Round, record: SweepRecord, sent: Sent) -> bool:
    """Give up what no node ever took: once, for a node that refuses even that refuses any price.

    False where one took it: then it may still be mined, or be stuck.
    """
    if any(attempt.broadcast_at is not None for attempt in record.attempts):
        if round_.memory.news(f"refused:{record.sweep.id}", sent.reason):
            log.error("sweep refused by a node, after one took it", sweep=record.sweep.id, reason=sent.reason)
        return False
    if record.attempts[-1].cancels or len(record.attempts) >= limits.SWEEP_ATTEMPTS:
        if round_.memory.news(f"refused:{record.sweep.id}", sent.reason):
            log.error("sweep refused, and giving it up as well", sweep=record.sweep.id, reason=sent.reason)
        return True
    try:
        await cancel(round_, record, sent.reason)
    except NodeError as error:
        log.error("sweep cannot be given up", sweep=record.sweep.id, reason=str(error))
    return True


async def _back_in_the_pool(round_: Round, record: SweepRecord) -> SweepRecord:
    """A reorg took its block: the same bytes go out again."""
    seen = record.sweep
    async with round_.context.db.write() as session:
        await sweeps.lock_lane(session, round_.chain.chain_id, round_.gas_address)
        now = await sweeps.lock(session, seen.id)
        if now is None or (now.sweep.status, now.sweep.block_hash) != (seen.status, seen.block_hash):
            return record
        await back_in_the_pool(session, now)
    log.warning("a reorg took a sweep back", sweep=seen.id, kind=seen.kind)
    return now


async def _nonce_taken(round_: Round, record: SweepRecord) -> None:
    """The nonce is used and no attempt has a receipt. Once that is sure, nobody knows what happened: `frozen`.

    Sure: it was used the required confirmations ago already, and no other node has a receipt either.
    """
    sweep = record.sweep
    confirmed_block = round_.cursor - round_.chain.confirmations_required + 1
    try:
        if await fetch_nonce(round_.endpoint, sweep.account, max(confirmed_block, 0)) <= (sweep.nonce or 0):
            return
    except PrunedError as error:
        if round_.memory.news(f"pruned:{sweep.id}", "pruned"):
            log.warning("cannot tell how long a sweep's nonce has been used", sweep=sweep.id, reason=str(error))
        return
    other = round_.context.nodes.nodes(round_.chain).pick(other_than=round_.endpoint)
    if other is not None:
        receipts = await fetch_receipts(other, [attempt.tx_hash for attempt in record.attempts])
        if any(receipt is not None for receipt in receipts.values()):
            return  # the first node has lost it, or has not indexed it yet
    async with round_.context.db.write() as session:
        now = await sweeps.lock(session, sweep.id)
        if now is None or now.sweep.status != "signed" or len(now.attempts) != len(record.attempts):
            return
        now.sweep.status = "frozen"
        now.sweep.error = f"nonce {sweep.nonce} was used by a transaction that is not ours"
    _tell_frozen(round_, sweep)


def _tell_frozen(round_: Round, sweep: Sweep) -> None:
    if round_.memory.news(f"frozen:{sweep.id}", "frozen"):
        log.error(
            "sweep frozen: look at the account, then `paywatch sweep release`",
            sweep=sweep.id,
            account=checksum(sweep.account),
            nonce=sweep.nonce,
        )

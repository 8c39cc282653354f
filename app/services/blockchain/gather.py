"""What a step needs of the nodes: fetched, checked and matched, with no database session held while waiting."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from app.blockchain.blocks import BlockRun, fetch_run
from app.blockchain.errors import NodeBehindError, NodeError
from app.blockchain.headers import Header
from app.blockchain.receipts import fetch_receipts, proves
from app.blockchain.rpc import Endpoint
from app.blockchain.transfers import ObservedTransfer
from app.blockchain.wire import RawReceipt
from app.core.chains import Chain
from app.core.evm import hex0x
from app.core.logger import get_logger
from app.db.models import Transaction
from app.db.repositories import addresses, payments
from app.services.blockchain.balances import Holdings, Surpluses, find_surpluses, still_there
from app.services.blockchain.chains import require_same_chain
from app.services.blockchain.outflows import (
    ObservedOutflow,
    from_deposits,
    known_treasuries,
    read_outflows,
    verify_outflows,
    without_own,
)
from app.services.blockchain.plan import Plan, finalized_by
from app.services.context import Context

log = get_logger(__name__)

Matched = tuple[ObservedTransfer, str]  # with the id of the payment whose address was paid


@dataclass(frozen=True, slots=True)
class Findings:
    """What a step brings home, checked, before anything is locked or written.

    `finalized_number`: up to where our chain is final once the run is written.
    `rotated_address_id`: how far the rotation through all addresses' balances has come; None when it did not turn.
    `holdings`: what was recorded for those whose balance held more.
    """

    run: BlockRun | None
    transfers: tuple[Matched, ...]
    verified_ids: tuple[int, ...]
    finalized_number: int
    rotated_address_id: int | None = None
    holdings: Holdings = field(default_factory=dict)
    outflows: tuple[ObservedOutflow, ...] = ()
    verified_outflow_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Matches:
    """Transfers of a run that reached deposit addresses, and those that left them for the treasury."""

    transfers: list[Matched]
    outflows: tuple[ObservedOutflow, ...]


async def gather(context: Context, chain: Chain, endpoint: Endpoint, plan: Plan) -> Findings:
    """Blocks, transfers and second looks of one step. Raises NodeError."""
    run = await _next_run(context, chain, endpoint, plan) if plan.blocks else None
    finalized_number = finalized_by(chain, plan, run.headers if run else ())
    matches = await match(context, chain, endpoint, run) if run is not None else Matches([], ())
    matched = matches.transfers
    looked = Surpluses()
    if run is not None and chain.native.detect == "balances":
        looked = await find_surpluses(context, chain, endpoint, run, matched)
        matched += looked.transfers
    reached = run.headers[-1] if run else plan.head
    async with context.db.read() as session:
        after_id = context.looked_transfers.get(chain.chain_id, 0)
        candidates = await payments.unverified(session, chain.chain_id, reached.number, after_id)
    if candidates:
        context.looked_transfers[chain.chain_id] = candidates[-1].id
    verified_ids = await _verify(context, chain, endpoint, candidates, reached)
    return Findings(
        run,
        tuple(matched),
        tuple(verified_ids),
        finalized_number,
        looked.rotated_address_id,
        looked.holdings,
        matches.outflows,
        await verify_outflows(context, chain, reached, partial(_receipts, context, chain, endpoint)),
    )


async def match(context: Context, chain: Chain, endpoint: Endpoint, run: BlockRun) -> Matches:
    """Transfers of a run that reached or left deposit addresses and did not fail. Raises NodeError."""
    recipients = run.recipients()
    async with context.db.read() as session:
        owners = await addresses.payments_by_address(session, recipients)
        treasuries = recipients & await known_treasuries(session, chain)
        observed = run.transfers_to(owners.keys() | treasuries) if owners or treasuries else []
        inflows = await without_own(session, chain, [each for each in observed if each.recipient in owners])
        leaving = await from_deposits(session, [each for each in observed if each.recipient in treasuries])
    found = await _successful(endpoint, inflows)
    matched = [(transfer, owners[transfer.recipient]) for transfer in found]
    return Matches(matched, await read_outflows(endpoint, leaving) if leaving else ())


async def _next_run(context: Context, chain: Chain, endpoint: Endpoint, plan: Plan) -> BlockRun:
    """The planned blocks, perhaps fetched already; while they are written the following ones are on their way."""
    ahead = context.ahead.take(chain.chain_id, endpoint, plan.cursor.number + 1)
    run = await (ahead if ahead is not None else _fetch(context, chain, endpoint, plan.cursor.number + 1, plan))
    following = run.headers[-1].number + 1
    if following <= plan.final_height:
        context.ahead.start(chain.chain_id, endpoint, following, _fetch(context, chain, endpoint, following, plan))
    return run


async def _fetch(context: Context, chain: Chain, endpoint: Endpoint, first: int, plan: Plan) -> BlockRun:
    last = min(first + plan.blocks - 1, plan.final_height) if first <= plan.final_height else plan.last
    return await fetch_run(
        endpoint,
        first,
        last,
        [token.address for token in chain.tokens],
        by_range=last <= plan.final_height,
        second=context.nodes.nodes(chain).pick(other_than=endpoint),
        trace=chain.native.detect == "trace",
    )


async def _successful(endpoint: Endpoint, transfers: list[ObservedTransfer]) -> list[ObservedTransfer]:
    """Transfers without the native ones whose transaction failed: a reverted transaction pays nothing, but shows."""
    native = {transfer.tx_hash for transfer in transfers if transfer.log_index is None and transfer.tx_hash}
    receipts = await fetch_receipts(endpoint, native) if native else {}
    kept = []
    for transfer in transfers:
        if transfer.log_index is None and transfer.tx_hash:
            receipt = receipts[transfer.tx_hash]
            if receipt is None or receipt.blockHash != hex0x(transfer.block.hash):
                raise NodeBehindError(f"no receipt of {hex0x(transfer.tx_hash)} in the block that holds it")
            if receipt.status != "0x1":
                continue
        kept.append(transfer)
    return kept


async def _verify(
    context: Context, chain: Chain, endpoint: Endpoint, candidates: Sequence[Transaction], reached: Header
) -> list[int]:
    """Ids of those transfers that a second look confirms: by the receipt, from another endpoint when there is one;
    a `balance` transfer by reading the balance again.
    """
    with_receipt = [row for row in candidates if row.tx_hash is not None]
    without = [row for row in candidates if row.tx_hash is None]
    covered = await still_there(context, chain, endpoint, without, reached)
    verified = [row.id for row in without if row.recipient in covered]
    if not with_receipt:
        return verified
    hashes = {row.tx_hash for row in with_receipt if row.tx_hash is not None}
    receipts = await _receipts(context, chain, endpoint, hashes)
    for row in with_receipt:
        receipt = receipts[row.tx_hash] if row.tx_hash is not None else None
        if proves(
            receipt,
            block_hash=row.block_hash,
            asset=row.asset,
            log_index=row.log_index,
            recipient=row.recipient,
            units=row.amount_units,
        ):
            verified.append(row.id)
        else:
            log.warning("transfer not confirmed by its receipt", payment=row.payment_id, position=row.position)
    return verified


async def _receipts(
    context: Context, chain: Chain, endpoint: Endpoint, hashes: set[bytes]
) -> dict[bytes, RawReceipt | None]:
    """Receipts from another endpoint when there is one; from our own when that one cannot be asked.

    A receipt that the other one does not have stays missing: it may be behind, or ours may have made it up.
    """
    second = context.nodes.nodes(chain).pick(other_than=endpoint)
    if second is None:
        return await fetch_receipts(endpoint, hashes)
    try:
        await require_same_chain(context, chain, second)
        return await fetch_receipts(second, hashes)
    except NodeError as error:
        log.warning("second endpoint not usable", endpoint=second.name, reason=str(error))
        return await fetch_receipts(endpoint, hashes)

"""The scanner step: reads the next blocks of a chain and writes them with everything that follows from them.

A step can die between any two lines, run twice, or run beside another one: the cursor moves by compare-and-set under
the chain's row lock, in the transaction that writes the transfers, the payments' states, the events and the outbox.
"""

from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.errors import InvalidAnswerError, NodeBehindError, NodeError
from app.blockchain.headers import Header
from app.blockchain.rpc import Endpoint
from app.core import limits, metrics
from app.core.chains import Chain
from app.core.clock import from_unix
from app.core.logger import get_logger, report_error
from app.db.models import ChainState
from app.db.repositories import chains, outflows, payments, transactions
from app.services.blockchain.balances import POSITION, surpluses_hold
from app.services.blockchain.chains import require_same_chain
from app.services.blockchain.fork import roll_back
from app.services.blockchain.gather import Findings, gather
from app.services.blockchain.link import Link, link
from app.services.blockchain.newest import require_newest, stands_still
from app.services.blockchain.outflows import mark_swept, orphan_replaced, record_outflows
from app.services.blockchain.plan import Cursor, Plan, plan_range, read_cursor
from app.services.blockchain.rows import header_row, transfer_row
from app.services.context import Context
from app.services.decide import Change, passed_by_chain
from app.services.ledger import Cause, decide_again, heads_of

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """`progressed`: another step at once is worthwhile. `changes`: what payments went through; they were committed.

    `problem`: why the node could not be asked or believed; nothing was written then. `halted`: why the chain stands
    still, `config` until a check passes, `reorg` or `operator` until an operator lets it go on.
    """

    progressed: bool
    changes: tuple[Change, ...] = ()
    problem: str | None = None
    halted: str | None = None


async def step(context: Context, chain: Chain) -> StepOutcome:
    """Take a chain one range further. One endpoint serves the whole step; the next step may pick another one."""
    cursor = await read_cursor(context, chain)
    nodes = context.nodes.nodes(chain)
    endpoint = nodes.pick()
    if isinstance(cursor, str):
        return StepOutcome(progressed=False, halted=cursor)
    if endpoint is None:
        return StepOutcome(progressed=False, problem="no endpoint is on this chain")
    try:
        outcome = await _step(context, chain, endpoint, cursor)
    except NodeError as error:
        # One that is only behind keeps its place unless another one can take over: it may have the block in a moment.
        if not isinstance(error, NodeBehindError) or nodes.pick(other_than=endpoint) is not None:
            nodes.failed(endpoint, error)
        return StepOutcome(progressed=False, problem=f"{endpoint.name}: {error}")
    except (ArithmeticError, LookupError, RecursionError, ValueError) as error:
        # Most likely something in its answers that we did not foresee: another node may not say it.
        report_error(log, error)
        nodes.failed(endpoint, InvalidAnswerError(type(error).__name__))
        return StepOutcome(progressed=False, problem=f"{endpoint.name}: {type(error).__name__}")
    nodes.succeeded(endpoint)
    if outcome.progressed:
        nodes.step_blocks.grow()
    return outcome


def too_much(context: Context, chain: Chain) -> None:
    """A step took too long. The next one takes half of the blocks: blocks full of transfers may be the reason."""
    context.nodes.nodes(chain).step_blocks.shrink()


async def _step(context: Context, chain: Chain, endpoint: Endpoint, cursor: Cursor) -> StepOutcome:
    await require_same_chain(context, chain, endpoint)
    plan = await plan_range(context, chain, endpoint, cursor)
    await require_newest(context, chain, endpoint, plan)
    if plan.fork:
        return StepOutcome(True, tuple(await roll_back(context, chain, endpoint, cursor)))
    findings = await gather(context, chain, endpoint, plan)
    if findings.run and link([(cursor.number, cursor.hash)], findings.run.headers[0]) is not Link.EXTENDS:
        return StepOutcome(True, tuple(await roll_back(context, chain, endpoint, cursor)))
    return await _write(context, chain, plan, findings)


async def _write(context: Context, chain: Chain, plan: Plan, findings: Findings) -> StepOutcome:
    """One transaction: headers, transfers, decisions, events, deliveries, cursor."""
    verified = findings.verified_ids or findings.verified_outflow_ids
    if findings.run is None and not verified and not await _worth_writing(context, chain, plan):
        return StepOutcome(progressed=False)
    async with context.db.write() as session:
        state = await chains.lock_state(session, chain.chain_id)
        if state is None or not plan.cursor.holds(state):
            return StepOutcome(progressed=False)  # somebody else was quicker: the work is dropped
        headers = findings.run.headers if findings.run else ()
        upto = headers[-1].number if headers else state.last_scanned_block
        if not await surpluses_hold(session, chain, findings.holdings, upto):
            return StepOutcome(progressed=True)  # a backup pass or a rescan credited it meanwhile: look again
        is_reread = bool(headers) and headers[0].number <= state.highest_block
        replaced = await orphan_replaced(session, chain, headers, state.highest_block) if is_reread else set()
        await chains.insert_headers(session, [header_row(chain, header) for header in headers])
        rows = [transfer_row(chain, *found) for found in findings.transfers]
        news = await transactions.record(session, [row for row in rows if row["position"] != POSITION])
        await transactions.replace_balances(session, news, POSITION)  # earlier ones: today's leave these out
        news += await transactions.record(session, [row for row in rows if row["position"] == POSITION])
        await transactions.mark_verified(session, list(findings.verified_ids))
        left = await record_outflows(session, chain, findings.outflows)
        moved = {each.recipient for each, _ in findings.transfers} | {row.sender for row in left}
        await mark_swept(session, chain, moved)
        _advance(chain, state, plan, findings, headers[-1] if headers else None)
        # During a catch-up nothing is known to be final for long: what the node calls so will do for throwing away.
        final_height = max(state.finalized_block, plan.final.number if plan.final else 0)
        keep_from = min(final_height, state.last_scanned_block - limits.HEADER_WINDOW_BLOCKS)
        await chains.delete_headers_below(session, chain.chain_id, keep_from)
        await session.flush()  # `decide_again` reads the cursor and the transfers
        touched = replaced | {payment_id for _, payment_id in findings.transfers}
        touched |= await outflows.mark_verified(session, findings.verified_outflow_ids)
        touched |= await _open_payments(context, session, chain, state)
        kind = "reorg" if replaced else "block"
        cause = Cause(kind, {"chain": chain.name, "block_number": state.last_scanned_block})
        changes = await decide_again(context, session, touched, cause)
    metrics.BLOCKS_SCANNED.labels(chain.name).inc(len(headers))
    metrics.TRANSFERS.labels(chain.name).inc(len(news))
    if headers:
        log.debug("scanned", chain=chain.name, first=headers[0].number, last=headers[-1].number)
    return StepOutcome(bool(headers) or len(changes) >= limits.DECIDE_PAYMENTS, tuple(changes))


async def _worth_writing(context: Context, chain: Chain, plan: Plan) -> bool:
    """Whether a step without blocks has something to say: a payment is due, or the head was not told for a while."""
    async with context.db.read() as session:
        states = await chains.list_states(session)
        state = states.get(chain.chain_id)
        if state is None:
            return False
        if plan.began_at - state.head_seen_at > timedelta(seconds=limits.HEAD_SEEN_EVERY_S):
            return True
        heads = heads_of(states)
        if not stands_still(chain, plan):
            heads[chain.chain_id] = replace(heads[chain.chain_id], caught_up_at=plan.began_at)
        return bool(await payments.due(session, chain.chain_id, passed_by_chain(heads)))


async def _open_payments(context: Context, session: AsyncSession, chain: Chain, state: ChainState) -> set[str]:
    """Payments that time or confirmations can change: due to expire, detected and, unswept, waiting for finality.

    As many as one transaction can take; the next step takes the next ones.
    """
    heads = heads_of(await chains.list_states(session))
    due = await payments.due(session, chain.chain_id, passed_by_chain(heads))
    final_block = state.finalized_block if chain.sweep.mode == "off" else None
    after_id = context.looked_payments.get(chain.chain_id, "")
    ripening = await payments.ripening(session, chain.chain_id, final_block, after_id)
    if ripening:
        context.looked_payments[chain.chain_id] = ripening[-1]
    return {*due, *ripening}


def _advance(chain: Chain, state: ChainState, plan: Plan, findings: Findings, last: Header | None) -> None:
    if last is not None:
        state.last_scanned_block = last.number
        state.last_scanned_hash = last.hash
        state.last_scanned_time = from_unix(last.time)
        state.highest_block = max(state.highest_block, last.number)
    elif not stands_still(chain, plan):  # a node that does knows nothing of the time since
        state.caught_up_at = plan.began_at
    if findings.rotated_address_id is not None:
        state.rotated_address_id = findings.rotated_address_id
    state.finalized_block = max(state.finalized_block, findings.finalized_number)
    state.head_block = plan.head.number
    state.head_seen_at = plan.began_at

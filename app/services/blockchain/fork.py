"""Undoes what a reorganisation took back."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.blockchain.errors import InvalidAnswerError, NodeBehindError
from app.blockchain.headers import Header, fetch_header, fetch_header_and, fetch_headers
from app.blockchain.rpc import Endpoint
from app.core import limits, metrics
from app.core.chains import Chain
from app.core.clock import from_unix
from app.core.evm import hex0x
from app.core.logger import get_logger
from app.db.repositories import chains, transactions
from app.services.blockchain.chains import require_same_chain
from app.services.blockchain.outflows import orphan_outflows
from app.services.blockchain.plan import Cursor
from app.services.blockchain.rows import header_row
from app.services.context import Context
from app.services.decide import Change
from app.services.ledger import Cause, decide_again

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class WayBack:
    """From where a reorg has halted a chain to the last block that the node shares with it; None: none that is kept."""

    cursor: Cursor
    ancestor: Header | None
    endpoint: Endpoint


async def find_way_back(context: Context, chain: Chain) -> WayBack | None:
    """What `release` would go; None when no reorg has halted the chain, or no endpoint is on it. Raises NodeError."""
    async with context.db.read() as session:
        state = await chains.get_state(session, chain.chain_id)
    endpoint = context.nodes.nodes(chain).pick()
    if state is None or endpoint is None or state.halt_code != "reorg":
        return None
    await require_same_chain(context, chain, endpoint)
    cursor = Cursor(state.last_scanned_block, state.last_scanned_hash, state.first_block, state.finalized_block)
    async with context.db.read() as session:
        ours = await chains.headers_from(session, chain.chain_id, cursor.first_block)
    return WayBack(cursor, await _common_ancestor(endpoint, ours), endpoint)


async def release(context: Context, chain: Chain, first: int) -> list[Change]:
    """Let a chain that a reorg halted go on, on the operator's word: finality is no barrier this once.

    Takes the cursor back to the common ancestor, or to the block below `first` when there is none. Raises NodeError.
    """
    way = await find_way_back(context, chain)
    if way is None:
        return []
    ancestor = way.ancestor or await fetch_header(way.endpoint, max(first - 1, 0))
    return await go_back(context, chain, way.cursor, ancestor)


async def go_back(context: Context, chain: Chain, cursor: Cursor, ancestor: Header) -> list[Change]:
    """Take a halted chain back to `ancestor` and let it go on, unless its cursor has moved meanwhile."""
    return await _write(context, chain, cursor, ancestor, halted=True)


async def roll_back(context: Context, chain: Chain, endpoint: Endpoint, cursor: Cursor) -> list[Change]:
    """Take the cursor back to the common ancestor, and what was credited above it with it.

    A fork below finality halts the chain: an operator decides, nobody guesses. One that reaches below the first block
    ever scanned restarts there, since nothing was credited below it. Raises NodeError; nothing is written then:
    InvalidAnswerError when the node has our cursor after all, NodeBehindError when it is on a branch that lost to what
    is final.
    """
    async with context.db.read() as session:
        lowest = max(cursor.first_block, cursor.number - limits.HEADER_WINDOW_BLOCKS)
        ours = await chains.headers_from(session, chain.chain_id, lowest)
    ancestor = await _common_ancestor(endpoint, ours)
    whole = ours[0][0] == cursor.first_block  # nothing that was scanned is left to compare
    if ancestor is None and whole and cursor.first_block >= cursor.finalized_number:
        # What was mined above the first block may now stand below it, but never below the last final one.
        ancestor = await fetch_header(endpoint, cursor.finalized_number)
    if ancestor is not None and ancestor.hash == cursor.hash:
        raise InvalidAnswerError(f"the node contradicts block {cursor.number} and has it")
    if ancestor is None or ancestor.number < cursor.finalized_number:
        await _require_final(context, chain, endpoint, cursor)
        await _halt(context, chain, cursor)
        return []
    return await _write(context, chain, cursor, ancestor)


async def _common_ancestor(endpoint: Endpoint, ours: Sequence[tuple[int, bytes]]) -> Header | None:
    """The highest block that we scanned and the node still has; asked in batches that double as they go down.

    Raises NodeBehindError when the node has none of the heights: that is no fork, only a node that knows less.
    """
    remaining = list(ours)
    size = 4
    contradicted = False
    while remaining:
        chunk = remaining[-size:]
        del remaining[-size:]
        theirs = await fetch_headers(endpoint, (number for number, _ in chunk))
        contradicted = contradicted or bool(theirs)
        for number, hash_ in reversed(chunk):
            if number in theirs and theirs[number].hash == hash_:
                return theirs[number]
        size = min(size * 2, limits.RPC_BATCH_CALLS)
    if not contradicted:
        raise NodeBehindError("the node has none of the scanned blocks")
    return None


async def _require_final(context: Context, chain: Chain, endpoint: Endpoint, cursor: Cursor) -> None:
    """Raise NodeError unless another block is final for the node where ours is: one that was left on a lost branch
    must not halt us, and behind a balancer it may be anybody who told of the fork.
    """
    number = cursor.finalized_number
    top, theirs = await fetch_header_and(endpoint, chain.finality.tag or "latest", number)
    final_height = top.number - (chain.finality.depth or 0)
    if final_height < number:
        raise NodeBehindError(f"the node left our branch and is final only to {final_height}, we to {number}")
    async with context.db.read() as session:
        ours = await chains.get_header(session, chain.chain_id, number)
    if ours is not None and ours.hash == theirs.hash:
        raise InvalidAnswerError(f"the node contradicts the final block {number} and has it")


async def _write(
    context: Context, chain: Chain, cursor: Cursor, ancestor: Header, halted: bool = False
) -> list[Change]:
    depth = cursor.number - ancestor.number
    async with context.db.write() as session:
        state = await chains.lock_state(session, chain.chain_id)
        if state is None or not (cursor.is_at(state) if halted else cursor.holds(state)):
            return []
        touched = await transactions.orphan_above(session, chain.chain_id, ancestor.number)
        touched |= await orphan_outflows(session, chain, ancestor.number)
        await chains.delete_headers_above(session, chain.chain_id, ancestor.number)
        header = await chains.get_header(session, chain.chain_id, ancestor.number)
        if header is None or header.hash != ancestor.hash:  # restarted below everything that was scanned
            await chains.delete_headers_above(session, chain.chain_id, ancestor.number - 1)
            await chains.insert_headers(session, [header_row(chain, ancestor)])
            state.first_block = min(state.first_block, ancestor.number)
        state.last_scanned_block = ancestor.number
        state.last_scanned_hash = ancestor.hash
        state.last_scanned_time = from_unix(ancestor.time)
        if halted:
            state.highest_block = ancestor.number  # a chain begun anew may never come to its old height again
        state.caught_up_at = None
        state.finalized_block = min(state.finalized_block, ancestor.number)
        state.backup_block = min(state.backup_block, ancestor.number)
        state.halt_code = state.halt_detail = None
        await session.flush()
        cause = Cause("reorg", {"chain": chain.name, "depth": depth, "ancestor_block": ancestor.number})
        changes = await decide_again(context, session, touched, cause)
    metrics.REORG_DEPTH_BLOCKS.labels(chain.name).observe(depth)
    log.warning("reorg", chain=chain.name, depth=depth, ancestor=ancestor.number, payments=len(touched))
    return changes


async def _halt(context: Context, chain: Chain, cursor: Cursor) -> None:
    detail = (
        f"block {cursor.number} ({hex0x(cursor.hash)}) was replaced by a fork that reaches below the final block "
        f"{cursor.finalized_number}; check the node, then `paywatch chain resume {chain.name}`"
    )
    async with context.db.write() as session:
        state = await chains.lock_state(session, chain.chain_id)
        if state is None or not cursor.holds(state):
            return
        state.halt_code = "reorg"
        state.halt_detail = detail
    log.error("chain halted", chain=chain.name, reason=detail)

"""An operator's hand on one chain: halt it, let it go on, or have it read its blocks again. The others go on."""

from dataclasses import dataclass

from app.blockchain.blocks import fetch_run
from app.blockchain.errors import NodeError
from app.blockchain.headers import Header, fetch_header
from app.core.chains import Chain
from app.core.clock import from_unix, rfc3339, utc_now
from app.core.errors import Conflict
from app.core.evm import hex0x
from app.core.logger import get_logger
from app.db.models import ChainState
from app.db.repositories import chains
from app.services.blockchain.chains import ChainCheck, check, prepare, require_same_chain
from app.services.blockchain.fork import WayBack, find_way_back, go_back
from app.services.blockchain.rows import header_row
from app.services.context import Context
from app.services.decide import Change

log = get_logger(__name__)

OPERATOR = "operator"  # the halt's code


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a chain stands still. `code`: config, reorg or operator."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Resumption:
    """A halt that can be ended. `way`: of a reorg's, where the cursor goes."""

    halt: Halt
    way: WayBack | None = None

    @property
    def blocks_undone(self) -> int:
        """How many scanned blocks the node does not have any more."""
        ancestor = self.way.ancestor if self.way else None
        return self.way.cursor.number - ancestor.number if self.way and ancestor else 0


@dataclass(frozen=True, slots=True)
class Reset:
    """A way back that is safe: `seen` is the last scanned block, which the node has, `target` one below it."""

    seen_number: int
    seen_hash: bytes
    target: Header


async def halt_of(context: Context, chain: Chain) -> Halt | None:
    """Why the chain stands still. Raises Conflict for one that was never scanned."""
    async with context.db.read() as session:
        return _halt(_known(chain, await chains.get_state(session, chain.chain_id)))


async def halt(context: Context, chain: Chain, reason: str, by: str) -> bool:
    """Stop scanning and sweeping the chain and taking payments on it, until `resume`.

    False when an operator or a reorg has halted it already; what it was halted for stays. A halt that would end by
    itself, once the node and chains.yaml agree, becomes the operator's.
    """
    async with context.db.write() as session:
        state = _known(chain, await chains.lock_state(session, chain.chain_id))
        if state.halt_code not in (None, "config"):
            return False
        state.halt_code = OPERATOR
        state.halt_detail = (
            f"halted by {by} since {rfc3339(utc_now())}: {reason}; `paywatch chain resume {chain.name}` lets it go on"
        )
    log.warning("chain halted by an operator", chain=chain.name, reason=reason, operator=by)
    return True


async def find_resumption(context: Context, chain: Chain) -> Resumption | None:
    """Look whether the cause of a halt is gone; None when nothing halts the chain.

    Raises Conflict where the node and chains.yaml contradict each other, the node does not answer, or it has none of
    the blocks that were scanned.
    """
    found = await halt_of(context, chain)
    if found is None:
        return None
    checked = await check(context, chain)
    if isinstance(checked, ChainCheck):
        raise Conflict(f"chain {chain.name!r} stays halted: {checked.problem}")
    try:
        way = await find_way_back(context, chain)
    except NodeError as error:
        raise Conflict(f"chain {chain.name!r} stays halted: {error}") from error
    if way is not None and way.ancestor is None:
        raise Conflict(
            f"chain {chain.name!r} stays halted: its node has none of the scanned blocks that are kept; "
            f"if that node is right, `paywatch rescan --chain {chain.name} --from BLOCK` goes back to below BLOCK"
        )
    return Resumption(found, way)


async def resume(context: Context, chain: Chain, resumption: Resumption, by: str) -> list[Change]:
    """Let a halted chain go on; after a reorg from the last block that the node shares with what was scanned.

    Returns what payments went through. Raises Conflict where the chain stands still even so: it was halted for another
    reason meanwhile, its cursor has moved, or its node is wrong again.
    """
    changes: list[Change] = []
    if resumption.way is not None and resumption.way.ancestor is not None:
        changes = await go_back(context, chain, resumption.way.cursor, resumption.way.ancestor)
    elif resumption.halt.code == "config":
        await prepare(context, chain)
    else:
        async with context.db.write() as session:
            state = _known(chain, await chains.lock_state(session, chain.chain_id))
            if _halt(state) == resumption.halt:
                state.halt_code = state.halt_detail = None
    left = await halt_of(context, chain)
    if left is not None:
        raise Conflict(f"chain {chain.name!r} stays halted: {left.detail}")
    log.warning("chain resumed by an operator", chain=chain.name, halted_for=resumption.halt.detail, operator=by)
    return changes


async def find_reset(context: Context, chain: Chain, number: int) -> Reset | None:
    """Look whether the cursor can go back to `number`; None when it is there already.

    Raises Conflict where that is not safe: forwards, blocks would be left out; below the first block that was scanned
    there is nothing to read again; and the node has to have the chain that was scanned, with all that reading it takes.
    """
    async with context.db.read() as session:
        state = _known(chain, await chains.get_state(session, chain.chain_id))
        kept = await chains.get_header(session, chain.chain_id, number)
    cursor = state.last_scanned_block
    if number == cursor:
        return None
    if number > cursor:
        raise Conflict(f"the cursor is at block {cursor}; going forward to {number} would leave blocks out")
    if number < state.first_block:
        raise Conflict(
            f"chain {chain.name!r} was first scanned at block {state.first_block}; "
            f"`paywatch rescan --chain {chain.name} --from BLOCK --to BLOCK` looks below it"
        )
    if state.halt_code not in (None, OPERATOR):
        raise Conflict(f"`paywatch chain resume {chain.name}` comes first: {state.halt_detail}")
    try:
        seen, target = await _ask(context, chain, cursor, number)
    except NodeError as error:
        raise Conflict(f"the node cannot say what followed block {number}: {error}") from error
    if seen.hash != state.last_scanned_hash:
        raise Conflict(
            f"block {cursor} is {hex0x(seen.hash)} for the node, and another one was scanned: a fork is undone first"
        )
    if kept is not None and kept.hash != target.hash:
        raise Conflict(f"block {number} is {hex0x(target.hash)} for the node, and another one was scanned")
    return Reset(cursor, state.last_scanned_hash, target)


async def reset(context: Context, chain: Chain, way: Reset, by: str) -> None:
    """Set the cursor back, so that every block above is read again. Raises Conflict when the chain changed meanwhile.

    What was credited above stays credited: a block that comes again as it was brings nothing new, and one that comes
    as another takes back what stood in it (`scanner`). So nobody is told anything unless something was wrong. Finality
    is proved anew from there, the backup pass reads again too, and nothing expires before the old height is regained.
    """
    number = way.target.number
    async with context.db.write() as session:
        state = _known(chain, await chains.lock_state(session, chain.chain_id))
        seen = await chains.get_header(session, chain.chain_id, way.seen_number)
        if seen is None or seen.hash != way.seen_hash or state.halt_code not in (None, OPERATOR):
            raise Conflict(f"chain {chain.name!r} has changed meanwhile; run it again")
        before = state.last_scanned_block
        await chains.delete_headers_above(session, chain.chain_id, number)
        await chains.insert_base(session, header_row(chain, way.target))
        state.last_scanned_block, state.last_scanned_hash = number, way.target.hash
        state.last_scanned_time = from_unix(way.target.time)
        state.finalized_block = min(state.finalized_block, number)
        state.backup_block = min(state.backup_block, number)
        state.caught_up_at = None
    log.warning("chain reset by an operator", chain=chain.name, before=before, cursor=number, operator=by)


async def _ask(context: Context, chain: Chain, cursor: int, number: int) -> tuple[Header, Header]:
    """The headers of both heights, from a node that can serve the block after `number`. Raises NodeError."""
    endpoint = context.nodes.nodes(chain).pick()
    if endpoint is None:
        raise Conflict("no endpoint is on this chain")
    await require_same_chain(context, chain, endpoint)
    seen, target = await fetch_header(endpoint, cursor), await fetch_header(endpoint, number)
    tokens = [token.address for token in chain.tokens]
    trace = chain.native.detect == "trace"
    await fetch_run(endpoint, number + 1, number + 1, tokens, by_range=False, trace=trace)
    return seen, target


def _known(chain: Chain, state: ChainState | None) -> ChainState:
    if state is None:
        raise Conflict(f"chain {chain.name!r} was never scanned: its node has not been reached yet")
    return state


def _halt(state: ChainState) -> Halt | None:
    return None if state.halt_code is None else Halt(state.halt_code, state.halt_detail or "")

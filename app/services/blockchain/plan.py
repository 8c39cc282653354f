"""What a step is to read next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from app.blockchain.errors import InvalidAnswerError, NodeBehindError
from app.blockchain.headers import Header, fetch_header
from app.blockchain.rpc import Endpoint
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.evm import hex0x
from app.db.models import ChainState
from app.db.repositories import chains
from app.services.blockchain.link import Link, link
from app.services.context import Context


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last scanned block of a chain, as it was read without a lock."""

    number: int
    hash: bytes
    first_block: int
    finalized_number: int

    def is_at(self, state: ChainState) -> bool:
        """The compare of compare-and-set: whether the locked row is still where this cursor was read."""
        return (state.last_scanned_block, state.last_scanned_hash) == (self.number, self.hash)

    def holds(self, state: ChainState) -> bool:
        """Whether work begun here may be written: nobody moved the cursor meanwhile, and nobody halted the chain."""
        return self.is_at(state) and state.halt_code is None


@dataclass(frozen=True, slots=True)
class Plan:
    """Blocks after `cursor` up to `last` (none when `last` is the cursor), or a `fork` to be undone first.

    `final_height`: up to here the node calls its blocks final, which is good for choosing ranges and proves nothing.
    `final`: the node's last final block where finality goes by a tag; None else, and when it was not asked for.
    `finalized_number`: up to here the blocks of our own chain are known to be final, before the planned ones are read.
    """

    cursor: Cursor
    head: Header
    began_at: datetime
    last: int
    final_height: int
    finalized_number: int
    final: Header | None = None
    fork: bool = False

    @property
    def head_age_s(self) -> float:
        """How old the head was when it was asked for, by its own time."""
        return self.began_at.timestamp() - self.head.time

    @property
    def blocks(self) -> int:
        return self.last - self.cursor.number


async def read_cursor(context: Context, chain: Chain) -> Cursor | str:
    """The chain's cursor; while it is halted the halt's code, and `config` where no check has made a cursor yet."""
    async with context.db.read() as session:
        state = await chains.get_state(session, chain.chain_id)
    if state is None:
        return "config"
    if state.halt_code is not None:
        return state.halt_code
    return Cursor(state.last_scanned_block, state.last_scanned_hash, state.first_block, state.finalized_block)


async def plan_range(context: Context, chain: Chain, endpoint: Endpoint, cursor: Cursor) -> Plan:
    """Choose the next range: finalized blocks in wide ranges, unfinalized ones in short linked runs.

    Costs one request when nothing is new. Raises NodeError; NodeBehindError when the node's head is below the cursor.
    """
    began_at = utc_now()
    head = await fetch_header(endpoint, "latest")
    idle = Plan(cursor, head, began_at, cursor.number, cursor.finalized_number, cursor.finalized_number)
    if head.number > cursor.number:
        return await _onwards(context, chain, endpoint, idle)
    relation = link(await _window_from(context, chain, head.number), head)
    if relation is Link.FORK:
        return replace(idle, fork=True)
    if head.number < cursor.number:
        raise NodeBehindError(f"the node's head {head.number} is below the cursor {cursor.number}")
    return idle


async def _onwards(context: Context, chain: Chain, endpoint: Endpoint, idle: Plan) -> Plan:
    cursor, head = idle.cursor, idle.head
    final = await fetch_header(endpoint, chain.finality.tag) if chain.finality.tag else None
    final_height = min(final.number, head.number) if final else head.number - (chain.finality.depth or 0)
    finalized_number = cursor.finalized_number
    if final is not None and final.number <= cursor.number:
        async with context.db.read() as session:
            ours = await chains.get_header(session, chain.chain_id, final.number)
        if ours is not None and ours.hash != final.hash:
            return replace(idle, fork=True)
        if ours is not None:  # one that is no longer kept proves nothing
            finalized_number = max(finalized_number, final.number)
    most = context.nodes.nodes(chain).step_blocks.value
    last = min(final_height, cursor.number + most)
    if last <= cursor.number:
        last = min(head.number, cursor.number + min(most, limits.LINKED_RUN_BLOCKS))
    return Plan(cursor, head, idle.began_at, last, final_height, finalized_number, final)


def finalized_by(chain: Chain, plan: Plan, headers: Sequence[Header]) -> int:
    """Up to where our own chain is final with the `headers` that a step adds to it.

    Final is what has the final block's hash, or lies `depth` blocks under our own tip; whose word a height is, nobody
    knows. Raises InvalidAnswerError when another block is at the final height.
    """
    if chain.finality.depth is not None:
        tip = headers[-1].number if headers else plan.cursor.number
        return max(plan.finalized_number, tip - chain.finality.depth)
    for header in headers:
        if plan.final is not None and header.number == plan.final.number:
            if header.hash != plan.final.hash:
                raise InvalidAnswerError(f"block {header.number} is {hex0x(header.hash)}, but another one is final")
            return max(plan.finalized_number, header.number)
    return plan.finalized_number


async def _window_from(context: Context, chain: Chain, number: int) -> Sequence[tuple[int, bytes]]:
    async with context.db.read() as session:
        return await chains.headers_from(session, chain.chain_id, number)

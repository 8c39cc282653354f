"""What a step is to read next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.blockchain.errors import NodeBehindError
from app.blockchain.headers import Header, fetch_header
from app.blockchain.rpc import Endpoint
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
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
    """Blocks after `cursor` up to `last` (none when `last` is the cursor), or a `fork` to be undone first."""

    cursor: Cursor
    head: Header
    began_at: datetime
    finalized_number: int
    last: int
    fork: bool = False

    @property
    def blocks(self) -> int:
        return self.last - self.cursor.number


async def read_cursor(context: Context, chain: Chain) -> Cursor | None:
    """The chain's cursor; None while it has none or is halted."""
    async with context.db.read() as session:
        state = await chains.get_state(session, chain.chain_id)
    if state is None or state.halt_code is not None:
        return None
    return Cursor(state.last_scanned_block, state.last_scanned_hash, state.first_block, state.finalized_block)


async def plan_range(context: Context, chain: Chain, endpoint: Endpoint, cursor: Cursor) -> Plan:
    """Choose the next range: finalized blocks in wide ranges, unfinalized ones in short linked runs.

    Costs one request when nothing is new. Raises NodeError; NodeBehindError when the node's head is below the cursor.
    """
    began_at = utc_now()
    head = await fetch_header(endpoint, "latest")
    idle = Plan(cursor, head, began_at, cursor.finalized_number, cursor.number)
    if head.number > cursor.number:
        finalized_number = max(await fetch_finalized(chain, endpoint, head), cursor.finalized_number)
        last = min(finalized_number, cursor.number + chain.block_batch_size)
        if last <= cursor.number:
            last = min(head.number, cursor.number + limits.LINKED_RUN_BLOCKS)
        return Plan(cursor, head, began_at, finalized_number, last)
    relation = link(await _window_from(context, chain, head.number), head)
    if relation is Link.FORK:
        return Plan(cursor, head, began_at, cursor.finalized_number, cursor.number, fork=True)
    if head.number < cursor.number:
        raise NodeBehindError(f"the node's head {head.number} is below the cursor {cursor.number}")
    return idle


async def fetch_finalized(chain: Chain, endpoint: Endpoint, head: Header) -> int:
    """Height of the last final block: by the chain's tag, else by its depth under the head."""
    if chain.finality.tag is None:
        return max(head.number - (chain.finality.depth or 0), 0)
    return min((await fetch_header(endpoint, chain.finality.tag)).number, head.number)


async def _window_from(context: Context, chain: Chain, number: int) -> Sequence[tuple[int, bytes]]:
    async with context.db.read() as session:
        return await chains.headers_from(session, chain.chain_id, number)

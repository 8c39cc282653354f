"""Second looks at what was scanned: the backup pass over final blocks, and the operator's rescan."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from app.blockchain.blocks import BlockRun, fetch_run
from app.blockchain.errors import InvalidAnswerError, NodeError
from app.blockchain.rpc import Endpoint
from app.core import metrics
from app.core.chains import Chain
from app.core.evm import hex0x
from app.core.logger import get_logger
from app.db.engine import roll_back
from app.db.repositories import chains, transactions
from app.services.blockchain.balances import POSITION
from app.services.blockchain.chains import require_same_chain
from app.services.blockchain.fork import release
from app.services.blockchain.gather import Matches, match
from app.services.blockchain.outflows import mark_swept, record_outflows
from app.services.blockchain.rows import header_row, transfer_row
from app.services.context import Context
from app.services.decide import Change
from app.services.ledger import Cause, decide_again

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reread:
    """Outcome of reading a range again. `found`: transfers that had been missed, money at the treasury too.

    `problem`: why the node could not be asked or believed; nothing was written then.
    """

    first: int
    last: int
    found: int = 0
    changes: tuple[Change, ...] = ()
    problem: str | None = None


async def backup_pass(context: Context, chain: Chain) -> Reread | None:
    """Read the next final range again, from another endpoint when there is one; None when there is none to read.

    Whatever it finds is an alarm: the first endpoint kept it from us.
    """
    async with context.db.read() as session:
        state = await chains.get_state(session, chain.chain_id)
    if state is None or state.halt_code is not None:
        return None
    first = state.backup_block + 1
    last = min(state.finalized_block, state.last_scanned_block, state.backup_block + chain.block_batch_size)
    nodes = context.nodes.nodes(chain)
    preferred = nodes.pick()
    endpoint = (nodes.pick(other_than=preferred) if preferred else None) or preferred
    if last < first:
        return None
    if endpoint is None:
        return Reread(first, last, problem="no endpoint is on this chain")
    try:
        outcome = await reread(context, chain, endpoint, first, last, Cause("backup", {"chain": chain.name}))
    except NodeError as error:
        nodes.failed(endpoint, error)
        return Reread(first, last, problem=f"{endpoint.name}: {error}")
    if outcome.found and preferred is not None:
        log.error(
            "the backup pass found transfers that the scan had missed",
            chain=chain.name,
            transfers=outcome.found,
            missed_by=preferred.name,
            found_by=endpoint.name,
        )
    return outcome


async def cursor_of(context: Context, chain: Chain) -> int | None:
    """The last scanned block; None for a chain that was never scanned."""
    async with context.db.read() as session:
        state = await chains.get_state(session, chain.chain_id)
    return None if state is None else state.last_scanned_block


async def rescan_blocks(
    context: Context, chain: Chain, first: int, last: int | None, dry_run: bool = False
) -> AsyncIterator[Reread]:
    """Read `first` to `last` (the cursor by default) again, a range at a time; crediting twice is impossible. Headers
    that should be kept and are not come back.

    A dry run finds the same and keeps nothing; it is not for a halted chain.

    A chain that a fork below finality has halted is first taken back to the common ancestor with the node, or to
    below `first` when there is none: the operator has looked, and says that the node is right. The last outcome has a
    `problem` when the node could not be asked or believed; what was read until then stays.
    """
    nodes = context.nodes.nodes(chain)
    log.info("rescan", chain=chain.name, first=first, last=last, dry_run=dry_run)
    try:
        if not dry_run:
            await release(context, chain, first)
    except NodeError as error:
        yield Reread(first, first, problem=str(error))
        return
    cause = Cause("operator", {"command": "rescan", "chain": chain.name})
    while True:
        async with context.db.read() as session:
            state = await chains.get_state(session, chain.chain_id)
        endpoint = nodes.pick()
        if state is None or endpoint is None:
            return
        upto = min(first + chain.block_batch_size - 1, state.last_scanned_block, *(() if last is None else (last,)))
        if upto < first:
            return
        try:
            yield await reread(context, chain, endpoint, first, upto, cause, dry_run)
        except NodeError as error:
            nodes.failed(endpoint, error)
            yield Reread(first, upto, problem=f"{endpoint.name}: {error}")
            return
        first = upto + 1


async def reread(
    context: Context, chain: Chain, endpoint: Endpoint, first: int, last: int, cause: Cause, dry_run: bool = False
) -> Reread:
    """Fetch scanned blocks again and credit what is missing. Raises NodeError, also when the blocks are not ours."""
    await require_same_chain(context, chain, endpoint)
    async with context.db.read() as session:
        state = await chains.get_state(session, chain.chain_id)
    run = await fetch_run(
        endpoint,
        first,
        last,
        [token.address for token in chain.tokens],
        by_range=state is not None and last <= state.finalized_block,
        trace=chain.native.detect == "trace",
    )
    return await _credit(context, chain, run, await match(context, chain, endpoint, run), cause, dry_run)


async def _credit(
    context: Context, chain: Chain, run: BlockRun, matches: Matches, cause: Cause, dry_run: bool
) -> Reread:
    first, last = run.headers[0].number, run.headers[-1].number
    async with context.db.write() as session:
        state = await chains.lock_state(session, chain.chain_id)
        if state is None or state.last_scanned_block < last:
            return Reread(first, last)  # rolled back meanwhile: the scan reads these blocks anew anyway
        if cause.kind == "backup" and state.halt_code is not None:
            return Reread(first, last)  # halted meanwhile
        ours = dict(await chains.headers_from(session, chain.chain_id, first - 1))
        ours[state.last_scanned_block] = state.last_scanned_hash
        if ours.get(first - 1, run.headers[0].parent_hash) != run.headers[0].parent_hash:
            raise InvalidAnswerError(f"block {first} does not follow the one that was scanned below it")
        for header in run.headers:
            if ours.get(header.number, header.hash) != header.hash:
                raise InvalidAnswerError(f"block {header.number} is {hex0x(header.hash)} here, another one was scanned")
        if cause.kind == "operator":
            await chains.restore_headers(session, chain.chain_id, [header_row(chain, each) for each in run.headers])
        news = await transactions.record(session, [transfer_row(chain, *found) for found in matches.transfers])
        await transactions.replace_balances(session, news, POSITION)
        left = await record_outflows(session, chain, matches.outflows)
        await mark_swept(session, chain, {row["recipient"] for row in news} | {row.sender for row in left})
        # A rescan asks the preferred endpoint, perhaps the very one that missed something, so it is no backup.
        if cause.kind == "backup" and first <= state.backup_block + 1 <= last:
            state.backup_block = last
        if cause.kind == "backup":
            state.missed_transfers += len(news)
        await session.flush()
        changes = await decide_again(context, session, {row["payment_id"] for row in news}, cause)
        if dry_run:
            await roll_back(session)
            return Reread(first, last, len(news) + len(left), tuple(changes))
    metrics.TRANSFERS.labels(chain.name).inc(len(news))
    return Reread(first, last, len(news) + len(left), tuple(changes))

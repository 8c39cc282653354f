"""Makes a chain ready to be watched: right node, right tokens, a cursor."""

import asyncio
from dataclasses import dataclass

from app.blockchain.balances import probe_balances
from app.blockchain.errors import FatalError, NodeError
from app.blockchain.headers import Header, fetch_header
from app.blockchain.identity import fetch_chain_id, fetch_decimals
from app.blockchain.native import probe_trace
from app.blockchain.rpc import Endpoint
from app.core import limits
from app.core.chains import Chain
from app.core.clock import from_unix, utc_now
from app.core.evm import checksum
from app.core.logger import get_logger
from app.db.repositories import chains
from app.services.blockchain.rows import header_row
from app.services.context import Context

log = get_logger(__name__)


class ChainMismatchError(Exception):
    """chains.yaml and the node, or the database, contradict each other; the chain is not watched until they agree."""


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """Outcome of a check. `problem` is None when the chain is ready; `final` problems need the operator.

    `mismatch`: the node and chains.yaml contradict each other, so that the chain is halted.
    """

    chain: Chain
    problem: str | None
    final: bool = False
    mismatch: bool = False


async def prepare(context: Context, chain: Chain) -> ChainCheck:
    """Check a chain against its nodes and make its cursor and tokens unless they exist. Safe to run many times."""
    checked = await check(context, chain)
    if isinstance(checked, ChainCheck):
        if checked.mismatch:
            context.mismatches[chain.chain_id] = str(checked.problem)
            await _halt(context, chain, str(checked.problem))
            log.error("chain stopped", chain=chain.name, reason=checked.problem)
        return checked
    context.mismatches.pop(chain.chain_id, None)
    await _write(context, chain, *checked)
    log.info("chain ready", chain=chain.name, chain_id=chain.chain_id)
    return ChainCheck(chain, None)


async def check(context: Context, chain: Chain) -> ChainCheck | tuple[Header, int]:
    """Ask a chain's nodes whether they and chains.yaml agree; nothing is written.

    Returns the problem, or when there is none where a new cursor would stand and what is final there.
    """
    nodes = context.nodes.nodes(chain)
    endpoint = nodes.pick()
    if endpoint is None:  # another task, a backup pass perhaps, was quicker to ask and refused each of them
        problem = "; ".join(nodes.refused.values())
        nodes.refused.clear()  # the next check asks them again: they may have been put right
        return ChainCheck(chain, problem, final=True, mismatch=True)
    try:
        await _check_endpoint(context, chain, endpoint)
        await _check_others(context, chain, endpoint)
        await _check_tokens(context, chain, endpoint)
        base, finalized_number = await _base(chain, endpoint)
        await _check_native(chain, endpoint, base)
    except ChainMismatchError as mismatch:
        return ChainCheck(chain, str(mismatch), final=True, mismatch=True)
    except NodeError as error:
        nodes.failed(endpoint, error)
        log.warning("node not reachable", chain=chain.name, endpoint=endpoint.name, reason=str(error))
        return ChainCheck(chain, f"{endpoint.name}: {error}")
    return base, finalized_number


async def require_same_chain(context: Context, chain: Chain, endpoint: Endpoint) -> None:
    """Ask an endpoint once for its chain id; one on another chain is refused for good. Raises NodeError."""
    nodes = context.nodes.nodes(chain)
    if endpoint in nodes.checked:
        return
    try:
        await _check_endpoint(context, chain, endpoint)
    except ChainMismatchError as mismatch:
        nodes.refused[endpoint] = str(mismatch)
        log.error("endpoint refused", chain=chain.name, reason=str(mismatch))
        raise FatalError(str(mismatch)) from mismatch


async def _check_endpoint(context: Context, chain: Chain, endpoint: Endpoint) -> None:
    chain_id = await fetch_chain_id(endpoint)
    if chain_id != chain.chain_id:
        raise ChainMismatchError(f"{endpoint.name} has chain id {chain_id}, chains.yaml says {chain.chain_id}")
    context.nodes.nodes(chain).checked.add(endpoint)


async def _check_others(context: Context, chain: Chain, picked: Endpoint) -> None:
    """The endpoints that answer now; the others are asked before their first use, and nobody waits for them here."""
    others = [endpoint for endpoint in context.nodes.nodes(chain).endpoints if endpoint is not picked]
    found = await asyncio.gather(*(_check_other(context, chain, each) for each in others), return_exceptions=True)
    for problem in found:
        if problem is not None:
            raise problem


async def _check_other(context: Context, chain: Chain, endpoint: Endpoint) -> None:
    try:
        async with asyncio.timeout(limits.OTHER_NODES_S):
            await _check_endpoint(context, chain, endpoint)
    except (NodeError, TimeoutError) as error:
        reason = str(error) or "no answer yet"
        log.warning("node not reachable", chain=chain.name, endpoint=endpoint.name, reason=reason)


async def _check_native(chain: Chain, endpoint: Endpoint, header: Header) -> None:
    """What the node cannot do is refused, never silently downgraded."""
    if chain.native.detect == "trace" and not await probe_trace(endpoint, header):
        raise ChainMismatchError(
            f"native.detect: trace needs debug_traceBlockByHash or trace_block, and {endpoint.name} has neither; "
            "use another node, or balances, or blocks (which sees top-level transfers only)"
        )
    if chain.native.detect == "balances" and not await probe_balances(endpoint, header):
        raise ChainMismatchError(
            "native.detect: balances needs eth_call and eth_getBalance at a block hash (EIP-1898), and "
            f"{endpoint.name} cannot; use another node, or trace, or blocks (which sees top-level transfers only)"
        )


async def _check_tokens(context: Context, chain: Chain, endpoint: Endpoint) -> None:
    for token in chain.tokens:
        decimals = await fetch_decimals(endpoint, token.address)
        if decimals is None:
            raise ChainMismatchError(f"token {token.symbol} at {checksum(token.address)} does not answer decimals()")
        if decimals != token.decimals:
            raise ChainMismatchError(f"token {token.symbol} has {decimals} decimals, chains.yaml says {token.decimals}")
    async with context.db.read() as session:
        states, known = await chains.list_states(session), await chains.list_tokens(session)
    for state in states.values():
        if state.name == chain.name and state.chain_id != chain.chain_id:
            raise ChainMismatchError(f"{chain.name!r} has chain id {state.chain_id} in the database")
    for asset in chain.assets:
        stored = known.get((chain.chain_id, asset.address))
        if stored is not None and stored.decimals != asset.decimals:
            raise ChainMismatchError(
                f"{asset.symbol} had {stored.decimals} decimals when payments were made, "
                f"chains.yaml now says {asset.decimals}"
            )


async def _base(chain: Chain, endpoint: Endpoint) -> tuple[Header, int]:
    """The block under the first one to be scanned, and the height that a fork below it would restart at: that of the
    last final block, or the one below the base where only heights say that the base is final.
    """
    head = await fetch_header(endpoint, "latest")
    final = await fetch_header(endpoint, chain.finality.tag) if chain.finality.tag else None
    if chain.start_block is not None and chain.start_block > head.number + 1:
        raise ChainMismatchError(f"start_block {chain.start_block} is above the head {head.number}")
    base = head if chain.start_block is None else await fetch_header(endpoint, max(chain.start_block - 1, 0))
    if final is None:
        return base, max(base.number - (chain.finality.depth or 0), 0)
    if (final.number, final.hash) == (base.number, base.hash):
        return base, base.number
    return base, max(min(final.number, base.number - 1), 0)


async def _write(context: Context, chain: Chain, base: Header, finalized_number: int) -> None:
    now = utc_now()
    async with context.db.write() as session:
        existing = await chains.lock_state(session, chain.chain_id)
        if existing is None:
            cursor: dict[str, object] = {
                "chain_id": chain.chain_id,
                "name": chain.name,
                "last_scanned_block": base.number,
                "last_scanned_hash": base.hash,
                "last_scanned_time": from_unix(base.time),
                "first_block": base.number,
                "highest_block": base.number,
                "finalized_block": finalized_number,
                "backup_block": base.number,
                "missed_transfers": 0,
                "rotated_address_id": 0,
                "head_block": base.number,
                "head_seen_at": now,
            }
            # Another process may have been quicker since, at another block: the header here would be in its way.
            if await chains.insert_state(session, cursor):
                await chains.delete_headers_above(session, chain.chain_id, -1)  # of a cursor that somebody deleted
                await chains.insert_headers(session, [header_row(chain, base)])
        else:
            # None belongs there, and the scanner could not pass it.
            await chains.delete_headers_above(session, chain.chain_id, existing.last_scanned_block)
            if existing.halt_code == "config":
                existing.halt_code = existing.halt_detail = None
        for asset in chain.assets:
            await chains.save_token(session, chain.chain_id, asset.address, asset.symbol, asset.decimals)


async def _halt(context: Context, chain: Chain, detail: str) -> None:
    async with context.db.write() as session:
        state = await chains.lock_state(session, chain.chain_id)
        if state is not None and state.halt_code in (None, "config"):
            state.halt_code = "config"
            state.halt_detail = detail

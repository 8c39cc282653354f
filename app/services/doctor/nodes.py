"""Each RPC endpoint by itself, and the tokens on its chain. Endpoints are named by place and host: URLs hold keys."""

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

from app.blockchain.balances import probe_balances
from app.blockchain.errors import (
    BlockUnknownError,
    MethodMissingError,
    NodeBehindError,
    NodeError,
    RateLimitedError,
    TransientError,
)
from app.blockchain.headers import Header, fetch_header
from app.blockchain.heads import probe_heads
from app.blockchain.identity import fetch_chain_id, fetch_decimals, fetch_symbol
from app.blockchain.native import probe_trace
from app.blockchain.probes import probe_logs, probe_receipts
from app.blockchain.rpc import Endpoint
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.evm import checksum
from app.core.logger import redact_url
from app.services.doctor.finding import RESTART, Finding, Patient, failed, ok, warning

DEVNET_CHAIN_ID = 31337  # of Anvil and Hardhat: its blocks come when somebody asks for them


@dataclass
class _Examined:
    """What one endpoint said. `problems`: what is wrong with what remedy; `warnings`: what is slow or old."""

    name: str
    endpoint: Endpoint
    head: Header | None = None
    latency_s: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)


async def check_nodes(patient: Patient) -> list[Finding]:
    """Every endpoint of every chain, all at once: each has its own time limit, and one that hangs costs no other's."""
    by_chain, pushed = await asyncio.gather(
        asyncio.gather(*(_chain(patient, each) for each in patient.chains)),
        asyncio.gather(*(_heads(each, each.ws_url) for each in patient.chains if each.ws_url is not None)),
    )
    return [found for some in by_chain for found in some] + pushed


async def _heads(chain: Chain, ws_url: str) -> Finding:
    """Whether new heads are pushed; without them payments are seen a `poll_interval` later, no more."""
    check, remedy = f"ws:{chain.name}", f"mend ws_url of {chain.name} in chains.yaml, or take it out; {RESTART}"
    try:
        async with asyncio.timeout(limits.DOCTOR_NODE_S):
            chain_id = await probe_heads(ws_url)
    except (NodeError, TimeoutError) as error:
        silent = f"{redact_url(ws_url)}: no answer within {limits.DOCTOR_NODE_S:.0f} s"
        return warning(check, str(error) or silent, remedy)
    if chain_id != chain.chain_id:
        return warning(check, f"it is of chain id {chain_id}, chains.yaml says {chain.chain_id}", remedy)
    return ok(check, "new heads are pushed")


async def _chain(patient: Patient, chain: Chain) -> list[Finding]:
    endpoints = patient.context.nodes.nodes(chain).endpoints
    names = [f"rpc:{chain.name}#{index}" for index in range(len(endpoints))]
    examined = await asyncio.gather(
        *(_examine(chain, name, endpoint) for name, endpoint in zip(names, endpoints, strict=True))
    )
    _compare(chain, examined)
    well = next((each.endpoint for each in examined if not each.problems), None)
    if well is not None:
        patient.nodes[chain.name] = well
    return [_finding(each) for each in examined]


async def check_tokens(patient: Patient) -> list[Finding]:
    """What each configured token says of itself."""
    return list(await asyncio.gather(*(_chain_tokens(patient, chain) for chain in patient.chains if chain.tokens)))


async def _chain_tokens(patient: Patient, chain: Chain) -> Finding:
    check = f"tokens:{chain.name}"
    endpoint = patient.nodes.get(chain.name)
    if endpoint is None:
        return warning(check, "not checked: no endpoint is well", "mend its rpc_urls first")
    try:
        async with asyncio.timeout(limits.DOCTOR_NODE_S):
            return await _tokens(check, chain, endpoint)
    except (NodeError, TimeoutError) as error:
        said = str(error) or f"no answer within {limits.DOCTOR_NODE_S:.0f} s"
        return failed(check, f"{endpoint.name}: {said}", f"use another node in chains.yaml; {RESTART}")


async def _tokens(check: str, chain: Chain, endpoint: Endpoint) -> Finding:
    for token in chain.tokens:
        place = f"{token.symbol} at {checksum(token.address)}"
        decimals = await fetch_decimals(endpoint, token.address)
        if decimals != token.decimals:
            told = "no token answers" if decimals is None else f"it has {decimals} decimals"
            found = f"{place}: {told}, chains.yaml says {token.decimals}"
            remedy = f"mend tokens of {chain.name} in chains.yaml, by the token's issuer's own page; {RESTART}"
            return failed(check, found, remedy)
        symbol = await fetch_symbol(endpoint, token.address)
        if symbol is None or symbol.casefold() != token.symbol.casefold():
            shown = (symbol or "nothing")[: limits.DOCTOR_ROWS]
            found = f"{place} calls itself {shown!r}"
            remedy = (
                f"look whether the address in chains.yaml is the right one for {chain.name}; if you mend it, {RESTART}"
            )
            return warning(check, found, remedy)
    return ok(check, ", ".join(f"{token.symbol} has {token.decimals} decimals" for token in chain.tokens))


async def _examine(chain: Chain, name: str, endpoint: Endpoint) -> _Examined:
    seen = _Examined(name, endpoint)
    other = f"take it out of rpc_urls of {chain.name} in chains.yaml, or put another one first; {RESTART}"
    try:
        async with asyncio.timeout(limits.DOCTOR_NODE_S):
            await _ask(chain, endpoint, seen)
    except RateLimitedError as error:
        seen.problems.append((f"limits our calls: {error}", f"raise its plan's limit, or {other}"))
    except NodeError as error:
        if not seen.problems:
            seen.problems.append((str(error), f"start the node, or {other}"))
    except TimeoutError:
        seen.problems.append((f"no answer within {limits.DOCTOR_NODE_S:.0f} s", f"start the node, or {other}"))
    return seen


async def _ask(chain: Chain, endpoint: Endpoint, seen: _Examined) -> None:
    """Everything that watching the chain will ask for. Raises NodeError where the rest makes no sense any more."""
    chain_id = await fetch_chain_id(endpoint)
    if chain_id != chain.chain_id:
        found = f"it is of chain id {chain_id}, chains.yaml says {chain.chain_id}"
        seen.problems.append((found, f"mend rpc_urls or chain_id of {chain.name} in chains.yaml; {RESTART}"))
        return
    began = time.monotonic()
    head = seen.head = await fetch_header(endpoint, "latest")
    seen.latency_s = time.monotonic() - began
    if seen.latency_s > limits.DOCTOR_LATENCY_S:
        seen.warnings.append((f"slow: {seen.latency_s:.1f} s for one call", "use a nearer node"))
    await _has(seen, "receipts", probe_receipts(endpoint, head))
    if chain.tokens:
        await _has(seen, "logs by block hash", probe_logs(endpoint, head, [token.address for token in chain.tokens]))
    if chain.native.detect == "trace":
        await _has(seen, "debug_traceBlockByHash or trace_block", probe_trace(endpoint, head))
    if chain.finality.tag is not None:
        await _has(seen, f"the block tag {chain.finality.tag}", _tag(endpoint, chain.finality.tag))
    if chain.native.detect == "balances":
        at = await fetch_header(endpoint, max(head.number - chain.confirmations_required, 0))
        await _has(seen, "balances at an older block's hash", probe_balances(endpoint, at))


async def _has(seen: _Examined, what: str, asked: Awaitable[bool]) -> None:
    """Note that the endpoint lacks something, or that this time it could not be found out. Raises RateLimitedError."""
    remedy = f"use a node or plan that has it ({RESTART}); docs/chain-truth.md says what each native.detect needs"
    try:
        if not await asked:
            seen.problems.append((f"has no {what}", remedy))
    except RateLimitedError:
        raise
    except (NodeBehindError, TransientError) as error:
        seen.warnings.append((f"could not be asked for {what}: {error}", "run it again; if it stays, use another node"))
    except NodeError as error:
        reason = "" if isinstance(error, MethodMissingError) else f" ({error})"
        seen.problems.append((f"has no {what}{reason}", remedy))


async def _tag(endpoint: Endpoint, tag: str) -> bool:
    try:
        await fetch_header(endpoint, tag)
    except BlockUnknownError:
        return False
    return True


def _compare(chain: Chain, examined: Sequence[_Examined]) -> None:
    """Who lags behind the others, and whether the newest block of all is old, on a chain that may rest a warning."""
    newest = max((each.head for each in examined if each.head is not None), key=lambda head: head.time, default=None)
    if newest is None:
        return
    for each in examined:
        if each.head is not None and newest.time - each.head.time > limits.DOCTOR_NODE_LAG_S:
            found = f"its head {each.head.number} is {newest.number - each.head.number} blocks and "
            found += f"{newest.time - each.head.time} s behind the others'"
            each.problems.append((found, f"wait for it to sync, or put it last in rpc_urls of {chain.name}; {RESTART}"))
    age_s = utc_now().timestamp() - newest.time
    found, never_rests = f"its newest block is {age_s:.0f} s old", chain.max_head_age_s is not None
    limit_s = chain.max_head_age_s or limits.DOCTOR_HEAD_AGE_S
    if age_s <= limit_s or (chain.chain_id == DEVNET_CHAIN_ID and not never_rests):
        return
    other = (
        f"timedatectl set-ntp true if the clock is fast; else put another node into rpc_urls of {chain.name}; {RESTART}"
    )
    for each in examined:
        if each.head is not None and never_rests:
            each.problems.append((f"{found} by this machine's clock", other))
        elif each.head is not None:
            each.warnings.append((found, "look whether the node syncs"))


def _finding(seen: _Examined) -> Finding:
    where = seen.endpoint.name
    if seen.problems:
        found = "; ".join(what for what, _ in seen.problems)
        return failed(seen.name, f"{where}: {found}", seen.problems[0][1])
    if seen.warnings:
        return warning(seen.name, f"{where}: {'; '.join(what for what, _ in seen.warnings)}", seen.warnings[0][1])
    number = seen.head.number if seen.head is not None else 0
    return ok(seen.name, f"{where}: block {number}, {seen.latency_s * 1000:.0f} ms a call")

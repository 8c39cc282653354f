"""How the endpoints are, as the listeners see them: they ask all the time, and whoever serves `/health` hardly ever."""

import asyncio
import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from app.blockchain.errors import NodeError
from app.blockchain.identity import fetch_chain_id
from app.blockchain.rpc import Endpoint
from app.core import limits, queue
from app.core.chains import Chain
from app.core.logger import get_logger, report_error
from app.services.blockchain.chains import require_same_chain
from app.services.context import Context

if TYPE_CHECKING:
    from arq.connections import ArqRedis

log = get_logger(__name__)

_SEVERITY = ("closed", "half_open", "open")  # a refused endpoint tells why, and that is worse


async def tell_endpoints(context: Context, redis: "ArqRedis") -> None:
    """Tell this process's breakers every `HEARTBEAT_S`. Runs until cancelled; without Redis it tries again."""
    key = queue.endpoints_key(socket.gethostname(), os.getpid())
    while True:
        states = {chain.name: context.nodes.nodes(chain).states() for chain in context.chains.enabled}
        with suppress(RedisError, OSError):  # who is away is said by those who need it
            await redis.set(key, json.dumps(states), ex=limits.VITALS_EXPIRE_S)
        await asyncio.sleep(limits.HEARTBEAT_S)


async def told_endpoints(redis: "ArqRedis") -> dict[str, dict[str, str]]:
    """By chain the breaker state of each endpoint, by its place and host: the worst that a listener tells.

    Empty for a chain that no listener has told of within `VITALS_EXPIRE_S`. Raises RedisError.
    """
    worst: dict[str, dict[str, str]] = {}
    async for key in redis.scan_iter(match=f"{queue.ENDPOINTS_PREFIX}*", count=limits.PAGE_MAX):
        told = await redis.get(key)
        for chain, states in json.loads(told or "{}").items():  # it may have ended since it was listed
            known = worst.setdefault(chain, {})
            for index, (host, state) in enumerate(states):
                name = f"{index} {host}"
                known[name] = max(known.get(name, "closed"), state, key=_severity)
    return worst


def _severity(state: str) -> int:
    return _SEVERITY.index(state) if state in _SEVERITY else len(_SEVERITY)


async def ask_spares(context: Context) -> None:
    """Ask the endpoints that no step uses how they are, or nobody would know before they are needed, nor see one that
    failed once come back. Runs until cancelled.
    """
    while True:
        await asyncio.sleep(limits.SPARE_EVERY_S)
        try:
            await asyncio.gather(
                *(_ask(context, chain, spare) for chain in context.chains.enabled for spare in _spares(context, chain))
            )
        except Exception as error:  # noqa: BLE001 the next turn asks again
            report_error(log, error, task="ask_spares")


def _spares(context: Context, chain: Chain) -> list[Endpoint]:
    nodes = context.nodes.nodes(chain)
    used = nodes.pick()
    return nodes.others(used) if used is not None else []


async def _ask(context: Context, chain: Chain, endpoint: Endpoint) -> None:
    nodes = context.nodes.nodes(chain)
    with structlog.contextvars.bound_contextvars(task="ask_spares", chain=chain.name):
        try:
            await require_same_chain(context, chain, endpoint)
            await fetch_chain_id(endpoint)
        except NodeError as error:
            nodes.failed(endpoint, error)
        else:
            nodes.succeeded(endpoint)

"""Starts what the API needs: schema, first merchant, addresses, cursors."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.blockchain.wallet import AddressDeriver
from app.core import limits
from app.core.chains import ChainsFile
from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.logger import get_logger
from app.core.queue import WakeUps, connect
from app.core.throttle import Throttle
from app.db import schema
from app.services.blockchain.chains import prepare
from app.services.context import Context, open_context
from app.services.keys import KeyUse
from app.services.merchants import ensure_first_merchant
from app.services.streams import Streams
from app.services.wallet import deposit_xpub

log = get_logger(__name__)


@dataclass(frozen=True)
class Gateway:
    """All that a request handler needs."""

    context: Context
    deriver: AddressDeriver
    wake_ups: WakeUps
    key_use: KeyUse
    throttle: Throttle
    streams: Streams


@asynccontextmanager
async def running_gateway(settings: Settings, chains: ChainsFile, redis_url: str) -> AsyncIterator[Gateway]:
    """Bring database and chains to where requests can be served; everything is closed when the block ends.

    Raises ConfigError, also when the schema is not at head in production; embedded mode migrates by itself.
    """
    deriver = AddressDeriver(deposit_xpub(settings))
    context = open_context(settings, chains)
    wake_ups = WakeUps(connect(redis_url))
    key_use = KeyUse(context.db)
    throttle = Throttle(wake_ups.redis.connection_pool, settings.request_rate)
    streams = Streams(context.db)
    try:
        await require_schema(settings)
        new_key = await ensure_first_merchant(context)
        if new_key is not None:
            # Not by the log, which may be shipped elsewhere.
            sys.stderr.write(f"\nAPI key, shown this once: {new_key}\n\n")
        await _prepare_chains(context)
        yield Gateway(context, deriver, wake_ups, key_use, throttle, streams)
    finally:
        streams.close()
        await key_use.close()
        await wake_ups.close()
        await context.close()


async def require_schema(settings: Settings) -> None:
    """Raises ConfigError, naming the command, when the schema is not at head; embedded mode migrates by itself."""
    if settings.embedded:
        await schema.upgrade(settings.database_url)
        return
    problem = await schema.schema_problem(settings.database_url)
    if problem is not None:
        raise ConfigError(problem)


async def _prepare_chains(context: Context) -> None:
    """A chain has its cursor before its first address is given out; workers check those whose node is late."""
    checks = (prepare(context, chain) for chain in context.chains.enabled)
    try:
        async with asyncio.timeout(limits.STARTUP_CHECK_S):
            await asyncio.gather(*checks)
    except TimeoutError:
        log.warning("some nodes have not answered yet")

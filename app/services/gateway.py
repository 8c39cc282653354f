"""Starts what the API needs: schema, first merchant, addresses, cursors."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from app.blockchain.wallet import AddressDeriver
from app.core import limits
from app.core.chains import ChainsFile, read_chain_ids
from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.logger import get_logger
from app.core.queue import WakeUps, connect
from app.core.shared import Shared
from app.core.throttle import Throttle
from app.core.vitals import keep_vitals
from app.db import schema
from app.services.blockchain.chains import prepare
from app.services.context import Context, open_context
from app.services.keys import KeyUse
from app.services.merchants import ensure_first_merchant
from app.services.metrics import exposition
from app.services.status import Check, Health, health, readiness
from app.services.streams import Streams
from app.services.wallet import deposit_xpub

log = get_logger(__name__)


@dataclass(frozen=True)
class Gateway:
    """All that a request handler needs. What anybody may ask for without a key is read once for all who do."""

    context: Context
    deriver: AddressDeriver
    wake_ups: WakeUps
    key_use: KeyUse
    throttle: Throttle
    streams: Streams
    readiness: Shared[list[Check]]
    health: Shared[Health]
    metrics: Shared[bytes]


@asynccontextmanager
async def running_gateway(settings: Settings, chains: ChainsFile, redis_url: str) -> AsyncIterator[Gateway]:
    """Bring database and chains to where requests can be served; everything is closed when the block ends.

    Raises ConfigError, also when the schema is not at head in production; embedded mode migrates by itself.
    """
    deriver = AddressDeriver(deposit_xpub(settings))
    context = open_context(settings, chains)
    wake_ups = WakeUps(connect(redis_url))
    key_use = KeyUse(context.db)
    throttle = Throttle(redis_url, settings.request_rate)
    streams = Streams(context.db)
    ready = Shared(partial(readiness, context, wake_ups), limits.TOLD_KEEP_S)
    everything = Shared(partial(health, context, wake_ups), limits.TOLD_KEEP_S)
    metrics = Shared(partial(exposition, context, wake_ups), limits.TOLD_KEEP_S)
    vitals = asyncio.create_task(keep_vitals(wake_ups.redis, "server"))
    try:
        await require_schema(settings)
        new_key = await ensure_first_merchant(context)
        if new_key is not None:
            # Not by the log, which may be shipped elsewhere.
            sys.stderr.write(f"\nAPI key, shown this once: {new_key}\n\n")
        await _prepare_chains(context)
        yield Gateway(context, deriver, wake_ups, key_use, throttle, streams, ready, everything, metrics)
    finally:
        for told in (ready, everything, metrics):
            await told.close()
        vitals.cancel()
        await asyncio.gather(vitals, return_exceptions=True)
        streams.close()
        await key_use.close()
        await throttle.close()
        await wake_ups.close()
        await context.close()


async def require_schema(settings: Settings) -> None:
    """Raises ConfigError, naming the command, when the schema is not at head; embedded mode migrates by itself.

    But not a database of other chains: that is another gateway's, or chains.yaml is.
    """
    problem = await schema.schema_problem(settings.database_url)
    if problem is None:
        return
    if not settings.embedded:
        raise ConfigError(problem)
    conflicts = await schema.chain_conflicts(settings.database_url, read_chain_ids(settings.chains_file))
    if conflicts:
        raise ConfigError("; ".join(conflicts) + ". Nothing was changed: one of the two is another gateway's")
    await schema.upgrade(settings.database_url)


async def _prepare_chains(context: Context) -> None:
    """A chain has its cursor before its first address is given out; workers check those whose node is late."""
    checks = (prepare(context, chain) for chain in context.chains.enabled)
    try:
        async with asyncio.timeout(limits.STARTUP_CHECK_S):
            await asyncio.gather(*checks)
    except TimeoutError:
        log.warning("some nodes have not answered yet")

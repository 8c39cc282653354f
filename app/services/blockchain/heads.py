"""Follows a chain's announcements of new heads, for as long as it takes."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from app.blockchain.errors import NodeError
from app.blockchain.heads import new_heads
from app.core import limits, metrics
from app.core.chains import Chain
from app.core.logger import get_logger, report_error

log = get_logger(__name__)


async def follow_heads(chain: Chain, on_head: Callable[[str], Awaitable[None]]) -> None:
    """Call `on_head` with the chain's name for each announced head; reconnects by itself. Runs until cancelled.

    Polling goes on beside it: a connection that is open and silent costs latency, not payments.
    """
    if chain.ws_url is None:
        return
    pause_s = limits.WS_BACKOFF_MIN_S
    connected = metrics.WS_CONNECTED.labels(chain.name)
    with structlog.contextvars.bound_contextvars(task="follow_heads", chain=chain.name):
        while True:
            try:
                async for _ in new_heads(chain.ws_url):
                    connected.set(1)
                    pause_s = limits.WS_BACKOFF_MIN_S
                    await on_head(chain.name)
            except NodeError as error:
                log.warning("head subscription lost", reason=str(error))
            except Exception as error:  # noqa: BLE001 nobody would start this task again
                report_error(log, error)
            connected.set(0)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, limits.WS_BACKOFF_MAX_S)

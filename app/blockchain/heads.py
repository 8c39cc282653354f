"""New heads pushed over a WebSocket (`eth_subscribe newHeads`)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from web3 import AsyncWeb3, WebSocketProvider

from app.blockchain.errors import TransientError
from app.core.logger import redact_url


async def new_heads(ws_url: str) -> AsyncIterator[None]:
    """Yields when the subscription stands, and then once for every head that the node announces. Raises TransientError
    when the connection ends.

    What a head contains is not looked at: it only says that it is worth asking.
    """
    async with _connected(ws_url) as w3:
        await w3.eth.subscribe("newHeads")
        yield
        async for _ in w3.socket.process_subscriptions():
            yield


async def probe_heads(ws_url: str) -> int:
    """The chain id of a node that takes the subscription. Raises TransientError."""
    async with _connected(ws_url) as w3:
        await w3.eth.subscribe("newHeads")
        return await w3.eth.chain_id


@asynccontextmanager
async def _connected(ws_url: str) -> AsyncIterator[AsyncWeb3[WebSocketProvider]]:
    try:
        async with AsyncWeb3(WebSocketProvider(ws_url, max_connection_retries=1)) as w3:  # we try again ourselves
            yield w3
    except Exception as error:  # noqa: BLE001 a subscription that ends is begun anew, whatever ended it
        # The error's text may hold the URL, and the URL a key.
        raise TransientError(f"{redact_url(ws_url)}: {type(error).__name__}") from None

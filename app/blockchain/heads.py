"""New heads pushed over a WebSocket (`eth_subscribe newHeads`)."""

from collections.abc import AsyncIterator

from web3 import AsyncWeb3, WebSocketProvider
from web3.exceptions import Web3Exception
from websockets.exceptions import WebSocketException

from app.blockchain.errors import TransientError
from app.core.logger import redact_url


async def new_heads(ws_url: str) -> AsyncIterator[None]:
    """Yields once for every head that the node announces. Raises TransientError when the connection ends.

    What a head contains is not looked at: it only says that it is worth asking.
    """
    try:
        async with AsyncWeb3(WebSocketProvider(ws_url)) as w3:
            await w3.eth.subscribe("newHeads")
            async for _ in w3.socket.process_subscriptions():
                yield
    except (Web3Exception, WebSocketException, OSError, TimeoutError) as error:
        # The error's text may hold the URL, and the URL a key.
        raise TransientError(f"{redact_url(ws_url)}: {type(error).__name__}") from None

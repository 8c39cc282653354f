"""What a node says of itself: its chain, and its tokens' decimals."""

from app.blockchain.errors import FatalError, InvalidAnswerError
from app.blockchain.rpc import Endpoint
from app.blockchain.wire import to_int

# keccak256("decimals()")[:4], EIP-20
DECIMALS_SELECTOR = "0x313ce567"


async def fetch_chain_id(endpoint: Endpoint) -> int:
    """EIP-695. Raises NodeError."""
    answer = await endpoint.call(str, "eth_chainId")
    if answer is None:
        raise InvalidAnswerError("eth_chainId gave null")
    return to_int(answer)


async def fetch_decimals(endpoint: Endpoint, token: bytes) -> int | None:
    """A token's `decimals()`; None when there is no such contract or it does not answer."""
    call = {"to": "0x" + token.hex(), "data": DECIMALS_SELECTOR}
    try:
        answer = await endpoint.call(str, "eth_call", call, "latest")
    except FatalError:
        return None  # execution reverted
    return to_int(answer) if answer is not None and len(answer) == 66 else None

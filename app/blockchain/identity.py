"""What a node says of itself: its chain, and its tokens' decimals and symbols."""

from app.blockchain.errors import FatalError, InvalidAnswerError
from app.blockchain.rpc import Endpoint
from app.blockchain.wire import to_bytes, to_int

# keccak256("decimals()")[:4], EIP-20
DECIMALS_SELECTOR = "0x313ce567"
# keccak256("symbol()")[:4], EIP-20
SYMBOL_SELECTOR = "0x95d89b41"


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


async def fetch_symbol(endpoint: Endpoint, token: bytes) -> str | None:
    """A token's `symbol()`, a string or, of some old ones, 32 bytes; None when it does not answer with one."""
    call = {"to": "0x" + token.hex(), "data": SYMBOL_SELECTOR}
    try:
        answer = to_bytes(await endpoint.call(str, "eth_call", call, "latest") or "0x")
    except FatalError:
        return None  # execution reverted
    if len(answer) >= 64 and int.from_bytes(answer[:32], "big") == 32:
        answer = answer[64 : 64 + int.from_bytes(answer[32:64], "big")]
    text = answer.rstrip(b"\0").decode(errors="replace")
    return text if text.isprintable() and text else None

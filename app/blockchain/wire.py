"""What nodes send, as typed structs, and how its hex is read."""

from typing import Literal

import msgspec

from app.blockchain.errors import InvalidAnswerError

# keccak256("Transfer(address,address,uint256)"), ERC-20
TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


TraceMethod = Literal["debug_traceBlockByHash", "trace_block"]


# gc=False: hundreds of thousands of these live for a range, and none can be part of a cycle.
class RawTransaction(msgspec.Struct, gc=False):
    hash: str
    value: str
    transactionIndex: str
    blockHash: str | None = None
    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None


class RawHeader(msgspec.Struct):
    number: str
    hash: str
    parentHash: str
    timestamp: str


class RawBlock(RawHeader):
    transactions: list[RawTransaction]
    logsBloom: str = "0x0"


class RawLog(msgspec.Struct, gc=False):
    address: str
    topics: list[str]
    data: str
    blockNumber: str
    blockHash: str
    transactionHash: str
    transactionIndex: str
    logIndex: str
    removed: bool = False


class RawReceipt(msgspec.Struct):
    transactionHash: str
    blockHash: str
    blockNumber: str
    status: str | None = None
    logs: list[RawLog] = []
    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None
    gasUsed: str | None = None
    effectiveGasPrice: str | None = None
    l1Fee: str | None = None  # of an OP-stack chain, beside the gas


def to_bytes(text: str) -> bytes:
    """Bytes of 0x-prefixed hex. Raises InvalidAnswerError."""
    try:
        return bytes.fromhex(text[2:])
    except ValueError as error:
        raise InvalidAnswerError(f"not hex: {text[:80]}") from error


def to_int(quantity: str) -> int:
    """Integer of a hex quantity (EIP-1474). Raises InvalidAnswerError."""
    try:
        return int(quantity, 16)
    except ValueError as error:
        raise InvalidAnswerError(f"not a quantity: {quantity[:80]}") from error

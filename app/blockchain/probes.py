"""Whether an endpoint can do what watching a chain asks of it, tried on its newest blocks."""

from collections.abc import Collection
from typing import Final

from app.blockchain.blocks import fetch_run
from app.blockchain.headers import Header
from app.blockchain.receipts import fetch_receipts
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.wire import RawBlock, to_bytes

_BLOCKS: Final = 4  # in which a transaction is looked for


async def probe_receipts(endpoint: Endpoint, head: Header) -> bool:
    """Whether it has the receipt of a transaction in the newest blocks; where those are empty, whether it knows the
    method. Raises NodeError.
    """
    numbers = range(max(head.number - _BLOCKS + 1, 0), head.number + 1)
    calls: list[Call] = [("eth_getBlockByNumber", [hex(number), True]) for number in numbers]
    blocks = [block for block in await endpoint.batch(RawBlock, calls) if block is not None]
    hashes = [to_bytes(block.transactions[-1].hash) for block in blocks if block.transactions]
    receipts = await fetch_receipts(endpoint, hashes[-1:] or [bytes(32)])
    return not hashes or all(receipt is not None for receipt in receipts.values())


async def probe_logs(endpoint: Endpoint, head: Header, tokens: Collection[bytes]) -> bool:
    """Whether it tells the logs of a block by its hash. Raises NodeError."""
    await fetch_run(endpoint, head.number, head.number, tokens, by_range=False)
    return True

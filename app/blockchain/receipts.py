"""Receipts: whether a transaction is where it was seen, and succeeded."""

from collections.abc import Collection

from app.blockchain.errors import InvalidAnswerError
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.wire import TRANSFER_TOPIC, RawReceipt, to_bytes, to_int
from app.core.evm import NATIVE_ASSET


async def fetch_receipts(endpoint: Endpoint, tx_hashes: Collection[bytes]) -> dict[bytes, RawReceipt | None]:
    """Receipts by transaction hash; None where the node has none."""
    wanted = list(tx_hashes)
    calls: list[Call] = [("eth_getTransactionReceipt", ["0x" + hash_.hex()]) for hash_ in wanted]
    receipts = await endpoint.batch(RawReceipt, calls)
    for hash_, receipt in zip(wanted, receipts, strict=True):
        if receipt is not None and to_bytes(receipt.transactionHash) != hash_:
            raise InvalidAnswerError("a receipt of another transaction")
    return dict(zip(wanted, receipts, strict=True))


def proves(
    receipt: RawReceipt | None,
    *,
    block_hash: bytes,
    asset: bytes,
    log_index: int | None,
    recipient: bytes,
    units: int,
    sender: bytes | None = None,
) -> bool:
    """Whether a receipt shows that the transfer is in that block and succeeded (EIP-658 status).

    `sender` is looked at where it is given, and only of a token's transfer.
    """
    if receipt is None or to_bytes(receipt.blockHash) != block_hash or receipt.status != "0x1":
        return False
    if asset == NATIVE_ASSET:
        return True
    return any(
        to_bytes(log.address) == asset
        and to_int(log.logIndex) == log_index
        and len(log.topics) == 3
        and log.topics[0] == TRANSFER_TOPIC
        and sender in (None, to_bytes(log.topics[1])[12:])
        and to_bytes(log.topics[2])[12:] == recipient
        and to_int(log.data) == units
        for log in receipt.logs
    )


def moved_units(receipt: RawReceipt, token: bytes, sender: bytes, recipient: bytes) -> int:
    """Base units of a token that a transaction moved from one address to another, by its `Transfer` logs."""
    return sum(
        to_int(log.data)
        for log in receipt.logs
        if len(log.topics) == 3
        and len(log.data) == 66
        and log.topics[0] == TRANSFER_TOPIC
        and to_bytes(log.address) == token
        and to_bytes(log.topics[1])[12:] == sender
        and to_bytes(log.topics[2])[12:] == recipient
    )

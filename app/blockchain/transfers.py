"""Observed transfers, of tokens and of native coin, in one form."""

from dataclasses import dataclass

from app.blockchain.headers import Header
from app.blockchain.wire import RawLog, RawTransaction, to_bytes, to_int
from app.core.evm import NATIVE_ASSET


@dataclass(frozen=True, slots=True)
class ObservedTransfer:
    """Value that reached `recipient`; `asset` is 20 zero bytes for native coin.

    `position` within the block's transaction is `log:7`, `tx`, `trace:0`, or `balance` where no transaction is known.
    """

    block: Header
    tx_index: int
    position: str
    recipient: bytes
    asset: bytes
    amount_units: int
    sender: bytes | None
    tx_hash: bytes | None
    log_index: int | None


def from_log(log: RawLog, block: Header) -> ObservedTransfer:
    index = to_int(log.logIndex)
    return ObservedTransfer(
        block=block,
        tx_index=to_int(log.transactionIndex),
        position=f"log:{index}",
        recipient=to_bytes(log.topics[2])[12:],
        asset=to_bytes(log.address),
        amount_units=to_int(log.data),
        sender=to_bytes(log.topics[1])[12:],
        tx_hash=to_bytes(log.transactionHash),
        log_index=index,
    )


def from_transaction(tx: RawTransaction, block: Header) -> ObservedTransfer:
    return ObservedTransfer(
        block=block,
        tx_index=to_int(tx.transactionIndex),
        position="tx",
        recipient=to_bytes(tx.to or ""),
        asset=NATIVE_ASSET,
        amount_units=to_int(tx.value),
        sender=to_bytes(tx.from_) if tx.from_ else None,
        tx_hash=to_bytes(tx.hash),
        log_index=None,
    )

"""Observed blocks and transfers as rows to be inserted."""

from app.blockchain.headers import Header
from app.blockchain.transfers import ObservedTransfer
from app.core.chains import Chain
from app.core.clock import from_unix, utc_now


def header_row(chain: Chain, header: Header) -> dict[str, object]:
    return {
        "chain_id": chain.chain_id,
        "number": header.number,
        "hash": header.hash,
        "parent_hash": header.parent_hash,
        "time": from_unix(header.time),
    }


def transfer_row(chain: Chain, transfer: ObservedTransfer, payment_id: str) -> dict[str, object]:
    return {
        "payment_id": payment_id,
        "chain_id": chain.chain_id,
        "block_number": transfer.block.number,
        "block_hash": transfer.block.hash,
        "block_time": from_unix(transfer.block.time),
        "tx_index": transfer.tx_index,
        "position": transfer.position,
        "recipient": transfer.recipient,
        "asset": transfer.asset,
        "amount_units": transfer.amount_units,
        "sender": transfer.sender,
        "tx_hash": transfer.tx_hash,
        "log_index": transfer.log_index,
        "seen_at": utc_now(),
    }

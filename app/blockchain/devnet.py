"""What only a devnet lets anybody do: pay from its unlocked accounts, and mine. Never asked of another chain."""

from typing import Any

from app.blockchain.errors import InvalidAnswerError
from app.blockchain.rpc import Endpoint
from app.blockchain.wire import to_bytes
from app.core.evm import checksum


async def send_coin(endpoint: Endpoint, recipient: bytes, wei: int) -> bytes:
    """Pay from the last of the node's own accounts; the transaction's hash. Raises NodeError."""
    accounts = await endpoint.call(list[str], "eth_accounts")
    if not accounts:
        raise InvalidAnswerError("the node has no unlocked account")
    transaction = {"from": accounts[-1], "to": checksum(recipient), "value": hex(wei)}
    tx_hash = await endpoint.call(str, "eth_sendTransaction", transaction)
    if tx_hash is None:
        raise InvalidAnswerError("eth_sendTransaction gave null")
    return to_bytes(tx_hash)


async def mine(endpoint: Endpoint) -> None:
    """One block. Raises NodeError."""
    await endpoint.call(Any, "evm_mine")

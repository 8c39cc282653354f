"""Balances at a block's hash: many in one call."""

from collections.abc import Collection, Sequence
from typing import Final

from app.blockchain.errors import FatalError, InvalidAnswerError
from app.blockchain.headers import Header
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.wire import to_bytes, to_int
from app.core import limits

# Init code that treats what follows it as 32-byte words, replaces each address by its balance, and returns them all:
# an eth_call without a recipient runs it and answers with what it "deploys". No contract is needed on the chain.
_BALANCES_CODE: Final = bytes.fromhex("602180380380823d393d5b81811015601d578051318152602001600a565b503df3")
# keccak256("balanceOf(address)")[:4], EIP-20
_BALANCE_OF: Final = bytes.fromhex("70a08231")


async def fetch_balances(endpoint: Endpoint, addresses: Collection[bytes], block_hash: bytes) -> dict[bytes, int]:
    """Native balances in wei at a block, in one call per `BALANCES_PER_CALL` addresses (EIP-1898 block parameter).

    Raises PrunedError where the node no longer has that block's state, NodeError otherwise.
    """
    wanted = list(addresses)
    at = {"blockHash": "0x" + block_hash.hex()}
    calls: list[Call] = []
    for start in range(0, len(wanted), limits.BALANCES_PER_CALL):
        words = b"".join(address.rjust(32, b"\0") for address in wanted[start : start + limits.BALANCES_PER_CALL])
        calls.append(("eth_call", [{"data": "0x" + (_BALANCES_CODE + words).hex()}, at]))
    balances: list[int] = []
    for answer in await endpoint.batch(str, calls):
        if answer is None:
            raise InvalidAnswerError("eth_call gave null")
        data = to_bytes(answer)
        balances += [int.from_bytes(data[start : start + 32], "big") for start in range(0, len(data), 32)]
    if len(balances) != len(wanted):
        raise InvalidAnswerError(f"{len(balances)} balances of {len(wanted)} addresses")
    return dict(zip(wanted, balances, strict=True))


async def fetch_history(endpoint: Endpoint, address: bytes, headers: Sequence[Header]) -> list[int]:
    """An address's native balance in wei at each of the blocks, in as few requests as the node's batches allow.

    Raises PrunedError where the node no longer has the state of one of them, NodeError otherwise.
    """
    calls: list[Call] = [
        ("eth_getBalance", ["0x" + address.hex(), {"blockHash": "0x" + header.hash.hex()}]) for header in headers
    ]
    answers = await endpoint.batch(str, calls)
    if None in answers:
        raise InvalidAnswerError("eth_getBalance gave null")
    return [to_int(answer or "") for answer in answers]


async def probe_balances(endpoint: Endpoint, header: Header) -> bool:
    """Whether the node can read many balances at a block's hash, and reads them right."""
    address = bytes(19) + b"\x01"  # a precompile that everybody has sent a wei to, or nobody: both agree
    try:
        found = await fetch_balances(endpoint, [address, bytes(20)], header.hash)
        plain = await endpoint.call(
            str, "eth_getBalance", "0x" + address.hex(), {"blockHash": "0x" + header.hash.hex()}
        )
    except (FatalError, InvalidAnswerError):
        return False
    return plain is not None and found[address] == to_int(plain)


async def fetch_token_balances(
    endpoint: Endpoint, token: bytes, addresses: Collection[bytes], block_hash: bytes | None
) -> dict[bytes, int]:
    """A token's `balanceOf` at a block, in base units; None is the head. Raises NodeError."""
    wanted = list(addresses)
    at = {"blockHash": "0x" + block_hash.hex()} if block_hash is not None else "latest"
    calls: list[Call] = [
        ("eth_call", [{"to": "0x" + token.hex(), "data": "0x" + (_BALANCE_OF + each.rjust(32, b"\0")).hex()}, at])
        for each in wanted
    ]
    answers = await endpoint.batch(str, calls)
    return {address: to_int(answer or "") for address, answer in zip(wanted, answers, strict=True)}

"""Addresses and hashes: bytes inside, EIP-55 or 0x hex outside; and the payment URIs that wallets read."""

import re
from functools import lru_cache
from typing import Final

from eth_utils.crypto import keccak

NATIVE_ASSET: Final[bytes] = bytes(20)  # twenty zero bytes stand for the chain's own coin wherever an asset is named

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


def to_bytes20(text: str) -> bytes:
    """Read an address: EIP-55, or hex all in one case (which carries no checksum).

    Raises ValueError when it is no address, or is mixed case with a wrong checksum, which is a typing error.
    """
    if _ADDRESS.fullmatch(text) is None:
        raise ValueError("not an address: it must be 0x and 40 hexadecimal digits")
    digits = text[2:]
    address = bytes.fromhex(digits)
    if digits not in (digits.lower(), digits.upper()) and checksum(address) != text:
        raise ValueError("the address has a bad checksum (EIP-55): a character or its case is wrong")
    return address


@lru_cache(maxsize=1_024)  # each answer names the same few tokens, and its own address several times
def checksum(address: bytes) -> str:
    """The EIP-55 text of a 20-byte address."""
    if len(address) != 20:
        raise ValueError(f"an address is 20 bytes, not {len(address)}")
    digits = address.hex()
    pairs = zip(digits, keccak(digits.encode()).hex(), strict=False)
    return "0x" + "".join([digit.upper() if nibble >= "8" else digit for digit, nibble in pairs])


def hex0x(data: bytes) -> str:
    """Lower-case hex with 0x, as hashes are written."""
    return "0x" + data.hex()


def payment_uri(chain_id: int, recipient: bytes, asset: bytes, units: int) -> str:
    """The EIP-681 URI that asks a wallet for `units` base units of `asset` (NATIVE_ASSET for the coin)."""
    if asset == NATIVE_ASSET:
        return f"ethereum:{checksum(recipient)}@{chain_id}?value={units}"
    return f"ethereum:{checksum(asset)}@{chain_id}/transfer?address={checksum(recipient)}&uint256={units}"

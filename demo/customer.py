"""The customer's wallet: it knows of a payment what its QR code says."""

import re
from typing import Final

from devnet.anvil import Anvil

_ADDRESS: Final = "0x[0-9a-fA-F]{40}"
_NATIVE: Final = re.compile(rf"ethereum:(?P<to>{_ADDRESS})@\d+\?value=(?P<units>\d+)")
_TOKEN: Final = re.compile(
    rf"ethereum:(?P<token>{_ADDRESS})@\d+/transfer\?address=(?P<to>{_ADDRESS})&uint256=(?P<units>\d+)"
)


async def pay(node: Anvil, payment_uri: str, account_index: int) -> str:
    """Do what an EIP-681 URI asks for, from an account of the node; the transaction's hash."""
    if native := _NATIVE.fullmatch(payment_uri):
        return await node.send_ether(account_index, native["to"], int(native["units"]))
    token = _TOKEN.fullmatch(payment_uri)
    if token is None:
        raise ValueError(f"no payment URI: {payment_uri}")
    transfer = (token["to"], int(token["units"]))
    return await node.transact(token["token"], "transfer(address,uint256)", *transfer, sender_index=account_index)

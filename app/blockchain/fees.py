"""What a transaction may cost: EIP-1559 fees, plain gas prices where there is no base fee, and an L2's data fee."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from app.blockchain.errors import FatalError, InvalidAnswerError
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.wire import RawReceipt, to_bytes, to_int
from app.core import limits

# The OP stack's GasPriceOracle, a predeploy, and keccak256("getL1Fee(bytes)")[:4]
_GAS_PRICE_ORACLE: Final = "0x420000000000000000000000000000000000000f"
_GET_L1_FEE: Final = bytes.fromhex("49948e0e")


class _FeeHeader(msgspec.Struct):
    number: str
    baseFeePerGas: str | None = None


class _Priced(msgspec.Struct):
    hash: str
    gasPrice: str | None = None


@dataclass(frozen=True, slots=True)
class Fees:
    """Wei per gas. `base_wei` is the head's base fee; None on a chain without one, where `max_wei` is the gas price."""

    base_wei: int | None
    priority_wei: int
    max_wei: int

    @property
    def now_wei(self) -> int:
        """What the head takes at least for a gas."""
        return self.max_wei if self.base_wei is None else self.base_wei

    @property
    def expected_wei(self) -> int:
        """What a gas costs if the next block is like the head."""
        return self.max_wei if self.base_wei is None else min(self.max_wei, self.base_wei + self.priority_wei)

    def exact(self) -> "Fees":
        """The same, at a price known beforehand: a priority fee that equals the cap is paid whole (EIP-1559).

        So a transfer of all native coin leaves nothing over. The price stands two full blocks in a row.
        """
        if self.base_wei is None:
            return self
        # Two blocks each raise the base fee by an eighth at most: 81/64.
        price_wei = _ceil(self.base_wei * 81, 64) + self.priority_wei
        return Fees(self.base_wei, price_wei, price_wei)


async def read_fees(endpoint: Endpoint) -> Fees:
    """Today's fees: a cap of twice the base fee outlasts six full blocks. Raises NodeError."""
    header = await endpoint.call(_FeeHeader, "eth_getBlockByNumber", "latest", False)
    if header is None:
        raise InvalidAnswerError("eth_getBlockByNumber gave null for latest")
    if header.baseFeePerGas is None:
        price_wei = await _quantity(endpoint, "eth_gasPrice")
        return Fees(None, price_wei, price_wei)
    base_wei = to_int(header.baseFeePerGas)
    try:
        priority_wei = await _quantity(endpoint, "eth_maxPriorityFeePerGas")
    except FatalError:  # an old or a small node; its gas price is base fee and tip
        priority_wei = max(await _quantity(endpoint, "eth_gasPrice") - base_wei, 0)
    return Fees(base_wei, priority_wei, 2 * base_wei + priority_wei)


def bumped(fees: Fees, fresh: Fees) -> Fees:
    """Fees that replace those of a stuck transaction: SWEEP_BUMP_PERCENT more of both, never under today's."""
    percent = 100 + limits.SWEEP_BUMP_PERCENT
    priority_wei = max(_ceil(fees.priority_wei * percent, 100), fees.priority_wei + 1, fresh.priority_wei)
    max_wei = max(_ceil(fees.max_wei * percent, 100), fees.max_wei + 1, fresh.max_wei, priority_wei)
    return Fees(fresh.base_wei, priority_wei, max_wei)


async def l1_fee_wei(endpoint: Endpoint, raw_tx: bytes) -> int:
    """What an OP-stack chain takes for the transaction's bytes beside its gas; 0 on others.

    Arbitrum counts it in gas: `estimate` knows it.
    """
    padded = raw_tx.ljust(-(-len(raw_tx) // 32) * 32, b"\0")
    data = _GET_L1_FEE + (32).to_bytes(32, "big") + len(raw_tx).to_bytes(32, "big") + padded
    call = {"to": _GAS_PRICE_ORACLE, "data": "0x" + data.hex()}
    answer = await endpoint.call(str, "eth_call", call, "latest")
    return 0 if answer in (None, "0x") else to_int(answer or "")


async def add_prices(endpoint: Endpoint, receipts: Iterable[RawReceipt | None]) -> None:
    """Fill in the gas price of receipts without one: nodes from before London have it in the transaction alone.

    Raises NodeError.
    """
    bare = [receipt for receipt in receipts if receipt is not None and receipt.effectiveGasPrice is None]
    calls: list[Call] = [("eth_getTransactionByHash", [receipt.transactionHash]) for receipt in bare]
    for receipt, transaction in zip(bare, await endpoint.batch(_Priced, calls), strict=True):
        if transaction is not None and to_bytes(transaction.hash) == to_bytes(receipt.transactionHash):
            receipt.effectiveGasPrice = transaction.gasPrice


def paid_wei(receipt: RawReceipt) -> int:
    """What the sender of a mined transaction paid for it, an L2's data fee with it. Raises InvalidAnswerError."""
    if receipt.gasUsed is None or receipt.effectiveGasPrice is None:
        raise InvalidAnswerError("a receipt without gasUsed, or a gas price neither there nor in its transaction")
    return to_int(receipt.gasUsed) * to_int(receipt.effectiveGasPrice) + to_int(receipt.l1Fee or "0x0")


async def _quantity(endpoint: Endpoint, method: str) -> int:
    answer = await endpoint.call(str, method)
    if answer is None:
        raise InvalidAnswerError(f"{method} gave null")
    return to_int(answer)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)

"""One chain as configured: frozen, checked, addresses as bytes. `app.core.chains` reads them from chains.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Literal

from app.core.evm import NATIVE_ASSET, to_bytes20

DetectMode = Literal["blocks", "trace", "balances"]
SweepMode = Literal["auto", "eip7702", "topup", "off"]


@dataclass(frozen=True)
class Asset:
    """What a payment can be made in: a token, or the chain's own coin under the address NATIVE_ASSET."""

    symbol: str
    address: bytes
    decimals: int

    @property
    def is_native(self) -> bool:
        return self.address == NATIVE_ASSET


@dataclass(frozen=True)
class Token:
    """An ERC-20 contract (20 bytes) that the chain is watched for."""

    symbol: str
    address: bytes
    decimals: int


@dataclass(frozen=True)
class Native:
    """The chain's own coin, and how its arrivals are found (DESIGN section 4)."""

    symbol: str = "ETH"
    decimals: int = 18
    detect: DetectMode = "blocks"


@dataclass(frozen=True)
class Finality:
    """From where on blocks are final: a block `tag` of the node, or `depth` blocks under the head; one is None."""

    tag: str | None = None
    depth: int | None = None


@dataclass(frozen=True)
class Sweep:
    """How money leaves the deposit addresses. `treasury` (20 bytes) is there whenever `mode` is not off.

    `min_amount` maps an asset's symbol, as configured, to a decimal amount that parses with its decimals; `max_wait_s`
    is how long money under it waits at most, None for ever.
    """

    mode: SweepMode = "off"
    treasury: bytes | None = None
    interval_s: float = 10.0
    batch_size: int = 50
    max_fee_gwei: Decimal | None = None
    min_amount: Mapping[str, str] = field(default_factory=dict, hash=False)
    max_wait_s: float | None = None


@dataclass(frozen=True)
class Chain:
    """One entry of `chains:`. `start_block` None means the head at first start.

    `rpc_urls`, in order of preference, and `ws_url` may hold keys: log them through `redact_url` alone. On a disabled
    chain, what hangs on an unset variable is left out of them. `max_head_age_s`: a newest block older than this means
    that the nodes stand still; None on a chain that may rest.
    """

    name: str
    enabled: bool
    chain_id: int
    rpc_urls: tuple[str, ...] = field(repr=False)
    ws_url: str | None = field(repr=False)
    confirmations_required: int
    finality: Finality
    block_batch_size: int
    poll_interval_s: float
    start_block: int | None
    native: Native
    tokens: tuple[Token, ...]
    sweep: Sweep
    max_head_age_s: float | None = None

    @cached_property
    def assets(self) -> tuple[Asset, ...]:
        """All that can be paid in: the native coin first, then the tokens in their order."""
        native = Asset(self.native.symbol, NATIVE_ASSET, self.native.decimals)
        return (native, *(Asset(token.symbol, token.address, token.decimals) for token in self.tokens))

    def asset(self, text: str) -> Asset | None:
        """The asset of a symbol (in any case: no two of a chain differ by case alone) or of a contract address.

        None when the chain has no such asset, or the text is an address with a bad checksum.
        """
        symbol = text.casefold()
        for asset in self.assets:
            if asset.symbol.casefold() == symbol:
                return asset
        try:
            return self.asset_by_address(to_bytes20(text))
        except ValueError:
            return None

    def asset_by_address(self, address: bytes) -> Asset | None:
        """The asset with this 20-byte address, NATIVE_ASSET for the coin; None when it is not configured."""
        return next((asset for asset in self.assets if asset.address == address), None)

"""chains.yaml, read into frozen dataclasses, with every mistake named by file, chain and field (DESIGN section 8)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from app.core import limits
from app.core.chain import Asset, Chain, DetectMode, Finality, Native, Sweep, SweepMode, Token
from app.core.errors import ConfigError
from app.core.money import MoneyError, parse_units
from app.core.rates import ChainlinkRates, FixedRates, HttpRates, Rates, read_rates
from app.core.section import Section, read_yaml

__all__ = [
    "Asset",
    "Chain",
    "ChainlinkRates",
    "ChainsFile",
    "Finality",
    "FixedRates",
    "HttpRates",
    "Native",
    "Rates",
    "Sweep",
    "Token",
    "load_chains",
    "read_chain_ids",
]

CHAIN_ID_MAX: Final = 2**63 - 37  # EIP-2294
_DECIMALS_MAX: Final = 77  # with 78 not even one whole token fits into 256 bits
# Ethereum, Optimism, BNB, Polygon, Base, Arbitrum, Sepolia: a block every few seconds, whether anybody pays or not.
_NEVER_REST: Final = frozenset({1, 10, 56, 137, 8453, 42161, 11155111})
_BLOCK_MAX: Final = 2**63 - 1
_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}"
_SYMBOL: Final = r"(?!0[xX])[^\s\x00-\x1f/]{1,32}"
_DETECT: Final[tuple[DetectMode, ...]] = ("blocks", "trace", "balances")
_SWEEP: Final[tuple[SweepMode, ...]] = ("auto", "eip7702", "topup", "off")


@dataclass(frozen=True)
class ChainsFile:
    """All of chains.yaml: every chain, disabled ones too, in the file's order, and the rates if there are any."""

    path: Path
    chains: tuple[Chain, ...]
    rates: Rates | None

    @property
    def enabled(self) -> tuple[Chain, ...]:
        """The chains that are watched."""
        return tuple(chain for chain in self.chains if chain.enabled)

    def without_sweeping(self) -> "ChainsFile":
        """The same with `sweep.mode` off everywhere: embedded without a private key nobody sweeps."""
        chains = tuple(replace(chain, sweep=replace(chain.sweep, mode="off")) for chain in self.chains)
        return replace(self, chains=chains)

    def chain(self, name: str) -> Chain | None:
        """The chain of that name, enabled or not."""
        return next((chain for chain in self.chains if chain.name == name), None)


def load_chains(path: Path, env: Mapping[str, str]) -> ChainsFile:
    """Read and check chains.yaml, filling `${VARIABLES}` from `env`: `app.core.config.read_environment()` knows `.env`.

    Variables of disabled chains need not be set. Raises ConfigError, one line for each mistake in the file.
    """
    document = read_yaml(path)
    if document is None:
        raise ConfigError(f"{path}: the file is empty; it must hold chains:")
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping that holds chains:")
    problems: list[str] = []
    top = Section(document, problems, env, label=f"{path}: ")
    chains = tuple(_chain(_chain_section(entry, path)) for entry in top.sections("chains"))
    if not chains and not problems:
        top.problem("chains", "at least one chain is needed")
    _unique(top, chains)
    rates = read_rates(top.section("rates")) if top.has("rates") else None
    top.used.add("rates")
    _rates_have_chains(top, rates, chains)
    top.finish()
    if problems:
        raise ConfigError("\n".join(problems))
    return ChainsFile(path, chains, rates)


def read_chain_ids(path: Path) -> dict[str, int]:
    """Each chain's id by its name, disabled ones too, and nothing else: no variable needs to be set.

    An entry that has not both is left out; the server says what is wrong with it. Raises ConfigError.
    """
    document = read_yaml(path)
    chains = document.get("chains") if isinstance(document, dict) else None
    entries = [entry for entry in chains if isinstance(entry, dict)] if isinstance(chains, list) else []
    return {
        entry["name"]: entry["chain_id"]
        for entry in entries
        if isinstance(entry.get("name"), str) and isinstance(entry.get("chain_id"), int)
    }


def _chain_section(section: Section, path: Path) -> Section:
    """The section under the chain's own name, forgiving unset variables when it is disabled."""
    name = section.data.get("name")
    label = f"chain '{name}'" if isinstance(name, str) and name else section.prefix.rstrip(".")
    enabled = replace(section, problems=[]).flag("enabled", True)
    return replace(section, label=f"{path}: {label}: ", prefix="", lenient=not enabled)


def _chain(section: Section) -> Chain:
    strict = replace(section, lenient=False)  # a chain has its name and number, watched or not
    name = strict.text("name", pattern=_NAME, form="up to 32 letters, digits, hyphens and underscores")
    enabled = section.flag("enabled", True)
    native = _native(section.section("native"))
    chain = Chain(
        name=name,
        enabled=enabled,
        chain_id=strict.integer("chain_id", None, 1, CHAIN_ID_MAX),
        rpc_urls=_rpc_urls(section),
        ws_url=_ws_url(section),
        confirmations_required=section.integer("confirmations_required", 12, 1, 10_000),
        finality=_finality(section),
        block_batch_size=section.integer("block_batch_size", 200, 1, 10_000),
        poll_interval_s=section.number("poll_interval", 4.0, 0.05, 600.0),
        start_block=_start_block(section),
        native=native,
        tokens=_tokens(section, native),
        sweep=Sweep(),
    )
    if section.has("max_head_age") or chain.chain_id in _NEVER_REST:
        age_s = section.number("max_head_age", limits.MAX_HEAD_AGE_S, 1.0, 31_536_000.0)
        chain = replace(chain, max_head_age_s=age_s)
    section.used.add("max_head_age")
    chain = replace(chain, sweep=_sweep(section.section("sweep"), chain, section.has("sweep")))
    section.finish()
    return chain


def _rpc_urls(section: Section) -> tuple[str, ...]:
    if section.has("rpc_url") and section.has("rpc_urls"):
        section.problem("rpc_urls", "give rpc_url or rpc_urls, not both")
    section.used.update(("rpc_url", "rpc_urls"))
    if section.has("rpc_urls"):
        urls = section.urls("rpc_urls", ("http", "https"))
        if section.data["rpc_urls"] == []:
            section.problem("rpc_urls", "at least one URL is needed")
        return urls
    if not section.has("rpc_url"):
        section.problem("rpc_urls", "is required (or rpc_url for one)")
        return ()
    url = section.url("rpc_url", ("http", "https"))
    return (url,) if url else ()


def _ws_url(section: Section) -> str | None:
    # Optional, so an unset variable in it means none: the shipped file can name one that few operators set.
    return replace(section, lenient=True).url("ws_url", ("ws", "wss"), required=False)


def _finality(section: Section) -> Finality:
    if not section.has("finality"):
        section.used.add("finality")
        return Finality(depth=64)
    finality = section.section("finality")
    if finality.has("tag") == finality.has("depth"):
        finality.problem("", "must be {tag: finalized} or {depth: 64}")
    tag = finality.choice("tag", "finalized", ("finalized", "safe")) if finality.has("tag") else None
    depth = finality.integer("depth", 64, 1, 100_000) if finality.has("depth") else None
    finality.used.update(("tag", "depth"))
    finality.finish()
    return Finality(tag, depth)


def _start_block(section: Section) -> int | None:
    if section.data.get("start_block") in (None, "latest"):
        section.used.add("start_block")
        return None
    before = len(section.problems)
    number = section.integer("start_block", 0, 0, _BLOCK_MAX)
    if len(section.problems) > before and "${" not in str(section.data["start_block"]):
        section.problems[before:] = []  # say that latest would do as well
        section.problem("start_block", "must be latest or a block number")
    return number


def _native(section: Section) -> Native:
    symbol = section.text("symbol", "ETH", _SYMBOL, "a symbol without spaces")
    decimals = section.integer("decimals", 18, 0, _DECIMALS_MAX)
    detect = section.choice("detect", "blocks", _DETECT)
    section.finish()
    return Native(symbol, decimals, detect)


def _tokens(section: Section, native: Native) -> tuple[Token, ...]:
    tokens: list[Token] = []
    symbols, addresses = {native.symbol.casefold()}, set[bytes]()
    for entry in section.sections("tokens"):
        symbol = entry.text("symbol", None, _SYMBOL, "a symbol without spaces")
        address = entry.address("address")
        decimals = entry.integer("decimals", None, 0, _DECIMALS_MAX)
        entry.finish()
        if symbol and symbol.casefold() in symbols:
            entry.problem("symbol", f"{symbol} is the symbol of another asset of this chain")
        if address in addresses:
            entry.problem("address", "is the address of another token of this chain")
        symbols.add(symbol.casefold())
        if address is not None:
            addresses.add(address)
        if symbol and address is not None:
            tokens.append(Token(symbol, address, decimals))
    return tuple(tokens)


def _sweep(section: Section, chain: Chain, present: bool) -> Sweep:
    if not present:
        return Sweep()
    mode = section.choice("mode", "auto", _SWEEP)
    sweep = Sweep(
        mode=mode,
        treasury=section.address("treasury", required=chain.enabled and mode != "off"),
        interval_s=section.number("interval", 10.0, 0.05, 86_400.0),
        batch_size=section.integer("batch_size", 50, 1, 500),
        max_fee_gwei=section.decimal("max_fee_gwei"),
        min_amount=_min_amount(section.section("min_amount"), chain),
        max_wait_s=section.number("max_wait", 0.0, 1.0, 31_536_000.0) if section.has("max_wait") else None,
    )
    section.used.add("max_wait")
    if sweep.treasury is not None and chain.asset_by_address(sweep.treasury) is not None:
        section.problem("treasury", "is a token's contract: money sent there is lost")
    section.finish()
    return sweep


def _min_amount(section: Section, chain: Chain) -> dict[str, str]:
    amounts: dict[str, str] = {}
    for key in section.keys:
        amount = section.amount(key)
        asset = chain.asset(key)
        if asset is None:
            section.problem(key, "no such asset on this chain")
            continue
        try:
            parse_units(amount, asset.decimals)
        except MoneyError as error:
            section.problem(key, str(error))
        amounts[asset.symbol] = amount
    return amounts


def _unique(top: Section, chains: tuple[Chain, ...]) -> None:
    names: set[str] = set()
    chain_ids: set[int] = set()
    for chain in chains:
        if chain.name and chain.name.casefold() in names:
            top.problem("", f"chain '{chain.name}': name: another chain has the same")
        if chain.chain_id and chain.chain_id in chain_ids:
            top.problem("", f"chain '{chain.name}': chain_id: another chain has the same")
        names.add(chain.name.casefold())
        chain_ids.add(chain.chain_id)


def _rates_have_chains(top: Section, rates: Rates | None, chains: tuple[Chain, ...]) -> None:
    enabled = {chain.name for chain in chains if chain.enabled}
    for index, source in enumerate(rates.sources if rates else ()):
        if isinstance(source, ChainlinkRates) and source.chain and source.chain not in enabled:
            top.problem(f"rates.sources[{index}].chain", f"no enabled chain is named '{source.chain}'")

"""The `rates:` section of chains.yaml: where a price in fiat money finds its amount in an asset."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from app.core.section import Section

_PAIR: Final = re.compile(r"[A-Z0-9._₮-]{1,32}/[A-Z0-9]{2,10}")


@dataclass(frozen=True)
class FixedRates:
    """Rates that the operator vouches for: `{"USDC/USD": Decimal(1)}`, one USDC is one USD."""

    pairs: Mapping[str, Decimal] = field(hash=False)


@dataclass(frozen=True)
class ChainlinkRates:
    """Price feed contracts (20 bytes) by pair, read on the configured chain of that name."""

    chain: str
    feeds: Mapping[str, bytes] = field(hash=False)


@dataclass(frozen=True)
class HttpRates:
    """A JSON page: `url` with `{base}` and `{quote}` in it, and the dotted `path` to the rate in its answer."""

    url: str = field(repr=False)
    path: str


RateSource = FixedRates | ChainlinkRates | HttpRates


@dataclass(frozen=True)
class Rates:
    """The sources in the order they are tried. A rate older than `max_age_s` is no rate."""

    max_age_s: float
    sources: tuple[RateSource, ...]


def read_rates(section: Section) -> Rates:
    """The section as Rates; what is wrong with it goes to the section's problems."""
    max_age_s = section.number("max_age", 120.0, 1.0, 86_400.0)
    sources = tuple(_source(entry) for entry in section.sections("sources"))
    if not sources:
        section.problem("sources", "at least one source is needed")
    section.finish()
    return Rates(max_age_s, sources)


def _source(section: Section) -> RateSource:
    kind = section.choice("kind", "", ("fixed", "chainlink", "http"))
    source: RateSource
    if kind == "chainlink":
        chain = section.text("chain")
        feeds = section.section("feeds", required=True)
        source = ChainlinkRates(chain, {_pair(feeds, pair): feeds.address(pair) or b"" for pair in feeds.keys})
    elif kind == "http":
        url = section.url("url", ("http", "https")) or ""
        if url and not ("{base}" in url and "{quote}" in url):
            section.problem("url", "must contain {base} and {quote}")
        source = HttpRates(url, section.text("path"))
    else:
        pairs = section.section("pairs", required=kind == "fixed")
        source = FixedRates({_pair(pairs, pair): _rate(pairs, pair) for pair in pairs.keys})
    if kind:
        section.finish()
    return source


def _pair(section: Section, pair: str) -> str:
    if _PAIR.fullmatch(pair.upper()) is None:
        section.problem(pair, "a pair is written ETH/USD")
    return pair.upper()


def _rate(section: Section, pair: str) -> Decimal:
    before = len(section.problems)
    rate = Decimal(section.amount(pair))
    if rate <= 0 and len(section.problems) == before:
        section.problem(pair, "a rate must be above zero")
    return rate

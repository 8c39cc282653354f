"""The `rates:` section of chains.yaml: where a price in fiat money finds its amount in an asset."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final

from app.core.limits import AMOUNT_CHARS, RATE_DIGITS
from app.core.money import plain_digits
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
    max_age_s: float | None = None


@dataclass(frozen=True)
class HttpRates:
    """A JSON page: `url` with `{base}` and `{quote}` in it, and the dotted `path` to the rate in its answer."""

    url: str = field(repr=False)
    path: str
    max_age_s: float | None = None


RateSource = FixedRates | ChainlinkRates | HttpRates


@dataclass(frozen=True)
class Rates:
    """The sources in the order they are tried. A rate older than `max_age_s`, or than its source's own, is no rate."""

    max_age_s: float
    sources: tuple[RateSource, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """One whole unit of a pair's base was worth `value` of its quote at `at`, by what `source` says."""

    value: Decimal
    source: str
    at: datetime
    reusable_until: datetime

    @property
    def text(self) -> str:
        """The value as decimal digits, at most `AMOUNT_CHARS` of them."""
        return plain_digits(format(self.value, "f"))


def pair_of(base: str, quote: str) -> str:
    """How sources name it: `pair_of("usdc", "USD") == "USDC/USD"`."""
    return f"{base}/{quote}".upper()


def is_price(value: Decimal) -> bool:
    """Whether a number can be a rate: above zero, and of a size that can be kept as digits."""
    if not value.is_finite() or value <= 0 or abs(value.adjusted()) > RATE_DIGITS:
        return False
    return len(format(value, "f")) <= AMOUNT_CHARS


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
        found = {_pair(feeds, pair): feeds.address(pair) or b"" for pair in feeds.keys}
        source = ChainlinkRates(chain, found, _max_age_s(section))
    elif kind == "http":
        url = section.url("url", ("http", "https")) or ""
        if url and not ("{base}" in url and "{quote}" in url):
            section.problem("url", "must contain {base} and {quote}")
        source = HttpRates(url, section.text("path"), _max_age_s(section))
    else:
        pairs = section.section("pairs", required=kind == "fixed")
        source = FixedRates({_pair(pairs, pair): _rate(pairs, pair) for pair in pairs.keys})
    if kind:
        section.finish()
    return source


def _max_age_s(section: Section) -> float | None:
    """The source's own, where it has one: a feed that is updated once an hour is fresh for an hour."""
    section.used.add("max_age")
    return section.number("max_age", 0.0, 1.0, 86_400.0) if section.has("max_age") else None


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

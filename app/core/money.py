"""Amounts: decimal strings outside, integer base units inside, and never a float between."""

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

from app.core.limits import AMOUNT_CHARS, MAX_UNITS

_AMOUNT = re.compile(r"([0-9]+)(?:\.([0-9]+))?")
_PERCENT_DECIMALS = 4  # so a percentage is a whole number of parts per million
_WHOLE_PPM = 1_000_000


class MoneyError(ValueError):
    """An amount that is not one; its text is fit to be shown to the caller."""


def parse_units(amount: str, decimals: int) -> int:
    """Read `amount` of an asset with `decimals` as integer base units: `parse_units("25.5", 6) == 25_500_000`.

    Takes ASCII digits with at most one dot between them: no sign, exponent, space, underscore or digit grouping. Zero
    is an amount here; whether it is allowed is for the caller to say.

    Raises MoneyError, also for more decimals than the asset has (nothing is ever rounded) and above 2**256 − 1 units.
    """
    if not isinstance(amount, str):
        raise MoneyError("an amount must be a string of decimal digits")
    if len(amount) > AMOUNT_CHARS:
        raise MoneyError(f"an amount has at most {AMOUNT_CHARS} characters")
    match = _AMOUNT.fullmatch(amount)
    if match is None:
        raise MoneyError('an amount must be decimal digits with at most one dot, such as "25" or "0.5"')
    whole, fraction = match[1], match[2] or ""
    if len(fraction) > decimals:
        raise MoneyError(f"the amount has {len(fraction)} decimals, the asset has {decimals}")
    units = int(whole + fraction.ljust(decimals, "0"))
    if units > MAX_UNITS:
        raise MoneyError("the amount is above 2**256 − 1 base units")
    return units


def format_units(units: int, decimals: int) -> str:
    """Write base `units` as a decimal string: no trailing zeros, no exponent, at any size (`"25"`, `"0.000001"`).

    Raises MoneyError for a negative number: there are no negative amounts.
    """
    if units < 0:
        raise MoneyError("an amount cannot be negative")
    whole, fraction = divmod(units, 10**decimals)
    digits = str(fraction).rjust(decimals, "0").rstrip("0") if fraction else ""
    return f"{whole}.{digits}" if digits else str(whole)


def parse_price(amount: str) -> str:
    """Read a price in a currency whose decimals nobody knows: normalised as amounts are, and above zero.

    Raises MoneyError.
    """
    if len(amount) > AMOUNT_CHARS or _AMOUNT.fullmatch(amount) is None:
        raise MoneyError(
            f'a price must be at most {AMOUNT_CHARS} decimal digits with at most one dot, such as "25" or "0.5"'
        )
    price = plain_digits(amount)
    if price == "0":
        raise MoneyError("a price must be above zero")
    return price


def plain_digits(digits: str) -> str:
    """Decimal digits without the zeros that say nothing: `"025.50"` is `"25.5"`."""
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def price_units(price: str, rate: Decimal, decimals: int) -> int:
    """Base units, of an asset with `decimals`, that are worth `price`, rounded up: never less than what was asked.

    `rate` is what one whole unit of the asset is worth. Raises MoneyError above 2**256 − 1 units.
    """
    units: int = ceil(Fraction(price) * 10**decimals / Fraction(rate))
    if units > MAX_UNITS:
        raise MoneyError("the price is above 2**256 − 1 base units of the asset")
    return units


@dataclass(frozen=True)
class Tolerance:
    """How much less than asked still counts as paid: an amount of the asset, or parts per million of what is asked."""

    text: str
    amount: str | None
    parts_per_million: int | None

    def units(self, amount_units: int, decimals: int) -> int:
        """The tolerated shortfall in base units of `amount_units`; a percentage rounds down.

        Raises MoneyError when the asset has fewer decimals than the tolerance, or when the tolerance is the whole
        amount or more: everything, or nothing at all, would then count as paid.
        """
        if self.parts_per_million is not None:
            return amount_units * self.parts_per_million // _WHOLE_PPM
        units = parse_units(self.amount or "", decimals)
        if units and units >= amount_units:
            raise MoneyError("the tolerance must be less than the amount")
        return units

    def share(self, amount_units: int, units_each: Fraction) -> int:
        """The tolerated shortfall in base units where what is asked is counted in something else than the asset.

        `units_each`: base units of one of what the tolerance counts in. Rounds down; 0 where it would be the whole
        amount or more.
        """
        if self.parts_per_million is not None:
            return self.units(amount_units, 0)
        units = floor(Fraction(self.amount or "0") * units_each)
        return units if units < amount_units else 0

    def __str__(self) -> str:
        return self.text


def parse_tolerance(text: str) -> Tolerance:
    """Read `"0.10"` (of the asset) or `"0.5%"` (0 to under 100, at most 4 decimals). Raises MoneyError."""
    if not isinstance(text, str):
        raise MoneyError('a tolerance must be a string such as "0.10" or "0.5%"')
    if not text.endswith("%"):
        if len(text) > AMOUNT_CHARS or _AMOUNT.fullmatch(text) is None:  # its decimals wait until the asset is known
            raise MoneyError('a tolerance must be decimal digits, such as "0.10" of the asset or "0.5%" of the amount')
        return Tolerance(text, amount=text, parts_per_million=None)
    try:
        parts_per_million = parse_units(text[:-1], _PERCENT_DECIMALS)
    except MoneyError:
        message = f'a tolerance in percent must be digits with at most {_PERCENT_DECIMALS} decimals, such as "0.5%"'
        raise MoneyError(message) from None
    if parts_per_million >= _WHOLE_PPM:
        raise MoneyError("a tolerance must be less than 100%")
    return Tolerance(text, amount=None, parts_per_million=parts_per_million)

"""What a payment will ask for: each option's amount, tolerance and confirmations, before anything is written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from app.core import limits
from app.core.chains import Asset, Chain
from app.core.errors import (
    ChainUnavailable,
    FieldError,
    InvalidAmount,
    InvalidRequest,
    RateUnavailable,
    UnknownChain,
    UnknownToken,
)
from app.core.money import MoneyError, Tolerance, parse_price, parse_tolerance, parse_units, price_units
from app.core.rates import Rate, pair_of
from app.services.context import Context
from app.services.defaults import Defaults
from app.services.rates import find_rates
from app.services.watched import Watched


@dataclass(frozen=True, slots=True)
class Price:
    """An amount of a currency that an asset's rate is told in."""

    amount: str
    currency: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """One way in which a price may be paid. `token` is a symbol or a contract."""

    chain: str
    token: str


@dataclass(frozen=True, slots=True)
class NewPayment:
    """What a storefront asks for: `chain`, `token` and `amount`, or `price` and `accept`.

    `tolerance` is like "0.10" (of the asset; of the currency with a price) or "0.5%". None is the merchant's default.
    """

    chain: str | None = None
    token: str | None = None
    amount: str | None = None
    price: Price | None = None
    accept: Sequence[Accepted] | None = None
    order_id: str | None = None
    expires_in_s: int | None = None
    confirmations_required: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    webhook_url: str | None = None
    redirect_url: str | None = None
    description: str | None = None
    tolerance: str | None = None


@dataclass(frozen=True, slots=True)
class Quote:
    """One option of a payment to be: what must arrive, in which asset of which chain, at which rate if at one."""

    chain: Chain
    asset: Asset
    amount_units: int
    tolerance_units: int
    confirmations_required: int
    rate: Rate | None


@dataclass(frozen=True, slots=True)
class Quoted:
    """A payment to be, with all that had to be asked before its transaction; `price` is normalised."""

    wanted: NewPayment
    price: Price | None
    quotes: Sequence[Quote]
    expires_in_s: int
    watched: Watched


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that makes sense: ways to pay in their order; `amount` of the one asset, or `price`."""

    ways: Sequence[tuple[Chain, Asset]]
    amount: str | None
    price: Price | None
    tolerance: Tolerance | None
    confirmations_required: int | None


async def quote(context: Context, merchant: Defaults, wanted: NewPayment) -> Quoted:
    """Check what is wanted, and find what each option asks for. Reads the database and asks for rates.

    Options of chains that are not watched, or without a fresh rate, are left out. Raises UnknownChain, UnknownToken,
    InvalidAmount, InvalidRequest; ChainUnavailable or RateUnavailable when no option is left.
    """
    asked = _check(context, wanted)
    watched = await context.watched.find(context.db)
    if any(_obstacle(watched, *way) for way in asked.ways):
        watched = await context.watched.find(context.db, anew=True)
    obstacles = [_obstacle(watched, *way) for way in asked.ways]
    ways = [way for way, obstacle in zip(asked.ways, obstacles, strict=True) if obstacle is None]
    if not ways:
        raise ChainUnavailable("; ".join(dict.fromkeys(each for each in obstacles if each is not None)))
    rates = await find_rates(context, _pairs(asked, merchant, ways))
    quotes = [_quote(asked, merchant, rates, chain, asset) for chain, asset in ways]
    offered = [each for each in quotes if each is not None]
    if not offered:
        missing = ", ".join(dict.fromkeys(pair_of(asset.symbol, _currency(asked)) for _, asset in ways))
        raise RateUnavailable(f"there is no fresh rate for {missing}")
    expires_in_s = merchant.expires_in_s if wanted.expires_in_s is None else wanted.expires_in_s
    return Quoted(wanted, asked.price, offered, expires_in_s, watched)


# --- what was asked, by itself


def _check(context: Context, wanted: NewPayment) -> _Asked:
    """The request against chains.yaml; what is wrong with it is told before anything is looked up."""
    _check_form(wanted)
    if len(json.dumps(wanted.metadata, ensure_ascii=False).encode()) > limits.METADATA_BYTES:
        message = f"metadata has at most {limits.METADATA_BYTES} bytes as JSON"
        raise InvalidRequest(message, [FieldError("metadata", message)])
    try:
        tolerance = None if wanted.tolerance is None else parse_tolerance(wanted.tolerance)
    except MoneyError as error:
        raise InvalidRequest(str(error), [FieldError("tolerance", str(error))]) from error
    if wanted.price is not None:
        price = _check_price(wanted.price, tolerance)
        return _Asked(_accepted(context, wanted.accept or ()), None, price, tolerance, wanted.confirmations_required)
    chain, asset = _way(context, wanted.chain or "", wanted.token or "", "")
    amount = wanted.amount or ""
    units = _units(amount, asset)
    if tolerance is not None:
        try:
            tolerance.units(units, asset.decimals)
        except MoneyError as error:
            raise InvalidRequest(str(error), [FieldError("tolerance", str(error))]) from error
    return _Asked([(chain, asset)], amount, None, tolerance, wanted.confirmations_required)


def _check_form(wanted: NewPayment) -> None:
    """Exactly one of the two forms. Raises InvalidRequest, naming what is missing or too much."""
    amount = {name: getattr(wanted, name) is not None for name in ("chain", "token", "amount")}
    price = {name: getattr(wanted, name) is not None for name in ("price", "accept")}
    if any(amount.values()) and any(price.values()):
        problems = [
            FieldError(name, "cannot be combined with chain, token and amount: give those, or price and accept")
            for name, is_there in price.items()
            if is_there
        ]
    else:
        form, other = (price, "chain, token and amount") if any(price.values()) else (amount, "price and accept")
        problems = [
            FieldError(name, f"is required (or give {other})") for name, is_there in form.items() if not is_there
        ]
    if problems:
        kind = InvalidAmount if [each.path for each in problems] == ["amount"] else InvalidRequest
        raise kind("; ".join(f"{each.path} {each.message}" for each in problems), problems)


def _check_price(price: Price, tolerance: Tolerance | None) -> Price:
    try:
        amount = parse_price(price.amount)
    except MoneyError as error:
        raise InvalidAmount(str(error), [FieldError("price.amount", str(error))]) from error
    if tolerance is not None and tolerance.amount is not None and 0 < Fraction(tolerance.amount) >= Fraction(amount):
        message = "the tolerance must be less than the price"
        raise InvalidRequest(message, [FieldError("tolerance", message)])
    return Price(amount, price.currency.upper())


def _accepted(context: Context, accept: Sequence[Accepted]) -> list[tuple[Chain, Asset]]:
    if not 1 <= len(accept) <= limits.ACCEPT_OPTIONS:
        message = f"must be a list of 1 to {limits.ACCEPT_OPTIONS} ways to pay"
        raise InvalidRequest(message, [FieldError("accept", message)])
    ways: list[tuple[Chain, Asset]] = []
    for index, each in enumerate(accept):
        way = _way(context, each.chain, each.token, f"accept.{index}.")
        if way in ways:
            message = f"{way[1].symbol} on {way[0].name} is in the list already"
            raise InvalidRequest(message, [FieldError(f"accept.{index}", message)])
        ways.append(way)
    return ways


def _way(context: Context, chain_name: str, token: str, path: str) -> tuple[Chain, Asset]:
    try:
        chain = context.chain(chain_name)
    except UnknownChain as error:
        raise UnknownChain(error.detail, [FieldError(f"{path}chain", error.detail)]) from error
    asset = chain.asset(token)
    if asset is None:
        known = ", ".join(each.symbol for each in chain.assets)
        message = f"chain {chain.name!r} has no token {token!r}; it has {known}"
        raise UnknownToken(message, [FieldError(f"{path}token", message)])
    return chain, asset


def _units(amount: str, asset: Asset) -> int:
    try:
        units = parse_units(amount, asset.decimals)
        if units == 0:
            raise MoneyError("an amount must be above zero")
    except MoneyError as error:
        raise InvalidAmount(str(error), [FieldError("amount", str(error))]) from error
    return units


# --- what it comes to


def _obstacle(watched: Watched, chain: Chain, asset: Asset) -> str | None:
    """Without a cursor the first payment could be mined before anybody looks; a halted chain sees nothing."""
    state = watched.cursors.get(chain.chain_id)
    if state is None or (chain.chain_id, asset.address) not in watched.tokens:
        return f"chain {chain.name!r} is not watched yet: its node has not been checked"
    if state.halt_code is not None:
        return f"chain {chain.name!r} is halted: {state.halt_detail}"
    return None


def _currency(asked: _Asked) -> str:
    return asked.price.currency if asked.price is not None else ""


def _tier_currencies(asked: _Asked, merchant: Defaults) -> Sequence[str]:
    """In which currencies it matters what an option is worth."""
    if asked.confirmations_required is not None:
        return ()
    if asked.price is not None and asked.price.currency in merchant.currencies:
        return (asked.price.currency,)
    return merchant.currencies


def _pairs(asked: _Asked, merchant: Defaults, ways: Sequence[tuple[Chain, Asset]]) -> set[str]:
    currencies = set(_tier_currencies(asked, merchant))
    if asked.price is not None:
        currencies.add(asked.price.currency)
    return {pair_of(asset.symbol, currency) for _, asset in ways for currency in currencies}


def _quote(asked: _Asked, merchant: Defaults, rates: Mapping[str, Rate], chain: Chain, asset: Asset) -> Quote | None:
    """None without a rate for the price."""
    rate: Rate | None = None
    # Base units of one of what the payment is asked in, in which an absolute tolerance counts too.
    units_each = Fraction(10**asset.decimals)
    if asked.price is not None:
        rate = rates.get(pair_of(asset.symbol, asked.price.currency))
        if rate is None:
            return None
        units_each /= Fraction(rate.value)
        try:
            units = price_units(asked.price.amount, rate.value, asset.decimals)
        except MoneyError as error:
            raise InvalidAmount(str(error), [FieldError("price.amount", str(error))]) from error
    else:
        units = _units(asked.amount or "", asset)
    worth = _worth(asked, merchant, rates, asset, units)
    return Quote(
        chain=chain,
        asset=asset,
        amount_units=units,
        tolerance_units=(asked.tolerance or merchant.tolerance).share(units, units_each),
        confirmations_required=asked.confirmations_required
        or merchant.confirmations(chain.confirmations_required, worth),
        rate=rate,
    )


def _worth(
    asked: _Asked, merchant: Defaults, rates: Mapping[str, Rate], asset: Asset, units: int
) -> dict[str, Fraction]:
    """What an option is worth in the currencies of the merchant's tiers, as far as it is known."""
    worth: dict[str, Fraction] = {}
    for currency in _tier_currencies(asked, merchant):
        rate = rates.get(pair_of(asset.symbol, currency))
        if asked.price is not None and asked.price.currency == currency:
            worth[currency] = Fraction(asked.price.amount)
        elif rate is not None:
            worth[currency] = Fraction(units, 10**asset.decimals) * Fraction(rate.value)
    return worth

"""What an asset is worth in a currency, by the sources of chains.yaml in their order. No rate is ever made up."""

import asyncio
import json
import re
from collections.abc import Collection
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final, NoReturn
from urllib.parse import quote, urlsplit

import httpx

from app.blockchain.errors import NodeError, TransientError
from app.blockchain.feeds import FeedRound, fetch_rounds
from app.core import limits
from app.core.clock import from_unix, utc_now
from app.core.logger import get_logger
from app.core.rates import ChainlinkRates, FixedRates, HttpRates, Rate, Rates, RateSource, is_price
from app.services.blockchain.chains import require_same_chain
from app.services.context import Context

log = get_logger(__name__)

_DIGITS: Final = re.compile(r"[0-9]{1,78}(\.[0-9]{1,77})?")


class _NoRateError(Exception):
    """Why an answer holds no rate; fit to be logged."""


async def find_rates(context: Context, pairs: Collection[str]) -> dict[str, Rate]:
    """Fresh rates by pair (`ETH/USD`); a pair that no source has one for is left out.

    Nothing is derived: neither the inverse of a pair nor the product of two. Must not be called in a transaction.
    """
    rates = context.chains.rates
    if rates is None or not pairs:
        return {}
    return await context.rates.find(pairs, partial(_fetch, context, rates))


async def _fetch(context: Context, rates: Rates, pairs: Collection[str]) -> dict[str, Rate]:
    found: dict[str, Rate] = {}
    for source in rates.sources:
        left = [pair for pair in pairs if pair not in found and _has(source, pair)]
        if not left:
            continue
        if isinstance(source, FixedRates):
            now = utc_now()
            found |= {
                pair: Rate(source.pairs[pair], "fixed", now, _reusable_until(now, rates.max_age_s)) for pair in left
            }
        elif isinstance(source, ChainlinkRates):
            found |= await _from_feeds(context, source, source.max_age_s or rates.max_age_s, left)
        else:
            max_age_s = source.max_age_s or rates.max_age_s
            told = await asyncio.gather(*(_from_page(context.rates.client, source, max_age_s, pair) for pair in left))
            found |= {pair: rate for pair, rate in zip(left, told, strict=True) if rate is not None}
    return found


def _has(source: RateSource, pair: str) -> bool:
    """Whether it is worth asking; a page may have any pair."""
    if isinstance(source, FixedRates):
        return pair in source.pairs
    return pair in source.feeds if isinstance(source, ChainlinkRates) else True


def _reusable_until(at: datetime, max_age_s: float) -> datetime:
    """A rate is used again for a small part of `max_age_s`, and never beyond it."""
    soon_s = min(max_age_s / limits.RATE_REUSED_PART, limits.RATE_REUSED_MAX_S)
    return min(utc_now() + timedelta(seconds=soon_s), at + timedelta(seconds=max_age_s))


async def _from_feeds(context: Context, source: ChainlinkRates, max_age_s: float, pairs: list[str]) -> dict[str, Rate]:
    """Chainlink's rates, from the first of the chain's endpoints that answers."""
    chain = context.by_name[source.chain]
    nodes = context.nodes.nodes(chain)
    endpoint = nodes.pick()
    for _ in range(limits.RATE_NODES):
        if endpoint is None:
            break
        try:
            async with asyncio.timeout(limits.RATE_TIMEOUT_S):
                await require_same_chain(context, chain, endpoint)
                rounds = await fetch_rounds(endpoint, {source.feeds[pair] for pair in pairs})
        except (NodeError, TimeoutError) as error:
            failure = error if isinstance(error, NodeError) else TransientError("no answer in time")
            nodes.failed(endpoint, failure)
            log.warning("rate source failed", source="chainlink", endpoint=endpoint.name, reason=str(failure))
            endpoint = nodes.pick(other_than=endpoint)
        else:
            nodes.succeeded(endpoint)
            told = {pair: _of_round(source, max_age_s, pair, rounds[source.feeds[pair]]) for pair in pairs}
            return {pair: rate for pair, rate in told.items() if rate is not None}
    return {}


def _of_round(source: ChainlinkRates, max_age_s: float, pair: str, found: FeedRound | str) -> Rate | None:
    name = f"chainlink:{source.chain}"
    if isinstance(found, str):
        log.warning("no rate", source=name, pair=pair, reason=found)
        return None
    at = from_unix(found.updated_at)
    # Either way: a round from the future is no more to be believed than one from long ago.
    if abs((utc_now() - at).total_seconds()) > max_age_s or not is_price(found.answer):
        log.warning("no rate", source=name, pair=pair, reason="not fresh", answer=str(found.answer), updated_at=at)
        return None
    return Rate(found.answer, name, at, _reusable_until(at, max_age_s))


async def _from_page(client: httpx.AsyncClient, source: HttpRates, max_age_s: float, pair: str) -> Rate | None:
    """A JSON page's rate, which is as old as the question; None, and logged, when there is none. Never raises."""
    base, _, currency = pair.partition("/")
    name = f"http:{urlsplit(source.url).hostname}"
    url = source.url.replace("{base}", quote(base, safe="")).replace("{quote}", quote(currency, safe=""))
    at = utc_now()
    try:
        async with asyncio.timeout(limits.RATE_TIMEOUT_S):
            value = _read(await _download(client, url), source.path)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError) as error:
        # Their messages may hold the URL, and the URL a key.
        log.warning("no rate", source=name, pair=pair, reason=type(error).__name__)
        return None
    except _NoRateError as error:
        log.warning("no rate", source=name, pair=pair, reason=str(error))
        return None
    return Rate(value, name, at, _reusable_until(at, max_age_s))


async def _download(client: httpx.AsyncClient, url: str) -> bytes:
    """A page's body, uncompressed: a few compressed bytes could be a gigabyte."""
    body = b""
    async with client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
        if response.status_code != 200:
            raise _NoRateError(f"HTTP {response.status_code}")
        async for chunk in response.aiter_raw(limits.RATE_ANSWER_BYTES):
            body += chunk
            if len(body) > limits.RATE_ANSWER_BYTES:
                raise _NoRateError(f"more than {limits.RATE_ANSWER_BYTES} bytes")
    return body


def _read(body: bytes, path: str) -> Decimal:
    """The number at a dotted path, such as `data.prices.0.amount`; as JSON number or as a string of digits."""
    try:
        found: Any = json.loads(body, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise _NoRateError("not JSON") from error
    for part in path.split("."):
        if isinstance(found, dict):
            found = found.get(part)
        elif isinstance(found, list) and re.fullmatch(r"[0-9]{1,6}", part) and int(part) < len(found):
            found = found[int(part)]
        else:
            found = None
    if isinstance(found, str) and _DIGITS.fullmatch(found):
        found = Decimal(found)
    elif isinstance(found, int) and not isinstance(found, bool):
        found = Decimal(found)
    if not isinstance(found, Decimal) or not is_price(found):
        raise _NoRateError(f"no price at {path}")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")

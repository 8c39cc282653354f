"""Chainlink price feeds, read by AggregatorV3Interface (docs.chain.link, "Data Feeds API Reference")."""

from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from app.blockchain.errors import FatalError
from app.blockchain.identity import DECIMALS_SELECTOR
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.wire import to_bytes

# keccak256("latestRoundData()")[:4]
_LATEST_ROUND_DATA: Final = "0xfeaf968c"
_DECIMALS_MAX: Final = 77  # with more, not even a 1 fits into an int256
_TIME_MAX: Final = 2**40  # Unix seconds; later is no time


@dataclass(frozen=True, slots=True)
class FeedRound:
    """A feed's last round: what one of the base is worth, and when that was told (Unix seconds)."""

    answer: Decimal
    updated_at: int


async def fetch_rounds(endpoint: Endpoint, feeds: Collection[bytes]) -> dict[bytes, FeedRound | str]:
    """The last round of each feed contract (20 bytes), or in words why it has none; one batch for all of them.

    Raises NodeError.
    """
    wanted = list(feeds)
    calls: list[Call] = [
        ("eth_call", [{"to": "0x" + feed.hex(), "data": selector}, "latest"])
        for feed in wanted
        for selector in (_LATEST_ROUND_DATA, DECIMALS_SELECTOR)
    ]
    try:
        answers = await endpoint.batch(str, calls)
    except FatalError as error:  # a contract that reverts spoils the batch, and must not spoil the others' rates
        if len(wanted) == 1:
            return {wanted[0]: str(error)}
        apart = [await fetch_rounds(endpoint, [feed]) for feed in wanted]
        return {feed: found for each in apart for feed, found in each.items()}
    pairs = zip(answers[::2], answers[1::2], strict=True)
    return {feed: _round(data, decimals) for feed, (data, decimals) in zip(wanted, pairs, strict=True)}


def _round(data: str | None, decimals: str | None) -> FeedRound | str:
    """(roundId, answer, startedAt, updatedAt, answeredInRound), and the answer's decimals."""
    words = to_bytes(data or "0x")
    scale = to_bytes(decimals or "0x")
    if len(words) != 160 or len(scale) != 32:
        return "the contract is no price feed"
    round_id, updated_at, answered_in = (int.from_bytes(words[at : at + 32], "big") for at in (0, 96, 128))
    answer = int.from_bytes(words[32:64], "big", signed=True)
    places = int.from_bytes(scale, "big")
    if answer <= 0:
        return f"its answer is {answer}"
    if updated_at == 0 or updated_at > _TIME_MAX:
        return "its round is not complete"
    if answered_in < round_id:
        return "its answer was carried over from an earlier round"
    if places > _DECIMALS_MAX:
        return f"it has {places} decimals"
    return FeedRound(Decimal(f"{answer}E-{places}"), updated_at)

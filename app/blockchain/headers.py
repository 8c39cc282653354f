"""Headers: what links one block to the next."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from app.blockchain.errors import BlockUnknownError, InvalidAnswerError
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.wire import RawHeader, to_bytes, to_int

_NUMBER_END: Final = 2**63  # what the database can hold
_TIME_END: Final = 253_402_300_800  # the year 10,000: some chains count in milliseconds or nanoseconds


@dataclass(frozen=True, slots=True)
class Header:
    """A block's identity. `time` is Unix seconds."""

    number: int
    hash: bytes
    parent_hash: bytes
    time: int


async def fetch_header(endpoint: Endpoint, tag: str | int) -> Header:
    """Header of a height or a tag (`latest`, `finalized`). Raises BlockUnknownError when the node gives null."""
    name = hex(tag) if isinstance(tag, int) else tag
    return _checked(await endpoint.call(RawHeader, "eth_getBlockByNumber", name, False), tag)


async def fetch_header_and(endpoint: Endpoint, tag: str, number: int) -> tuple[Header, Header]:
    """The headers of a tag and of a height in one request, which one node answers. Raises as `fetch_header` does."""
    calls: list[Call] = [("eth_getBlockByNumber", [name, False]) for name in (tag, hex(number))]
    tagged, numbered = await endpoint.batch(RawHeader, calls)
    return _checked(tagged, tag), _checked(numbered, number)


async def fetch_headers(endpoint: Endpoint, numbers: Iterable[int]) -> dict[int, Header]:
    """Headers by height; heights that the node does not have are left out."""
    wanted = list(numbers)
    calls: list[Call] = [("eth_getBlockByNumber", [hex(number), False]) for number in wanted]
    raws = await endpoint.batch(RawHeader, calls)
    found = {}
    for number, raw in zip(wanted, raws, strict=True):
        if raw is not None:
            found[number] = read_header(raw)
            if found[number].number != number:
                raise InvalidAnswerError(f"asked for block {number}, got {found[number].number}")
    return found


def _checked(raw: RawHeader | None, asked: str | int) -> Header:
    if raw is None:
        raise BlockUnknownError(f"no block {asked}")
    header = read_header(raw)
    if isinstance(asked, int) and header.number != asked:
        raise InvalidAnswerError(f"asked for block {asked}, got {header.number}")
    return header


def read_header(raw: RawHeader) -> Header:
    """Raises InvalidAnswerError, also for a number or a time that no block has."""
    header = Header(to_int(raw.number), to_bytes(raw.hash), to_bytes(raw.parentHash), to_int(raw.timestamp))
    if not (0 <= header.number < _NUMBER_END and 0 <= header.time < _TIME_END):
        raise InvalidAnswerError(f"block {header.number} with the time {header.time}: these are seconds since 1970")
    return header

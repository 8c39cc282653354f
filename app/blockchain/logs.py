"""Token transfers by their logs: asked by range or by block hash, checked, and asked again where a bloom objects."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from eth_utils.crypto import keccak

from app.blockchain.errors import InvalidAnswerError, NodeError, RangeTooWideError
from app.blockchain.headers import Header
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.wire import TRANSFER_TOPIC, RawBlock, RawLog, to_bytes, to_int
from app.core.evm import hex0x


async def fetch_logs(
    endpoint: Endpoint,
    second: Endpoint | None,
    headers: Sequence[Header],
    blocks: Sequence[RawBlock],
    tokens: Collection[bytes],
    by_range: bool,
) -> list[RawLog]:
    """ERC-20 transfers of `tokens` in linked blocks; see `fetch_run`. Raises NodeError."""
    query = LogQuery(tokens)
    answers = await (_by_range if by_range else _by_hash)(endpoint, headers, query)
    logs = query.checked(answers, headers)
    return logs + await _ask_again(endpoint, second, headers, blocks, logs, query)


def bloom_mask(*items: bytes) -> int:
    """The bits that all of `items` set in a 2,048-bit logs bloom (Ethereum Yellow Paper, section 4.3.1)."""
    mask = 0
    for item in items:
        digest = keccak(item)
        for start in (0, 2, 4):
            mask |= 1 << (int.from_bytes(digest[start : start + 2], "big") & 2047)
    return mask


class LogQuery:
    """Which logs are wanted: `Transfer` of the watched tokens. Deposit addresses are never sent to the node."""

    def __init__(self, tokens: Collection[bytes]) -> None:
        self.tokens = {"0x" + token.hex(): bloom_mask(token, to_bytes(TRANSFER_TOPIC)) for token in tokens}
        self.filter: dict[str, Any] = {"address": sorted(self.tokens), "topics": [TRANSFER_TOPIC]}

    def checked(self, answers: Iterable[list[RawLog] | None], headers: Iterable[Header]) -> list[RawLog]:
        """The ERC-20 transfers of the answers. Raises InvalidAnswerError for a log that was not asked for."""
        known = {hex0x(header.hash): header.number for header in headers}
        written = {hash_: hex(number) for hash_, number in known.items()}  # as nodes write it: seldom read as a number
        logs: list[RawLog] = []
        for answer in answers:
            if answer is None:
                raise InvalidAnswerError("eth_getLogs gave null")
            for log in answer:
                placed = written.get(log.blockHash) == log.blockNumber
                if log.removed or not (placed or known.get(log.blockHash) == to_int(log.blockNumber)):
                    raise InvalidAnswerError(f"a log of block {log.blockNumber} is not of the block asked for")
                if log.address.lower() not in self.tokens or log.topics[:1] != [TRANSFER_TOPIC]:
                    raise InvalidAnswerError(f"a log of {log.address}, which was not asked for")
                # ERC-721 transfers share the topic but index the id: four topics and no data.
                if len(log.topics) == 3 and len(log.data) == 66:
                    logs.append(log)
        return logs

    def missing(self, block: RawBlock, logs: Iterable[RawLog]) -> bool:
        """Whether the block's bloom promises a transfer of a token that has no log. Blooms may promise too much."""
        bloom = to_int(block.logsBloom) if block.logsBloom != "0x" else 0
        if bloom == 0:
            return False  # some L2s leave it empty: never a proof
        present = {log.address.lower() for log in logs}
        return any(bloom & mask == mask for token, mask in self.tokens.items() if token not in present)


async def _by_hash(endpoint: Endpoint, headers: Sequence[Header], query: LogQuery) -> list[list[RawLog] | None]:
    calls: list[Call] = [
        ("eth_getLogs", [query.filter | {"blockHash": "0x" + header.hash.hex()}]) for header in headers
    ]
    return await endpoint.batch(list[RawLog], calls)


async def _by_range(endpoint: Endpoint, headers: Sequence[Header], query: LogQuery) -> list[list[RawLog] | None]:
    """One call, or several where the node takes less; the endpoint remembers how much it takes."""
    answers: list[list[RawLog] | None] = []
    first, last = headers[0].number, headers[-1].number
    while first <= last:
        upto = min(last, first + endpoint.log_range_blocks.value - 1)
        bounds = {"fromBlock": hex(first), "toBlock": hex(upto)}
        try:
            answers.append(await endpoint.call(list[RawLog], "eth_getLogs", query.filter | bounds))
        except RangeTooWideError as error:
            suggested = error.suggested[1] - error.suggested[0] + 1 if error.suggested else None
            endpoint.log_range_blocks.value = min(endpoint.log_range_blocks.value, upto - first + 1)
            if not endpoint.log_range_blocks.shrink(to=suggested, most=error.max_blocks):
                raise
        else:
            if upto - first + 1 == endpoint.log_range_blocks.value:
                endpoint.log_range_blocks.grow()
            first = upto + 1
    return answers


async def _ask_again(
    endpoint: Endpoint,
    second: Endpoint | None,
    headers: Sequence[Header],
    blocks: Sequence[RawBlock],
    logs: list[RawLog],
    query: LogQuery,
) -> list[RawLog]:
    """Logs that a block's bloom promised and the first answer lacked; a second empty answer is believed.

    A busy block's bloom promises an absent token a third of the time, so this is no error, and one batch for all.
    """
    by_block: dict[str, list[RawLog]] = {}
    for log in logs:
        by_block.setdefault(log.blockHash, []).append(log)
    doubtful = [
        header
        for header, block in zip(headers, blocks, strict=True)
        if query.missing(block, by_block.get(block.hash, ()))
    ]
    if not doubtful:
        return []
    hashes = [hex0x(header.hash) for header in doubtful]
    try:
        answers = await _by_hash(second or endpoint, doubtful, query)
    except NodeError:
        if second is None:
            raise
        answers = await _by_hash(endpoint, doubtful, query)
    known = {(log.blockHash, log.logIndex) for block_hash in hashes for log in by_block.get(block_hash, ())}
    return [log for log in query.checked(answers, doubtful) if (log.blockHash, log.logIndex) not in known]

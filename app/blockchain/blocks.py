"""Fetches runs of blocks with their transfers, and believes only what fits together."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from app.blockchain.errors import InvalidAnswerError, NodeBehindError
from app.blockchain.headers import Header, read_header
from app.blockchain.logs import fetch_logs
from app.blockchain.native import fetch_internal
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.transfers import ObservedTransfer, from_log, from_transaction
from app.blockchain.wire import RawBlock, RawLog, to_bytes, to_int
from app.core.evm import hex0x


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive linked blocks with the logs of the watched tokens; nothing is matched yet."""

    headers: tuple[Header, ...]
    _blocks: tuple[RawBlock, ...]
    _logs: tuple[RawLog, ...]
    _internal: tuple[ObservedTransfer, ...] = ()

    async def internal_of(self, endpoint: Endpoint, header: Header) -> list[ObservedTransfer]:
        """Value moved inside the transactions of one block of the run. Raises NodeError."""
        index = self.headers.index(header)
        return await fetch_internal(endpoint, [header], [self._blocks[index]])

    def recipients(self) -> set[bytes]:
        """Every address that a top-level value transfer or a watched token's transfer reached."""
        native = {tx.to for block in self._blocks for tx in block.transactions if tx.to and tx.value != "0x0"}
        tokens = {log.topics[2] for log in self._logs}  # as text: many come more than once
        found = {to_bytes(address) for address in native}
        found.update(to_bytes(topic)[12:] for topic in tokens)
        found.update(each.recipient for each in self._internal)
        return found

    def transfers_to(self, addresses: Collection[bytes]) -> list[ObservedTransfer]:
        """Transfers to `addresses` in chain order; native ones are not yet known to have succeeded."""
        by_hash = {hex0x(header.hash): header for header in self.headers}
        wanted = {hex0x(address) for address in addresses}
        found = [
            from_log(log, by_hash[log.blockHash])
            for log in self._logs
            if "0x" + log.topics[2][26:].lower() in wanted  # the last 20 of its 32 bytes
        ]
        found = [transfer for transfer in found if transfer.amount_units > 0]
        for header, block in zip(self.headers, self._blocks, strict=True):
            found += [
                from_transaction(tx, header)
                for tx in block.transactions
                if tx.to and tx.value != "0x0" and tx.to.lower() in wanted
            ]
        found += [transfer for transfer in self._internal if transfer.recipient in addresses]
        return sorted(found, key=lambda t: (t.block.number, t.tx_index, t.log_index if t.log_index is not None else -1))


async def fetch_run(
    endpoint: Endpoint,
    first: int,
    last: int,
    tokens: Collection[bytes],
    by_range: bool,
    second: Endpoint | None = None,
    trace: bool = False,
) -> BlockRun:
    """Blocks `first` to `last` with the watched tokens' transfer logs.

    `by_range` asks for the logs in one call (finalized blocks); otherwise by block hash, because a lagging node
    answers a range query with a silent empty list, and a query by an unknown hash with an error. Blocks whose bloom
    promises logs that did not come are asked for again, of `second` if there is one. `trace` adds value moved inside
    transactions.

    Raises NodeBehindError when a block is missing, InvalidAnswerError when blocks or logs do not fit together.
    """
    calls: list[Call] = [("eth_getBlockByNumber", [hex(number), True]) for number in range(first, last + 1)]
    raws = await endpoint.batch(RawBlock, calls)
    blocks = []
    for number, raw in zip(range(first, last + 1), raws, strict=True):
        if raw is None:
            raise NodeBehindError(f"the node has no block {number} yet")
        if to_int(raw.number) != number:
            raise InvalidAnswerError(f"asked for block {number}, got {to_int(raw.number)}")
        if any(tx.blockHash != raw.hash for tx in raw.transactions):
            raise InvalidAnswerError(f"block {number} holds a transaction of another block")
        blocks.append(raw)
    headers = tuple(read_header(raw) for raw in blocks)
    for parent, child in pairwise(headers):
        if child.parent_hash != parent.hash:
            raise NodeBehindError(f"block {child.number} is not the child of {parent.number}: the chain moved")
    logs = await fetch_logs(endpoint, second, headers, blocks, tokens, by_range) if tokens else []
    internal = await fetch_internal(endpoint, headers, blocks) if trace else []
    return BlockRun(headers, tuple(blocks), tuple(logs), tuple(internal))

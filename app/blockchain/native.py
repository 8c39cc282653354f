"""Native coin that moves inside transactions, by traces."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from app.blockchain.errors import BlockUnknownError, FatalError, InvalidAnswerError
from app.blockchain.headers import Header
from app.blockchain.rpc import Call, Endpoint
from app.blockchain.transfers import ObservedTransfer
from app.blockchain.wire import RawBlock, TraceMethod, to_bytes, to_int
from app.core.evm import NATIVE_ASSET


class RawFrame(msgspec.Struct):
    """A frame of geth's callTracer."""

    type: str
    from_: str = msgspec.field(name="from")
    to: str | None = None
    value: str | None = None
    error: str | None = None
    calls: list["RawFrame"] = []


class RawTxTrace(msgspec.Struct):
    result: RawFrame | None = None
    error: str | None = None
    txHash: str | None = None


class RawAction(msgspec.Struct):
    """What a Parity-style trace did; a self-destruct has its own words for it."""

    from_: str | None = msgspec.field(default=None, name="from")
    to: str | None = None
    value: str | None = None
    callType: str | None = None
    address: str | None = None
    refundAddress: str | None = None
    balance: str | None = None


class RawTrace(msgspec.Struct):
    action: RawAction
    type: str
    blockHash: str
    traceAddress: list[int] = []
    transactionPosition: int | None = None
    transactionHash: str | None = None
    error: str | None = None


async def probe_trace(endpoint: Endpoint, header: Header) -> bool:
    """Whether the node offers one of the two trace methods; the endpoint remembers which.

    Raises NodeError, BlockUnknownError when it has one but not the block: a chain must not stop for that.
    """
    calls: tuple[tuple[TraceMethod, list[Any]], ...] = (
        ("debug_traceBlockByHash", ["0x" + header.hash.hex(), {"tracer": "callTracer"}]),
        ("trace_block", [hex(header.number)]),
    )
    without_block = False
    for method, params in calls:
        try:
            answer = await endpoint.call(list[Any], method, *params)
        except FatalError:  # the method is missing, or switched off
            continue
        if answer is not None:
            endpoint.trace_method = method
            return True
        without_block = True
    if without_block:
        raise BlockUnknownError(f"no traces of block {header.number}")
    return False


async def fetch_internal(
    endpoint: Endpoint, headers: Sequence[Header], blocks: Sequence[RawBlock]
) -> list[ObservedTransfer]:
    """Value moved inside transactions; top-level value is not repeated here.

    `position` is `trace:` and how many such transfers the same transaction made to the recipient before it. Its path
    would not do: nodes of one chain leave out different frames (precompiles), and what two of them tell must be one.

    Failed frames and their children pay nothing. Raises NodeError, InvalidAnswerError when traces and transactions of
    a block are not equally many, FatalError when the endpoint cannot trace.
    """
    if endpoint.trace_method is None and not (headers and await probe_trace(endpoint, headers[-1])):
        raise FatalError("the node offers neither debug_traceBlockByHash nor trace_block")
    method = endpoint.trace_method or "trace_block"
    busy = [(header, block) for header, block in zip(headers, blocks, strict=True) if block.transactions]
    if method == "debug_traceBlockByHash":
        calls: list[Call] = [(method, ["0x" + header.hash.hex(), {"tracer": "callTracer"}]) for header, _ in busy]
        answers = await endpoint.batch(list[RawTxTrace], calls)
        return [
            transfer
            for (header, block), traces in zip(busy, answers, strict=True)
            for transfer in _from_frames(header, block, traces)
        ]
    calls = [(method, [hex(header.number)]) for header, _ in busy]
    parity = await endpoint.batch(list[RawTrace], calls)
    return [
        transfer
        for (header, block), traces in zip(busy, parity, strict=True)
        for transfer in _from_traces(header, block, traces)
    ]


def _from_frames(header: Header, block: RawBlock, traces: list[RawTxTrace] | None) -> Iterator[ObservedTransfer]:
    if traces is None or len(traces) != len(block.transactions):
        raise InvalidAnswerError(
            f"block {header.number} has {len(block.transactions)} transactions, not so many traces"
        )
    nth: Counter[tuple[str, str]] = Counter()
    for tx, trace in zip(block.transactions, traces, strict=True):
        if trace.txHash is not None and trace.txHash != tx.hash:
            raise InvalidAnswerError(f"block {header.number} has traces of another transaction")
        if trace.result is None:
            raise InvalidAnswerError(f"block {header.number}: a transaction was not traced: {trace.error}")
        for frame in _paid_frames(trace.result):
            place = (tx.hash, to_int(tx.transactionIndex))
            yield _internal(header, place, nth, frame.from_, frame.to or "", frame.value or "0x0")


def _paid_frames(top: RawFrame) -> Iterator[RawFrame]:
    """Frames below `top`, which is the transaction itself, in the order of their start. Anybody can nest 1,024."""
    waiting = [top]
    while waiting:
        frame = waiting.pop()
        if frame.error is not None:
            continue
        # DELEGATECALL and CALLCODE carry a value that does not move.
        moves = frame.type in ("CALL", "CREATE", "CREATE2", "SELFDESTRUCT")
        if frame is not top and moves and frame.to and to_int(frame.value or "0x0"):
            yield frame
        waiting += reversed(frame.calls)


def _from_traces(header: Header, block: RawBlock, traces: list[RawTrace] | None) -> Iterator[ObservedTransfer]:
    if traces is None or {t.transactionHash for t in traces if t.transactionHash} != {
        t.hash for t in block.transactions
    }:
        raise InvalidAnswerError(f"block {header.number} has transactions that were not traced")
    failed = {(t.transactionHash, tuple(t.traceAddress)) for t in traces if t.error is not None}
    nth: Counter[tuple[str, str]] = Counter()
    for trace in sorted(traces, key=lambda t: (t.transactionPosition or 0, t.traceAddress)):
        path = tuple(trace.traceAddress)
        if to_bytes(trace.blockHash) != header.hash:
            raise InvalidAnswerError(f"block {header.number} has a trace of another block")
        if trace.transactionHash is None or trace.transactionPosition is None or not path:
            continue  # a block reward, or the transaction itself
        if any((trace.transactionHash, path[:depth]) in failed for depth in range(len(path) + 1)):
            continue
        action = trace.action
        if trace.type == "suicide":
            sender, recipient, value = action.address, action.refundAddress, action.balance
        else:
            sender, recipient, value = action.from_, action.to, action.value
        moves = trace.type in ("suicide", "create") or action.callType == "call"
        if moves and sender and recipient and to_int(value or "0x0"):
            place = (trace.transactionHash, trace.transactionPosition)
            yield _internal(header, place, nth, sender, recipient, value or "0x0")


def _internal(
    header: Header, place: tuple[str, int], nth: Counter[tuple[str, str]], sender: str, recipient: str, value: str
) -> ObservedTransfer:
    """The next transfer of the transaction at `place` to `recipient`; `nth` counts them."""
    tx_hash, tx_index = place
    key = (tx_hash, recipient.lower())
    nth[key] += 1
    return ObservedTransfer(
        block=header,
        tx_index=tx_index,
        position=f"trace:{nth[key] - 1}",
        recipient=to_bytes(recipient),
        asset=NATIVE_ASSET,
        amount_units=to_int(value),
        sender=to_bytes(sender),
        tx_hash=to_bytes(tx_hash),
        log_index=None,
    )

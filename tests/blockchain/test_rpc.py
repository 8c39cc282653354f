"""Goal: whatever an endpoint answers, a call ends with a complete answer or a typed error, after few requests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

from app.blockchain.errors import (
    InvalidAnswerError,
    MethodMissingError,
    NodeError,
    RangeTooWideError,
    RateLimitedError,
    TransientError,
)
from app.blockchain.headers import Header
from app.blockchain.logs import fetch_logs
from app.blockchain.rpc import AdaptiveSize, Endpoint
from app.blockchain.wire import RawBlock, RawHeader
from app.core import limits
from tests.support.exposition import counted
from tests.support.node import ScriptedNode, answered, failure, result

Script = Callable[[Any], web.Response]
TOKEN = bytes(19) + b"\x07"


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    async with ScriptedNode(lambda payload: answered(payload, lambda _: "0x1")) as it:
        yield it


@pytest.fixture
async def endpoint(node: ScriptedNode) -> AsyncIterator[Endpoint]:
    it = Endpoint(node.url)
    yield it
    await it.close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts; nobody waits really."""
    slept: list[float] = []
    original = asyncio.sleep

    async def sleep(seconds: float, *_: Any) -> None:
        if seconds:
            slept.append(seconds)
        await original(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return slept


def in_turn(*scripts: Script) -> Script:
    """Each request gets the next script's answer; the last one's for ever."""
    waiting: Iterator[Script] = iter(scripts)
    current = [scripts[0]]

    def script(payload: Any) -> web.Response:
        current[0] = next(waiting, current[0])
        return current[0](payload)

    return script


def fine(payload: Any) -> web.Response:
    """Each call's own parameter."""
    return answered(payload, lambda call: call["params"][0] if call["params"] else "0x1")


def status(code: int, body: str = "", **headers: str) -> Script:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: web.Response(status=code, text=body, headers=named)


def text(body: str) -> Script:
    return lambda _: web.Response(text=body, content_type="application/json")


def numbered(count: int) -> list[tuple[str, list[Any]]]:
    return [("eth_getThing", [hex(index)]) for index in range(count)]


def expected(count: int) -> list[str]:
    return [hex(index) for index in range(count)]


# --- attempts


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param(status(500), TransientError, id="500"),
        pytest.param(status(503, "<html>busy</html>"), TransientError, id="503 page"),
        pytest.param(status(429), RateLimitedError, id="429"),
        pytest.param(text('{"jsonrpc":"2.0","id":0,"resu'), TransientError, id="truncated"),
        pytest.param(text(""), TransientError, id="empty"),
        pytest.param(text('{"jsonrpc":"2.0","id":0,"result":{"a":1}}'), InvalidAnswerError, id="object for string"),
        pytest.param(text('{"jsonrpc":"2.0","id":0,"result":7}'), InvalidAnswerError, id="number for string"),
        pytest.param(text("[]"), InvalidAnswerError, id="list for an object"),
        pytest.param(text('{"jsonrpc":"2.0","id":5,"result":"0x1"}'), InvalidAnswerError, id="another id"),
        pytest.param(text('{"jsonrpc":"2.0","result":"0x1"}'), InvalidAnswerError, id="no id"),
        pytest.param(text("[" * 100_000), InvalidAnswerError, id="nested"),
        pytest.param(text('{"id":0,"more":' + "[" * 100_000), InvalidAnswerError, id="nested elsewhere"),
    ],
)
async def test_what_may_pass_is_tried_three_times_and_no_more(
    node: ScriptedNode, endpoint: Endpoint, pauses: list[float], script: Script, error: type[NodeError]
) -> None:
    node.script = script
    with pytest.raises(error):
        await endpoint.call(str, "eth_chainId")
    assert len(node.bodies) == limits.RPC_ATTEMPTS
    assert len(pauses) == limits.RPC_ATTEMPTS - 1
    assert all(limits.RPC_BACKOFF_MIN_S <= pause <= limits.RPC_BACKOFF_MAX_S for pause in pauses)


async def test_what_passes_is_answered(node: ScriptedNode, endpoint: Endpoint, pauses: list[float]) -> None:
    node.script = in_turn(status(502), text('{"jsonrpc"'), fine)
    assert await endpoint.call(str, "eth_chainId") == "0x1"
    assert len(node.bodies) == 3
    assert pauses[1] > pauses[0] / 2  # exponential, but for the jitter


async def test_what_does_not_pass_is_asked_once(node: ScriptedNode, endpoint: Endpoint, pauses: list[float]) -> None:
    node.script = lambda call: web.json_response(failure(call, -32601, "the method eth_chainId does not exist"))
    with pytest.raises(MethodMissingError):
        await endpoint.call(str, "eth_chainId")
    assert len(node.bodies) == 1
    assert pauses == []


async def test_a_node_that_hangs_is_asked_once(
    node: ScriptedNode, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: Any) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(limits, "RPC_TIMEOUT_S", 2.0)  # long enough to arrive on a busy machine
    monkeypatch.setattr(node, "respond", hang)
    short = Endpoint(node.url)
    with pytest.raises(TransientError, match="no answer in"):
        await short.call(str, "eth_chainId")
    assert len(node.bodies) == 1
    await short.close()


async def test_a_refused_connection_names_no_url(pauses: list[float]) -> None:
    dead = Endpoint("http://127.0.0.1:9/v2/secret-key")
    with pytest.raises(TransientError) as caught:
        await dead.call(str, "eth_chainId")
    assert "secret-key" not in str(caught.value)
    assert "secret-key" not in dead.name
    assert len(pauses) == limits.RPC_ATTEMPTS - 1
    await dead.close()


async def test_null_is_an_answer(node: ScriptedNode, endpoint: Endpoint) -> None:
    node.script = lambda call: web.json_response(result(call, None))
    assert await endpoint.call(RawHeader, "eth_getBlockByNumber", "0x1", False) is None


# --- Retry-After


async def test_a_short_retry_after_is_waited_for(node: ScriptedNode, endpoint: Endpoint, pauses: list[float]) -> None:
    node.script = in_turn(status(429, Retry_After="3"), fine)
    assert await endpoint.call(str, "eth_chainId") == "0x1"
    assert len(pauses) == 1
    assert pauses[0] >= 3


@pytest.mark.parametrize("code", [429, 503])
@pytest.mark.parametrize("batch", [False, True], ids=["call", "batch"])
async def test_a_long_retry_after_is_left_to_the_breaker(
    node: ScriptedNode, endpoint: Endpoint, pauses: list[float], code: int, batch: bool
) -> None:
    node.script = status(code, Retry_After="60")
    with pytest.raises(RateLimitedError) as caught:
        await (endpoint.batch(str, numbered(8)) if batch else endpoint.call(str, "eth_chainId"))
    assert caught.value.retry_after_s == 60
    assert len(node.bodies) == 1
    assert pauses == []


# --- bodies that are not 200


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param(
            status(400, '{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"method not found"}}'),
            MethodMissingError,
            id="400",
        ),
        pytest.param(
            status(400, '{"jsonrpc":"2.0","id":0,"error":{"code":-32602,"message":"exceeds max block range 50"}}'),
            RangeTooWideError,
            id="400 range",
        ),
        pytest.param(
            status(429, '{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"request limit reached"}}'),
            RateLimitedError,
            id="429",
        ),
        pytest.param(status(402, "payment required"), RateLimitedError, id="402"),
        pytest.param(status(500, "[not json"), TransientError, id="500 broken"),
    ],
)
async def test_the_reason_in_the_body_of_an_http_error_is_read(
    node: ScriptedNode, endpoint: Endpoint, pauses: list[float], script: Script, error: type[NodeError]
) -> None:
    node.script = script
    with pytest.raises(error):
        await endpoint.call(str, "eth_getLogs")


# --- batches


async def test_answers_may_come_in_any_order(node: ScriptedNode, endpoint: Endpoint) -> None:
    node.script = lambda calls: web.json_response([result(call, call["params"][0]) for call in reversed(calls)])
    assert await endpoint.batch(str, numbered(9)) == expected(9)
    assert len(node.bodies) == 1


async def test_long_batches_are_cut(node: ScriptedNode, endpoint: Endpoint) -> None:
    node.script = fine
    count = limits.RPC_BATCH_CALLS * 2 + 3
    assert await endpoint.batch(str, numbered(count)) == expected(count)
    assert [len(body) for body in node.bodies] == [limits.RPC_BATCH_CALLS, limits.RPC_BATCH_CALLS, 3]


async def test_a_batch_of_nothing_asks_nothing(node: ScriptedNode, endpoint: Endpoint) -> None:
    assert await endpoint.batch(str, []) == []
    assert node.bodies == []


def at_most(count: int) -> Script:
    """A provider that answers only the first calls of a batch."""
    return lambda calls: web.json_response([result(call, call["params"][0]) for call in calls[:count]])


async def test_a_batch_answered_in_part_is_halved_until_it_is_complete(
    node: ScriptedNode, endpoint: Endpoint, pauses: list[float]
) -> None:
    node.script = at_most(10)
    assert await endpoint.batch(str, numbered(40)) == expected(40)
    assert next(len(body) for body in node.bodies if len(body) <= 10) == 10
    assert endpoint.batch_calls.value <= 13  # and that is remembered, but for what it grew since
    assert len([body for body in node.bodies if len(body) == 40]) == limits.RPC_ATTEMPTS


async def test_a_batch_that_is_refused_follows_the_nodes_limit_and_never_tries_more_again(
    node: ScriptedNode, endpoint: Endpoint
) -> None:
    def refusing(calls: Any) -> web.Response:
        if len(calls) > 20:
            return web.json_response(failure({"id": None}, -32600, "batch limit 20 exceeded"))
        return fine(calls)

    node.script = refusing
    assert await endpoint.batch(str, numbered(30)) == expected(30)
    taken = endpoint.batch_calls.value
    assert taken <= 20
    node.script = fine
    assert await endpoint.batch(str, numbered(500)) == expected(500)
    assert endpoint.batch_calls.value == 20


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([0, 1, 1, 3], id="one twice, one missing"),
        pytest.param([0, 1, 2, 3, 3], id="one twice"),
        pytest.param([0, 1, 2], id="one missing"),
        pytest.param([0, 1, 2, 9], id="a stranger"),
        pytest.param([0, 1, 2, "3"], id="a text for a number"),
        pytest.param([0, 1, 2, None], id="none"),
    ],
)
async def test_a_batch_with_wrong_ids_is_refused(
    node: ScriptedNode, endpoint: Endpoint, pauses: list[float], ids: list[Any]
) -> None:
    def answer(calls: Any) -> web.Response:
        wanted = ids if len(calls) == 4 else [77] * len(calls)
        return web.json_response([{"jsonrpc": "2.0", "id": id_, "result": "0x1"} for id_ in wanted])

    node.script = answer
    with pytest.raises(InvalidAnswerError, match="answers to"):
        await endpoint.batch(str, numbered(4))
    assert len(node.bodies) <= limits.RPC_ATTEMPTS * 3  # of four, of two and of one


async def test_one_failed_call_fails_the_batch_with_its_own_reason(
    node: ScriptedNode, endpoint: Endpoint, pauses: list[float]
) -> None:
    node.script = lambda calls: web.json_response(
        [result(call, "0x1") for call in calls[:-1]] + [failure(calls[-1], -32601, "method not found")]
    )
    with pytest.raises(MethodMissingError, match="eth_getThing"):
        await endpoint.batch(str, numbered(3))
    assert len(node.bodies) == 1


# --- sizes


def test_a_size_halves_takes_what_was_named_and_grows() -> None:
    size = AdaptiveSize(100)
    assert size.shrink()
    assert size.value == 50
    assert size.shrink(7)
    assert size.value == 7
    assert size.shrink(7)  # the very size that was refused is no help
    assert size.value < 7
    while size.value > 1:
        assert size.shrink()
    assert not size.shrink()
    for _ in range(50):
        size.grow()
    assert size.value == 100


def chain_of(count: int) -> tuple[list[Header], list[RawBlock]]:
    headers = [Header(number, bytes([number]) * 32, bytes([number - 1]) * 32, number) for number in range(1, count + 1)]
    blocks = [
        RawBlock(hex(h.number), "0x" + h.hash.hex(), "0x" + h.parent_hash.hex(), hex(h.time), []) for h in headers
    ]
    return headers, blocks


def limited_to(blocks: int, message: str) -> Script:
    def script(call: Any) -> web.Response:
        query = call["params"][0]
        first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        if last - first + 1 > blocks:
            suggested = message.format(first=hex(first), last=hex(first + blocks - 1), blocks=blocks)
            return web.json_response(failure(call, -32602, suggested))
        return web.json_response(result(call, []))

    return script


def asked(node: ScriptedNode) -> list[tuple[int, int]]:
    queries = [call["params"][0] for call in node.calls("eth_getLogs")]
    return [(int(query["fromBlock"], 16), int(query["toBlock"], 16)) for query in queries]


@pytest.mark.parametrize(
    ("message", "widest"),
    [
        pytest.param(
            "Log response size exceeded. this block range should work: [{first}, {last}]", 100, id="suggested"
        ),
        pytest.param("query exceeds max block range {blocks}", 30, id="limit"),
    ],
)
async def test_a_log_range_follows_the_nodes_suggestion_and_grows_again_up_to_its_limit(
    node: ScriptedNode, endpoint: Endpoint, message: str, widest: int
) -> None:
    headers, blocks = chain_of(100)
    node.script = limited_to(30, message)
    assert await fetch_logs(endpoint, None, headers, blocks, [TOKEN], by_range=True) == []
    ranges = asked(node)
    assert ranges[:2] == [(1, 100), (1, 30)]
    covered = [number for first, last in ranges if last - first < 30 for number in range(first, last + 1)]
    assert covered == list(range(1, 101))
    assert endpoint.log_range_blocks.value < 60

    node.script = limited_to(1_000, message)
    node.bodies.clear()
    for _ in range(12):
        await fetch_logs(endpoint, None, headers, blocks, [TOKEN], by_range=True)
    assert max(last - first + 1 for first, last in asked(node)) == widest


async def test_a_log_range_without_a_hint_is_halved(node: ScriptedNode, endpoint: Endpoint) -> None:
    headers, blocks = chain_of(64)
    node.script = limited_to(20, "query returned more than 10000 results")
    assert await fetch_logs(endpoint, None, headers, blocks, [TOKEN], by_range=True) == []
    assert asked(node)[:3] == [(1, 64), (1, 32), (1, 16)]


async def test_a_node_that_refuses_even_one_block_is_an_error(node: ScriptedNode, endpoint: Endpoint) -> None:
    headers, blocks = chain_of(64)
    node.script = limited_to(0, "query returned more than 10000 results")
    with pytest.raises(RangeTooWideError):
        await fetch_logs(endpoint, None, headers, blocks, [TOKEN], by_range=True)
    assert len(node.bodies) == 7


# --- what is counted


def requests_counted(endpoint: Endpoint, outcome: str, method: str = "eth_getThing") -> float:
    labels = {"chain": endpoint.chain, "endpoint": endpoint.label, "method": method, "outcome": outcome}
    return counted("paywatch_rpc_request_seconds_count", **labels)


async def test_each_request_is_counted_by_what_came_of_it_and_each_call_as_one(
    node: ScriptedNode, pauses: list[float]
) -> None:
    """The URL's key shows nowhere; a batch is one request and as many calls."""
    endpoint = Endpoint(f"{node.url}/v2/secret-key", "counted", 1)
    assert endpoint.label == f"#1 {node.url}"
    node.script = in_turn(status(500), status(429), fine)
    assert await endpoint.batch(str, numbered(7)) == expected(7)
    outcomes = ("transient", "rate_limited", "ok")
    assert [requests_counted(endpoint, outcome) for outcome in outcomes] == [1, 1, 1]
    calls = {"chain": "counted", "endpoint": endpoint.label, "method": "eth_getThing"}
    assert counted("paywatch_rpc_calls_total", **calls) == 21
    node.script = lambda payload: answered(payload, lambda _: 7)
    with pytest.raises(InvalidAnswerError):
        await endpoint.call(str, "eth_getThing")
    assert requests_counted(endpoint, "invalid_answer") == limits.RPC_ATTEMPTS
    await endpoint.close()


async def test_a_node_that_hangs_is_a_timeout(node: ScriptedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RPC_TIMEOUT_S", 0.05)
    endpoint = Endpoint(node.url, "hanging")

    async def hang(_: Any) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(node, "respond", hang)
    with pytest.raises(TransientError):
        await endpoint.call(str, "eth_getThing")
    assert requests_counted(endpoint, "timeout") == 1
    await endpoint.close()

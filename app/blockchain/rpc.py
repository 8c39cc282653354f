"""One endpoint: typed calls, complete batches, bounded retries, sizes that adapt to what the node takes."""

import time
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter
from web3 import AsyncWeb3

from app.blockchain.errors import (
    BatchTooLargeError,
    InvalidAnswerError,
    NodeError,
    RangeTooWideError,
    RateLimitedError,
    TransientError,
    from_rpc,
)
from app.blockchain.w3 import NodeProvider, encode
from app.blockchain.wire import TraceMethod
from app.core import limits, metrics
from app.core.logger import redact_url

T = TypeVar("T")
Call = tuple[str, list[Any]]


class RpcError(msgspec.Struct):
    code: int
    message: str = ""
    data: Any = None


class RpcAnswer(msgspec.Struct, Generic[T]):
    id: int | str | None = None
    result: T | None = None
    error: RpcError | None = None


class AdaptiveSize:
    """A batch or range size: halved when it was too much, grown by a quarter when it was taken."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.value = largest

    def shrink(self, to: int | None = None, most: int | None = None) -> bool:
        """Make it smaller: by half, or to the size that the node named. False when it cannot be any smaller.

        `most` is the node's limit, which is never tried again; `to` is what it says would do this time.
        """
        if self.value == 1:
            return False
        named = most if most is not None else to
        self.value = max(1, named if named is not None and named < self.value else self.value // 2)
        if most is not None:
            self.largest = min(self.largest, max(1, most))
        return True

    def grow(self) -> None:
        self.value = min(self.largest, self.value + self.value // 4 + 1)


class Endpoint:
    """A node by its URL. `name` is its scheme and host: RPC URLs hold keys and never reach a log.

    `chain` and `label` are what metrics call it: its place among the chain's endpoints, and its name.
    """

    def __init__(self, url: str, chain: str = "", index: int = 0) -> None:
        self.provider = NodeProvider(url)
        self.w3: AsyncWeb3[NodeProvider] = AsyncWeb3(self.provider)
        self.name = redact_url(url)
        self.chain = chain
        self.label = f"#{index} {self.name}"
        self.batch_calls = AdaptiveSize(limits.RPC_BATCH_CALLS)
        self.log_range_blocks = AdaptiveSize(limits.LOG_RANGE_BLOCKS)
        self.trace_method: TraceMethod | None = None  # found by a probe

    async def call(self, result_type: type[T], method: str, *params: Any) -> T | None:
        """One call; None is the node's `null`. Raises NodeError."""
        [result] = await self._retrying(result_type, [(method, list(params))], batch=False)
        return result

    async def batch(self, result_type: type[T], calls: list[Call]) -> list[T | None]:
        """Answers in the order of `calls`, in as few HTTP requests as the node allows. Raises NodeError."""
        results: list[T | None] = []
        while len(results) < len(calls):
            chunk = calls[len(results) : len(results) + self.batch_calls.value]
            try:
                results += await self._retrying(result_type, chunk, batch=True)
            except (BatchTooLargeError, RangeTooWideError, InvalidAnswerError, RateLimitedError) as error:
                # Too many calls at once are answered with an error, with fewer answers or with a rate limit.
                self.batch_calls.value = min(self.batch_calls.value, len(chunk))
                shrunk = self.batch_calls.shrink(most=getattr(error, "max_calls", None))
                if not shrunk or isinstance(error, RateLimitedError):
                    raise  # a node that wants fewer calls gets them in the next step, not more of them in this one
            else:
                if len(chunk) == self.batch_calls.value:
                    self.batch_calls.grow()
        return results

    async def _retrying(self, result_type: type[T], calls: list[Call], batch: bool) -> list[T | None]:
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(limits.RPC_ATTEMPTS),
            wait=_wait_s,
            retry=retry_if_exception(_worth_retrying),
            reraise=True,
        ):
            with attempt:
                return await self._ask(result_type, calls, batch)
        raise AssertionError("tenacity either returns or raises")

    async def _ask(self, result_type: type[T], calls: list[Call], batch: bool) -> list[T | None]:
        method = calls[0][0]
        began, outcome = time.perf_counter(), "cancelled"
        try:
            body = await self.provider.post(method, encode(calls, batch))
            answers = _parse(result_type, calls, body, batch)
            outcome = "ok"
        except NodeError as error:
            outcome = error.outcome
            raise
        finally:
            took_s = time.perf_counter() - began
            metrics.RPC_REQUEST_SECONDS.labels(self.chain, self.label, method, outcome).observe(took_s)
            metrics.RPC_CALLS.labels(self.chain, self.label, method).inc(len(calls))
        return answers

    async def close(self) -> None:
        await self.provider.disconnect()


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, NodeError) and error.retryable and not _wants_rest(error)


def _wants_rest(error: NodeError) -> bool:
    """A node that wants us to stay away for longer than a step lasts is left to the breaker."""
    return isinstance(error, RateLimitedError) and (error.retry_after_s or 0) > limits.RPC_BACKOFF_MAX_S


def _wait_s(state: RetryCallState) -> float:
    backoff = wait_exponential_jitter(
        multiplier=limits.RPC_BACKOFF_MIN_S, max=limits.RPC_BACKOFF_MAX_S, jitter=limits.RPC_BACKOFF_MIN_S
    )
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, RateLimitedError) else None
    return max(backoff(state), asked or 0)


@cache
def _decoder(answer_type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(answer_type)


def _parse(result_type: type[T], calls: list[Call], body: bytes, batch: bool) -> list[T | None]:
    """Answers of a body, checked to be as many as the calls and to carry their ids."""
    single: Any = RpcAnswer[result_type]  # type: ignore[valid-type]
    method = calls[0][0]
    try:
        if batch and body[:1] == b"[":
            answers = _decoder(list[single]).decode(body)
        else:
            answers = [_decoder(single).decode(body)]
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidAnswerError(f"{method}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TransientError(f"{method}: not JSON: {error}") from error
    for answer in answers:
        if answer.error is not None:
            failed = calls[answer.id][0] if isinstance(answer.id, int) and 0 <= answer.id < len(calls) else method
            raise from_rpc(answer.error.code, answer.error.message, failed, answer.error.data)
    by_id = {answer.id: answer.result for answer in answers}
    if len(answers) != len(calls) or set(by_id) != set(range(len(calls))):
        raise InvalidAnswerError(f"{method}: {len(answers)} answers to {len(calls)} calls")
    return [by_id[index] for index in range(len(calls))]

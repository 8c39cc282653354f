"""What can go wrong with a node, by what the caller should do about it, and the one table that tells them apart."""

import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from app.core.clock import utc_now
from app.core.logger import REDACTED

RETRY_AFTER_MAX_S: Final = 600.0  # a provider that asks for a day must not take an endpoint away for one
_READ_MAX: Final = 2_000  # characters; the reason stands at the beginning, the rest is a stack trace
_SHOWN_MAX: Final = 300


class NodeError(Exception):
    """Root of all that a node, or the way to it, can do to us. Its message holds no URL and no key.

    `outcome` is its name in the metrics.
    """

    retryable = False
    outcome = "failed"


class TransientError(NodeError):
    """Timeout, refused connection, 5xx, truncated answer: the same call may work in a moment."""

    retryable = True
    outcome = "transient"


class RateLimitedError(TransientError):
    """The provider asks for fewer calls. `retry_after_s`: for how long, at most RETRY_AFTER_MAX_S, if it says so."""

    outcome = "rate_limited"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = min(retry_after_s, RETRY_AFTER_MAX_S) if retry_after_s and retry_after_s > 0 else None

    retry_after_s: float | None = None


class RangeTooWideError(NodeError):
    """The range has too many blocks or results: ask for less.

    `suggested` is the (first, last) block of a range that should work, both included. It may be the very range that was
    refused (reth #23810), so only a narrower one helps. `max_blocks`: so many blocks in a range are always accepted.
    """

    outcome = "range_too_wide"

    def __init__(self, message: str, suggested: tuple[int, int] | None = None, max_blocks: int | None = None) -> None:
        super().__init__(message)
        self.suggested = suggested
        self.max_blocks = max_blocks

    suggested: tuple[int, int] | None = None
    max_blocks: int | None = None


class NodeBehindError(NodeError):
    """The node has not seen the block yet: wait or ask another one, never narrow the range."""

    outcome = "behind"


class BlockUnknownError(NodeBehindError):
    """The node does not know a block of that hash, height or tag, or gave null for a height it should have."""

    outcome = "block_unknown"


class PrunedError(NodeError):
    """The node no longer has the state or the logs."""

    outcome = "pruned"


class InvalidAnswerError(NodeError):
    """The answer contradicts itself or the question; nothing of it is believed."""

    retryable = True
    outcome = "invalid_answer"


class FatalError(NodeError):
    """The node refuses the call for a reason that waiting does not change."""

    outcome = "refused"


class MethodMissingError(FatalError):
    """The node, or the plan it is on, does not have the method."""

    outcome = "method_missing"


class BatchTooLargeError(FatalError):
    """The batch has too many calls, or its answer too many bytes. `max_calls`: how many it takes, if it says so."""

    outcome = "batch_too_large"

    def __init__(self, message: str, max_calls: int | None = None) -> None:
        super().__init__(message)
        self.max_calls = max_calls


_N = r"(?P<n>\d[\d,]{0,14}k?)\b"  # 10000, 10,000 or 10k

# Real messages, read as "method: [HTTP status:] message [data]"; who says which, and where that was seen, stands in
# tests/blockchain/test_errors.py. The first match wins: what narrows a question comes before what only waits.
_TABLE: Final[tuple[tuple[type[NodeError], str], ...]] = (
    # A contract chooses the words of its revert: they must never be read as the node's.
    (FatalError, r"^\S*: (HTTP \d+: )?(error: )?(execution reverted|vm exception|vm execution error)"),
    (FatalError, r"\b(gas|nonce|underpriced|insufficient funds|already known)\b"),
    (MethodMissingError, r"\bmethod\b.{0,80}? not (found|exist|available|supported|enabled|allowed|whitelisted)"),
    (MethodMissingError, r"^\S*: (HTTP \d+: )?\w+_\w+ is not (available|supported|enabled)|method disabled"),
    (MethodMissingError, r"unsupported method|not included in your current plan|custom trace .*not found"),
    (NodeBehindError, r"(beyond|after|past) (the )?(current |latest |last )?(executed |accepted )?(head|block)\b"),
    (NodeBehindError, r"invalid block range|greater than latest|block height is \d+ but requested|a future epoch"),
    (NodeBehindError, r"still (syncing|in progress)|query unfinalized"),
    (PrunedError, r"missing ?trie ?node|\bprun(ed|ing)\b|archive|maximum proof window|is missing from the db"),
    (PrunedError, r"\b(state|receipts?)\b.{0,90}?(not available|unavailable)|no state|stateunavailable"),
    (PrunedError, r"unable to load historical|data before \S+ is not available|upstream lower height"),
    (BlockUnknownError, r"(unknown|find|header for) (block|header)|(block|header)\b.{0,90}? not found"),
    (BlockUnknownError, r"not currently canonical"),
    (BatchTooLargeError, rf"batch (limit|of more than) {_N}|batch too large|max batch size|methods in the batch"),
    (RangeTooWideError, rf"(limited to (an? )?(0 - )?|up to an? ){_N} (block|range)"),
    (RangeTooWideError, rf"(ranges over|at most|max is|maximum allowed is) {_N} blocks"),
    (RangeTooWideError, rf"\bmax(imum)? (block )?range( of)?[:= ]+{_N}"),
    (RangeTooWideError, rf"range .{{0,40}}exceeds (the |server )?limit( of|, narrow your filter:)? {_N}"),
    (RangeTooWideError, rf"range (limit|exceeds|greater than|.{{0,40}}allowed for your plan \(\d+ >) {_N}"),
    (RangeTooWideError, rf"(\(maximum|maximum is set to|requested blocks is|blocks distance:) {_N}"),
    (RangeTooWideError, r"block range|range (is )?too |range exceeds max"),
    (RangeTooWideError, r"returned more than|response size|too many (results|logs)|max results|exceeds limit of"),
    (RangeTooWideError, r"^eth_getLogs: (HTTP 413\b|.*(response too large|query time(d )?out))"),
    (BatchTooLargeError, r"^\S*: HTTP 413\b|response too large"),  # it was no log query, so it was the batch
    (RateLimitedError, r"^\S*: HTTP (402|429)\b|rate.?limit|rate exceeded|too many requests|request limit|\brps\b"),
    (RateLimitedError, r"credits limited|compute units|capacity|throughput|quota|(limit|count) (exceeded|reached)"),
    (TransientError, r"^\S*: HTTP (408|5\d\d)\b|time(d )?.?out|deadline exceeded|temporar|try again|\bretry"),
    (TransientError, r"unavailable|overloaded|no (backend|nodes|available upstreams)|cannot fulfill|handler crashed"),
    (TransientError, r"indexing is in progress"),
)
# Where the words say nothing: geth's revert, JSON-RPC 2.0, EIP-1474, EIP-1898, EIP-4444, and the providers' own.
_CODES: Final = {
    code: error
    for error, codes in (
        (TransientError, (-32603, -32002, -32055)),
        (RateLimitedError, (-32005, -32007, -32090, 429)),
        (RangeTooWideError, (-32062, -32614)),
        (PrunedError, (-32061, 4444)),
        (BlockUnknownError, (-32001, -39001)),
        (MethodMissingError, (-32601, -32004, -32075, -32604, -32612, -32613)),
    )
    for code in codes
}
_REVERTED: Final = 3  # geth's code of a revert, whatever the words

_FLAGS: Final = re.IGNORECASE | re.ASCII
_SUGGESTED: Final = re.compile(r"\[(0x[0-9a-f]{1,16}), ?(0x[0-9a-f]{1,16})\]|the range (\d{1,18})-(\d{1,18})\b", _FLAGS)
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(milli|ms|s|m|h)[a-z]*", _FLAGS)  # 10s, 5 seconds, 10m0s
_WAIT: Final = re.compile(rf"(?:retry|again) (?:in|after) ((?:{_TIME.pattern} ?){{1,4}})", _FLAGS)
_UNITS_S: Final = {"milli": 0.001, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_USED_UP: Final = re.compile(r"\bmonth|\bdaily|quota|HTTP 402", _FLAGS)
# URLs, with a scheme or without; what is called a key; what looks like a key and is no 0x hash.
_SECRETS: Final = re.compile(
    r"\b[a-z][a-z+]{1,20}://\S+|(?<![\w.-])[\w.-]+\.[a-z]{2,}/\S+|\b\w*(key|token|secret|password)[\"']?\s*[:=]\s*\S+"
    r"|(?<![\w-])(?!0x)(?=[\d-]*[a-z_])([\w-]{32,}|(?=[a-z_-]*\d)[\w-]{20,})",
    _FLAGS,
)


def from_rpc(code: int, message: str, method: str, data: Any = None) -> NodeError:
    """The typed error for a JSON-RPC error object (JSON-RPC 2.0 section 5.1); `data` as it was decoded."""
    return _typed(code, f"{method}: {_clean(message)} {_clean(_details(data))}".rstrip(), f" ({code})", None)


def from_http(status: int, body: str, method: str, retry_after: str | None = None) -> NodeError:
    """The typed error for an HTTP answer other than 200, with its Retry-After header (RFC 9110 section 10.2.3).

    A JSON-RPC error in the body says more than the status, the status more than a page for people.
    """
    code, message, data = _error_object(status, body)
    words = f"{method}: HTTP {status}: {_clean(message)} {_clean(_details(data))}".rstrip(" :")
    return _typed(code, words, f" ({code})" if code != status else "", _header_wait_s(retry_after))


def _typed(code: int, words: str, suffix: str, wait_s: float | None) -> NodeError:
    found = ((error, match) for error, pattern in _TABLE if (match := re.search(pattern, words, _FLAGS)))
    error, match = (FatalError, None) if code == _REVERTED else next(found, (_CODES.get(code, FatalError), None))
    shown = words[:_SHOWN_MAX] + suffix
    number = _number(match.groupdict().get("n")) if match else None
    if error is RangeTooWideError:
        return RangeTooWideError(shown, _suggested(words), number)
    if error is BatchTooLargeError:
        return BatchTooLargeError(shown, number)
    if error is RateLimitedError or (error is TransientError and wait_s):
        return RateLimitedError(shown, wait_s or _told_wait_s(words))
    return error(shown)


def _error_object(status: int, body: str) -> tuple[int, str, Any]:
    """Code, message and data of the JSON-RPC error in `body`; without one, the status and what text there is."""
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return status, "" if status >= 500 or body.lstrip()[:1] == "<" else body, None
    first = answer[0] if isinstance(answer, list) and answer else answer
    match first.get("error", first) if isinstance(first, dict) else first:
        case {"message": str(message), **rest}:
            code = rest.get("code")
            return code if isinstance(code, int) else status, message, rest.get("data")
        case str(message):
            return status, message, None
    return status, "", None


def _details(data: Any) -> str:
    """What providers say in `data` instead of the message, as words like the others' messages."""
    match data:
        case {"rate": {"backoff_seconds": int() | float() as wait_s}} | {"backoff_seconds": int() | float() as wait_s}:
            return f"retry in {max(0.0, min(wait_s, RETRY_AFTER_MAX_S))}s"
        case {"from": str(first), "to": str(last)}:
            return f"[{first}, {last}]"
        case dict():
            return " ".join(value[:_SHOWN_MAX] for value in data.values() if isinstance(value, str))
        case str():
            return data[:_SHOWN_MAX].partition("\n")[0]
    return ""


def _clean(text: str) -> str:
    return " ".join(_SECRETS.sub(REDACTED, text[:_READ_MAX]).split())


def _number(text: str | None) -> int | None:
    digits = (text or "0").replace(",", "").lower()
    return int(digits.removesuffix("k")) * (1_000 if digits.endswith("k") else 1) or None


def _suggested(words: str) -> tuple[int, int] | None:
    match = _SUGGESTED.search(words)
    if match is None:
        return None
    first, last = (int(bound, 0 if bound[:2] in ("0x", "0X") else 10) for bound in match.groups() if bound)
    return (first, last) if first <= last else None


def _told_wait_s(words: str) -> float | None:
    told = _WAIT.search(words)
    if told is None:
        return RETRY_AFTER_MAX_S if _USED_UP.search(words) else None
    return sum(float(amount) * _UNITS_S[unit.lower()] for amount, unit in _TIME.findall(told[1]))


def _header_wait_s(retry_after: str | None) -> float | None:
    """Seconds from a number of them or an HTTP date, which is 0 when it has passed; None for none and for nonsense."""
    text = (retry_after or "").strip()[:100]
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - utc_now()).total_seconds())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

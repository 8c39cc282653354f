"""One webhook over the wire: signed by Standard Webhooks 1.0, posted, and what came of it."""

import asyncio
import json
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from standardwebhooks import Webhook

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.errors import PaywatchError
from app.core.logger import get_logger
from app.core.netguard import BlockedAddress, read_url
from app.core.secrets import SecretBox, WrongSecretKey
from app.services.context import Context

GONE = 410
# Errors that say nothing of the receiver.
OUR_MISTAKES = ("signing_failed", "internal")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """What a receiver is told. `id` becomes `webhook-id`, the rest the body, the same at every attempt."""

    id: str
    type: str
    timestamp: datetime
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending. `error` is None for a 2xx answer, else one of

    `timeout`, `connect_failed` (no address among it), `tls`, `refused_address` (not public, or not a URL),
    `connection_lost`, `http_<status>`, `signing_failed` (ours: the stored secret cannot be decrypted),
    `internal` (ours).
    """

    at: datetime
    duration_ms: int
    status_code: int | None = None
    error: str | None = None
    error_detail: str | None = None
    response_body: str | None = None
    retry_after_s: float | None = None

    @property
    def is_unavailable(self) -> bool:
        """No answer, or one that says: not now. What a breaker counts."""
        return self.error is not None and (
            self.status_code is None or self.status_code == 429 or self.status_code >= 500
        )

    @property
    def outcome(self) -> str:
        """As metrics name it: `delivered`, `http_4xx` for any such status, else `error`."""
        if self.error is None:
            return "delivered"
        return f"http_{self.status_code // 100}xx" if self.status_code is not None else self.error


async def post(
    context: Context, client: httpx.AsyncClient, url: str, secrets: Sequence[bytes], message: Message
) -> Attempt:
    """One POST, signed with each of the encrypted `secrets`, the current one first.

    Never raises for what a receiver can do.
    """
    at, started = utc_now(), time.monotonic()
    try:
        headers, body = sign(_decrypted(context.box, secrets), message, at)
        read_url(url)
        async with asyncio.timeout(limits.WEBHOOK_TIMEOUT_S) as deadline:
            async with client.stream("POST", url, headers=headers, content=body) as response:
                # The answer is there. Its body is read for people, in a time of its own, and changes nothing.
                deadline.reschedule(asyncio.get_running_loop().time() + limits.WEBHOOK_TIMEOUT_S)
                attempt = _answered(at, response, await _beginning(response))
    except (httpx.HTTPError, TimeoutError, OSError) as failure:
        detail = str(failure) or f"no answer within {limits.WEBHOOK_TIMEOUT_S:g} s"
        attempt = Attempt(at, 0, error=_code(failure), error_detail=_storable(detail.encode(errors="replace")))
    except BlockedAddress as failure:
        attempt = Attempt(at, 0, error="refused_address", error_detail=str(failure))
    except PaywatchError as failure:
        attempt = Attempt(at, 0, error="signing_failed", error_detail=str(failure))
    return replace(attempt, duration_ms=int((time.monotonic() - started) * 1000))


def sign(secrets: Sequence[str], message: Message, at: datetime) -> tuple[dict[str, str], bytes]:
    """Headers and body of a message that is sent `at`; one signature for each secret, separated by blanks."""
    body = json.dumps(
        {"type": message.type, "timestamp": rfc3339(message.timestamp), "data": message.data},
        separators=(",", ":"),
        ensure_ascii=False,
    )
    headers = {
        "content-type": "application/json",
        "user-agent": "Paywatch",
        "accept-encoding": "identity",  # a few compressed bytes could be a gigabyte
        "webhook-id": message.id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(message.id, at, body) for secret in secrets),
    }
    return headers, body.encode()


def _decrypted(box: SecretBox, secrets: Sequence[bytes]) -> list[str]:
    """Raises WrongSecretKey for the first; old ones that cannot be decrypted are left out."""
    found = [box.decrypt(secrets[0])]
    for old in secrets[1:]:
        try:
            found.append(box.decrypt(old))
        except WrongSecretKey as error:
            log.error("an old webhook secret does not sign", reason=str(error))
    return found


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds or a date (RFC 9110 section 10.2.3) as seconds from now; None for anything else, or for the past."""
    if header is None:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:12])  # more digits mean no other thing
    else:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        seconds = (moment - now).total_seconds()
    return min(seconds, limits.WEBHOOK_RETRY_AFTER_MAX_S) if seconds > 0 else None


def _answered(at: datetime, response: httpx.Response, body: str) -> Attempt:
    status = response.status_code
    if response.is_success:
        return Attempt(at, 0, status_code=status, response_body=body)
    return Attempt(
        at,
        0,
        status_code=status,
        error=f"http_{status}",
        error_detail=f"answered {status} {response.reason_phrase}".strip(),
        response_body=body,
        retry_after_s=retry_after_s(response.headers.get("retry-after"), at),
    )


async def _beginning(response: httpx.Response) -> str:
    """The first few KiB of an answer, or what came of them in time; the rest is never read."""
    body = b""
    try:
        async with asyncio.timeout(limits.WEBHOOK_ANSWER_TIMEOUT_S):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) >= limits.WEBHOOK_RESPONSE_BYTES:
                    break
    except (httpx.HTTPError, TimeoutError, OSError) as failure:
        body += f" [{type(failure).__name__}]".encode()
    return _storable(body)


def _storable(text: bytes) -> str:
    return text[: limits.WEBHOOK_RESPONSE_BYTES].decode(errors="replace").replace("\x00", "")


def _code(failure: Exception) -> str:
    if isinstance(failure, httpx.TimeoutException | TimeoutError):
        return "timeout"
    if any(isinstance(cause, ssl.SSLError) for cause in _causes(failure)):
        return "tls"
    return "connect_failed" if isinstance(failure, httpx.ConnectError) else "connection_lost"


def _causes(failure: BaseException | None) -> Iterator[BaseException]:
    while failure is not None:
        yield failure
        failure = failure.__cause__ or failure.__context__

"""One root for every error that Paywatch raises on purpose. It carries its HTTP answer; only `api/` makes one of it."""

# ruff: noqa: N818 (these names are read where they are raised: `raise NotFound(…)`)

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class FieldError:
    """One wrong field of a request: `path` such as `accept.0.token`, and what is wrong with it."""

    path: str
    message: str


class PaywatchError(Exception):
    """The root. `detail` is shown to the caller, so it holds no secret; `errors` names wrong fields, if any.

    `status`, `code` and `title` become the RFC 9457 problem; `code` is what a program may rely on.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str = "", errors: Iterable[FieldError] = ()) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = list(errors)


class ConfigError(PaywatchError):
    """The operator must change something before Paywatch can start; `str()` is the whole message for a terminal."""

    code = "configuration_error"
    title = "Configuration error"


class InvalidRequest(PaywatchError):
    status = 422
    code = "validation_error"
    title = "Invalid request"


class UnknownChain(InvalidRequest):
    code = "unknown_chain"
    title = "Unknown chain"


class UnknownToken(InvalidRequest):
    code = "unknown_token"
    title = "Unknown token"


class InvalidAmount(InvalidRequest):
    code = "invalid_amount"
    title = "Invalid amount"


class IdempotencyMismatch(PaywatchError):
    status = 422
    code = "idempotency_key_reused"
    title = "Idempotency key reused with another request"


class Unauthorized(PaywatchError):
    status = 401
    code = "unauthorized"
    title = "Unauthorized"


class Forbidden(PaywatchError):
    status = 403
    code = "forbidden"
    title = "Forbidden"


class NotFound(PaywatchError):
    status = 404
    code = "not_found"
    title = "Not found"


class Conflict(PaywatchError):
    status = 409
    code = "conflict"
    title = "Conflict"


class NotCancellable(Conflict):
    code = "not_cancellable"
    title = "Payment cannot be cancelled"


class DuplicateOrder(Conflict):
    code = "duplicate_order_id"
    title = "Duplicate order id"


class PayloadTooLarge(PaywatchError):
    status = 413
    code = "payload_too_large"
    title = "Payload too large"


class UnsupportedMediaType(PaywatchError):
    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class RateLimited(PaywatchError):
    status = 429
    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, detail: str = "", retry_after_s: int = 1) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class ServiceUnavailable(PaywatchError):
    status = 503
    code = "service_unavailable"
    title = "Service unavailable"


class ChainUnavailable(ServiceUnavailable):
    code = "chain_unavailable"
    title = "Chain unavailable"


class RateUnavailable(ServiceUnavailable):
    code = "rate_unavailable"
    title = "No fresh rate"

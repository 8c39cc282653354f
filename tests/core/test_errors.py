"""Goal: each error knows its HTTP answer, and has a text even when nobody gave it one."""

import pytest

from app.core import errors
from app.core.errors import FieldError, PaywatchError


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.ConfigError, 500, "configuration_error"),
        (errors.InvalidRequest, 422, "validation_error"),
        (errors.UnknownChain, 422, "unknown_chain"),
        (errors.UnknownToken, 422, "unknown_token"),
        (errors.InvalidAmount, 422, "invalid_amount"),
        (errors.IdempotencyMismatch, 422, "idempotency_key_reused"),
        (errors.Unauthorized, 401, "unauthorized"),
        (errors.Forbidden, 403, "forbidden"),
        (errors.NotFound, 404, "not_found"),
        (errors.Conflict, 409, "conflict"),
        (errors.NotCancellable, 409, "not_cancellable"),
        (errors.DuplicateOrder, 409, "duplicate_order_id"),
        (errors.PayloadTooLarge, 413, "payload_too_large"),
        (errors.RateLimited, 429, "rate_limited"),
        (errors.ServiceUnavailable, 503, "service_unavailable"),
        (errors.ChainUnavailable, 503, "chain_unavailable"),
    ],
)
def test_an_error_carries_its_status_and_code(error: type[PaywatchError], status: int, code: str) -> None:
    assert (error.status, error.code) == (status, code)
    assert error().detail == error.title == str(error())


def test_an_error_names_the_wrong_fields() -> None:
    wrong = FieldError("accept.0.token", "unknown")
    error = errors.UnknownToken("no such token", [wrong])
    assert (str(error), error.detail, error.errors) == ("no such token", "no such token", [wrong])


def test_errors_do_not_share_their_lists() -> None:
    assert PaywatchError().errors is not PaywatchError().errors

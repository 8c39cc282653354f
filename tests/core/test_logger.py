"""Goal: one form for all lines, whoever wrote them, and no secret in any of them."""

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from app.blockchain.wallet import account_xpub, from_mnemonic, new_mnemonic
from app.core.logger import REDACTED, configure_logging, get_logger, redact, redact_url
from app.core.secrets import new_api_key, new_webhook_secret


@pytest.fixture(autouse=True)
def logging_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""  # standard output belongs to commands
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_json_line_has_time_level_logger_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "INFO")
    get_logger("app.scanner").info("block stored", number=7)
    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "block stored", "level": "info", "logger": "app.scanner", "number": 7}


def test_context_is_merged_into_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "INFO")
    with structlog.contextvars.bound_contextvars(request_id="req_1", chain="base"):
        get_logger("app").info("ours")
        logging.getLogger("uvicorn.error").info("theirs")
    assert [(line["request_id"], line["chain"]) for line in lines(capsys)] == [("req_1", "base")] * 2


def test_the_standard_librarys_lines_take_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.addHandler(logging.StreamHandler(sys.stderr))
    uvicorn.propagate = False
    configure_logging("json", "INFO")
    uvicorn.info("started on %s", "http://127.0.0.1:8000", extra={"password": "hunter2"})
    (line,) = lines(capsys)
    assert line["event"] == "started on http://127.0.0.1:8000"
    assert line["logger"] == "uvicorn.error"
    assert line["password"] == REDACTED


def test_levels_below_the_chosen_one_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "warning")
    get_logger("app").info("quiet")
    logging.getLogger("alembic").info("quiet")
    get_logger("app").warning("loud")
    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_the_format_follows_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging(None, "INFO")
    get_logger("app").info("piped")
    assert lines(capsys)[0]["event"] == "piped"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure_logging(None, "INFO")
    get_logger("app").info("seen")
    assert "seen" in capsys.readouterr().err


def test_configuring_again_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json", "INFO")
    configure_logging("json", "INFO")
    get_logger("app").info("once")
    assert len(lines(capsys)) == 1


def test_clients_that_log_full_urls_are_kept_quiet_even_when_debugging() -> None:
    configure_logging("json", "DEBUG")
    for name in ("httpx", "web3.providers", "websockets.client", "alembic.runtime.plugins"):
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exception_shows_neither_local_variables_nor_a_key_in_a_url(
    log_format: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(log_format, "INFO")
    mnemonic = "test junk"
    try:
        raise ConnectionError("https://eth.example.com/v2/KEY123?x=1 refused")
    except ConnectionError:
        get_logger("app").exception("call failed", words=len(mnemonic))
    text = capsys.readouterr().err
    assert "ConnectionError" in text
    assert "https://eth.example.com" in text
    assert "KEY123" not in text
    assert "test junk" not in text.replace('mnemonic = "test junk"', "")


def test_values_under_secret_names_are_redacted_at_any_depth() -> None:
    event = redact(
        None,
        "info",
        {
            "mnemonic": "w",
            "PAYWATCH_API_KEY": "k",
            "keystore_password": "p",
            "private_key": b"\x01",
            "headers": {"Authorization": "Bearer k", "accept": "*/*"},
            "rows": [{"webhook_secret": "s"}],
            "token": "USDC",
            "idempotency_key": "i",
            "secret": None,
        },
    )
    assert event == {
        **dict.fromkeys(["mnemonic", "PAYWATCH_API_KEY", "keystore_password", "private_key"], REDACTED),
        "headers": {"Authorization": REDACTED, "accept": "*/*"},
        "rows": [{"webhook_secret": REDACTED}],
        "token": "USDC",
        "idempotency_key": "i",
        "secret": None,
    }


@pytest.mark.parametrize(
    "secret",
    [
        new_api_key(),
        new_webhook_secret(),
        str(from_mnemonic(new_mnemonic()).xprivate_key()),
        account_xpub(new_mnemonic()),
    ],
    ids=["api-key", "webhook-secret", "xprv", "xpub"],
)
def test_what_has_the_shape_of_a_key_is_taken_out_wherever_it_stands(secret: str) -> None:
    event = redact(None, "info", {"event": f"sent {secret}, refused", "rows": [{"error": ValueError(secret)}]})
    assert event == {"event": f"sent {REDACTED}, refused", "rows": [{"error": f"ValueError: {REDACTED}"}]}


def test_what_is_nested_too_deep_is_taken_out() -> None:
    deep: Any = {"password": "p"}
    for _ in range(10):
        deep = [deep]
    assert "password" not in str(redact(None, "info", {"value": deep}))
    assert REDACTED in str(redact(None, "info", {"value": deep}))


def test_a_value_that_holds_itself_ends() -> None:
    loop: dict[str, Any] = {"password": "p"}
    loop["self"] = loop
    assert redact(None, "info", {"value": loop})["value"]["password"] == REDACTED


def test_an_exception_as_a_value_is_cleaned_too() -> None:
    event = redact(None, "info", {"error": OSError("wss://node.example/KEY is away")})
    assert event["error"] == "OSError: wss://node.example is away"


@pytest.mark.parametrize("end", [":", ",", ".", ";", ")", ""])
def test_what_follows_a_url_in_a_sentence_does_not_hide_its_host(end: str) -> None:
    event = redact(None, "info", {"reason": f"http://node.example:8545/KEY{end} eth_call at ws://[::1] failed"})
    assert event["reason"] == f"http://node.example:8545{end} eth_call at ws://[::1] failed"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://mainnet.example.com/v2/KEY?k=KEY#KEY", "https://mainnet.example.com"),
        ("https://user:KEY@node.example.com:8545/", "https://node.example.com:8545"),
        ("postgresql+asyncpg://user:KEY@db/paywatch", "postgresql+asyncpg://db"),
        ("ws://[::1]:8546/KEY", "ws://[::1]:8546"),
        ("KEY", REDACTED),
        ("http://host:KEY/", REDACTED),
        ("http://[KEY", REDACTED),
    ],
)
def test_a_url_is_reduced_to_scheme_and_host(url: str, shown: str) -> None:
    assert redact_url(url) == shown

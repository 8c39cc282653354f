"""Structured logs: one renderer for Paywatch and the libraries under it, to standard error, with secrets taken out."""

import logging
import re
import secrets
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.core import metrics

REDACTED: Final = "[redacted]"

_SECRET_KEYS: Final = frozenset(
    (
        "mnemonic",
        "seed",
        "password",
        "passphrase",
        "secret",
        "secret_key",
        "private_key",
        "api_key",
        "authorization",
        "cookie",
    )
)
# Addresses with a host: an RPC URL's path is often its key, a database's user information always its password.
_URL: Final = re.compile(
    r"\b(?:https?|wss?|rediss?|postgres(?:ql)?(?:\+\w+)?)://[^\s'\"<>]*[^\s'\"<>:,.;)]", re.IGNORECASE
)
# API keys, webhook secrets, extended keys, and what an Authorization header holds, wherever they stand.
SECRET_SHAPES: Final = re.compile(
    r"\bpwk_[\w-]{8,}|\bwhsec_[\w+/=-]{8,}|\b[xyztuv](?:pub|prv)[1-9A-HJ-NP-Za-km-z]{20,}|\bBearer\s+\S+"
)
# PostgreSQL tells the row that it refused, with all that a customer wrote into it.
_ROW: Final = re.compile(r"\bDETAIL:\s.*?(?=\n[\s|]*(?:HINT:|\[SQL|\n)|\Z)", re.DOTALL)
_NESTING_MAX: Final = 4  # deeper than any event of ours; a cycle ends here
# At INFO httpx logs each request's full URL, at DEBUG web3 each call: both are RPC keys, and thousands of lines.
# arq logs two lines a job, many jobs a second; alembic its dialects, plugins, and every sequence that it sees.
_QUIET_LOGGERS: Final = (
    *("httpx", "httpcore", "web3", "aiohttp", "websockets", "asyncio", "urllib3", "aiosqlite"),
    *("arq", "alembic"),
)


def configure_logging(log_format: Literal["console", "json"] | None, level: str) -> None:
    """Send structlog's and the standard library's records through one renderer to standard error.

    `log_format` None means console on a terminal, else JSON lines; `level` is a standard level name. Context bound with
    `structlog.contextvars` (request_id, chain, payment, task) is merged into every line; times are UTC. Calling it
    again replaces the former configuration. Run uvicorn with `log_config=None`, or it puts its own handlers back.
    """
    console = sys.stderr.isatty() if log_format is None else log_format == "console"
    renderer: Processor = structlog.processors.JSONRenderer(default=str)
    if console:
        # The default formatter prints local variables, secrets among them, wherever `rich` is installed.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # module-level loggers follow a later configuration
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # looked up for each line, not shown
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _adopt_library_loggers()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module: `log = get_logger(__name__)`, then `log.info("block stored", chain=…, number=…)`."""
    return structlog.stdlib.get_logger(name)


def report_error(log: structlog.stdlib.BoundLogger, error: BaseException, **fields: Any) -> str:
    """Log an error that nobody foresaw, with its traceback and a report id by which it is found; returns that id."""
    report = "rep_" + secrets.token_hex(8)
    metrics.UNHANDLED_ERRORS.inc()
    log.error("unhandled error", report=report, **fields, exc_info=error)
    return report


def redact_url(url: str) -> str:
    """`url` down to scheme, host and port: what remains is fit to be logged and shown, for RPC URLs hold keys."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return REDACTED
    if not parts.scheme or not host:
        return REDACTED
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor, the last line of defence: values under secret names go, URLs shrink to their host.

    What has the shape of a key goes wherever it stands, and so does all that is nested deeper than any event of ours.
    """
    return {key: _clean(key, value, 0) for key, value in event.items() if key != "color_message"}  # uvicorn's, twice


def _clean(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and value is not None and _is_secret_name(key):
        return REDACTED
    if isinstance(value, str):
        shown = _ROW.sub(f"DETAIL: {REDACTED}", _URL.sub(lambda match: redact_url(match[0]), value))
        return SECRET_SHAPES.sub(REDACTED, shown)
    if isinstance(value, BaseException):
        return _clean(None, f"{type(value).__name__}: {value}", depth)
    if depth >= _NESTING_MAX and isinstance(value, (Mapping, list, tuple)):
        return REDACTED
    if isinstance(value, Mapping):
        return {name: _clean(name, inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(None, inner, depth + 1) for inner in value]
    return value


def _is_secret_name(key: str) -> bool:
    name = key.lower().replace("-", "_").removeprefix("paywatch_")
    return name in _SECRET_KEYS or name.endswith(("_password", "_secret", "_private_key", "_mnemonic"))


def _adopt_library_loggers() -> None:
    for name, library in logging.root.manager.loggerDict.items():
        if isinstance(library, logging.Logger) and name.split(".")[0] in ("uvicorn", "arq", "alembic", "sqlalchemy"):
            library.handlers.clear()
            library.propagate = True
            library.disabled = False  # alembic's fileConfig disables whatever it does not name
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)

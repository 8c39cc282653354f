"""What an escalation needs, in one file, with no secret in it: built from what may be shown, then looked through."""

import asyncio
import io
import json
import os
import platform
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from app import __version__
from app.core import limits
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.config import Settings, read_environment
from app.core.connection_url import is_readable
from app.core.errors import ConfigError, PaywatchError
from app.core.evm import checksum
from app.core.logger import REDACTED, redact, redact_url
from app.db import schema
from app.db.repositories import diagnosis, payments
from app.db.schema import show_url
from app.services.doctor.configuration import secret_key
from app.services.doctor.finding import Finding, Patient

_ENCODING: Final = "utf-8"
_SECRET_MIN: Final = 6  # characters; a shorter value is no secret, and blanking it would blank the file
# What a line of somebody else's log may hold besides: a secret behind its name.
_NAMED_SECRET: Final = re.compile(
    r"(?i:\b\w*(?:password|passphrase|secret|mnemonic|api_?key|private_?key|token|authorization)\b[\"']?\s*[:=]\s*)"
    r"(?:\"[^\"]*\"|'[^']*'|\S+)"
)
_SECRET_NAMES: Final = re.compile(r"(?i)key|secret|password|mnemonic|token|xpub|url|dsn")
_PLAIN_PARTS: Final = ("ethereum", "mainnet", "sepolia", "polygon", "arbitrum", "optimism", "api-key", "apikey")


async def write_bundle(path: Path, log: Path | None, patient: Patient | None, findings: Sequence[Finding]) -> None:
    """Pack it as a .tar.gz with mode 0600. Raises ConfigError when it cannot be written, or the log cannot be read."""
    files: dict[str, str] = {
        "versions.json": _json(_versions()),
        "doctor.json": _json([asdict(each) for each in findings]),
    }
    if patient is not None:
        files["settings.json"] = _json(_settings(patient.context.settings))
        files["chains.json"] = _json([_chain(chain) for chain in patient.context.chains.chains])
        files["schema.txt"] = await _schema(patient)
        files["state.json"] = _json(await _state(patient))
    if log is not None:
        files["log.txt"] = _NAMED_SECRET.sub(REDACTED, "\n".join(_log_lines(log)))
    clean = cleaner(patient)
    await asyncio.to_thread(_pack, path, {name: clean(text) for name, text in files.items()})


def cleaner(patient: Patient | None) -> Callable[[str], str]:
    """Takes every value that is known to be secret here out of a text: the last line of defence."""
    known = {value for value in _known_secrets(patient) if len(value) >= _SECRET_MIN}
    # As JSON writes them too; the longest first, for one may be part of another.
    spelled = sorted({each for value in known for each in (value, json.dumps(value)[1:-1])}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, spelled))) if spelled else None

    def clean(text: str) -> str:
        return text if pattern is None else pattern.sub(REDACTED, text)

    return clean


def _known_secrets(patient: Patient | None) -> Iterable[str]:
    for name, value in read_environment().items():
        if _SECRET_NAMES.search(name) and not name.endswith("_FILE"):
            yield from _secret_parts(value) if "://" in value else (value, value.strip())
    if patient is None:
        return
    settings = patient.context.settings
    for value in settings.model_dump().values():
        if isinstance(value, SecretStr):
            yield value.get_secret_value()
    yield settings.xpub or ""
    yield secret_key(settings) or ""
    chains_urls = [url for chain in patient.context.chains.chains for url in (*chain.rpc_urls, chain.ws_url or "")]
    for url in (settings.database_url, settings.redis_url, *chains_urls):
        yield from _secret_parts(url)


def _secret_parts(url: str) -> Iterable[str]:
    """A URL's password, and what stands behind its host: keys stand in paths and in queries.

    Of one that cannot be read each part may be of its password.
    """
    if not is_readable(url):
        rest = url.partition("://")[2]
        yield from (rest, *re.split(r"[@:/?#]", rest))
        return
    try:
        parts = urlsplit(url)
    except ValueError:
        yield url
        return
    yield from (parts.password or "", unquote(parts.password or ""))
    if parts.scheme in ("http", "https", "ws", "wss"):
        yield from (part for part in re.split(r"[/?&=]", f"{parts.path}?{parts.query}") if part not in _PLAIN_PARTS)


def _versions() -> dict[str, Any]:
    return {
        "paywatch": __version__,
        "python": sys.version,
        "platform": platform.platform(),
        "made_at": utc_now(),
    }


def _settings(settings: Settings) -> dict[str, Any]:
    """Which variables are set, and the values of those that are no secrets."""
    shown: dict[str, Any] = {}
    for name, value in settings:
        if isinstance(value, SecretStr) or (name == "xpub" and value is not None):
            shown[name] = REDACTED
        elif name == "database_url":
            shown[name] = show_url(str(value))
        elif name in ("redis_url", "public_url"):
            shown[name] = redact_url(str(value)) if value else value
        else:
            shown[name] = [str(each) for each in value] if isinstance(value, tuple) else value
    return shown


def _chain(chain: Chain) -> dict[str, Any]:
    sweep = asdict(chain.sweep)
    return {
        "name": chain.name,
        "enabled": chain.enabled,
        "chain_id": chain.chain_id,
        "rpc_urls": [redact_url(url) for url in chain.rpc_urls],
        "ws_url": redact_url(chain.ws_url) if chain.ws_url else None,
        "confirmations_required": chain.confirmations_required,
        "finality": asdict(chain.finality),
        "block_batch_size": chain.block_batch_size,
        "poll_interval": chain.poll_interval_s,
        "start_block": chain.start_block,
        "native": asdict(chain.native),
        "tokens": [{**asdict(token), "address": checksum(token.address)} for token in chain.tokens],
        "sweep": sweep | {"treasury": checksum(chain.sweep.treasury) if chain.sweep.treasury else None},
    }


async def _schema(patient: Patient) -> str:
    if "database" in patient.down:
        return patient.down["database"]
    try:
        return (
            "\n".join(await schema.check(patient.context.settings.database_url)) or "at head, and equal to the models"
        )
    except PaywatchError as error:
        return str(error)


async def _state(patient: Patient) -> dict[str, Any]:
    """Cursors and counts. Of events only their types and times: the rest is the customers'."""
    if patient.down.keys() & {"database", "schema"}:
        return {"not read": list(patient.down.values())}
    try:
        async with patient.context.db.read() as session:
            return {
                "chain_states": await diagnosis.cursors(session),
                "payments": await payments.count_by_status(session),
                "webhook_deliveries": await diagnosis.count_by(session, "deliveries"),
                "sweeps": await diagnosis.count_by(session, "sweeps"),
                "last_events": [{"type": type_, "at": at} for type_, at in await diagnosis.last_events(session)],
            }
    except (SQLAlchemyError, OSError) as error:
        return {"not read": type(error).__name__}


def _log_lines(path: Path) -> Iterable[str]:
    """The end of a log, line by line without secrets. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - limits.DOCTOR_LOG_BYTES, 0))
            text = file.read(limits.DOCTOR_LOG_BYTES).decode(_ENCODING, errors="replace")
    except OSError as error:
        raise ConfigError(f"--log {path}: cannot be read: {error.strerror}") from None
    return [_log_line(line) for line in text.splitlines()]


def _log_line(line: str) -> str:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict):
        return json.dumps(dict(redact(None, "", event)), ensure_ascii=False)
    return str(redact(None, "", {"event": line})["event"])


def _pack(path: Path, files: Mapping[str, str]) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.fchmod(descriptor, 0o600)  # of a file that was there already, before anything is in it
        os.ftruncate(descriptor, 0)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, text in files.items():
                content = text.encode(_ENCODING)
                entry = tarfile.TarInfo(f"paywatch-doctor/{name}")
                entry.size, entry.mode, entry.mtime = len(content), 0o600, int(utc_now().timestamp())
                archive.addfile(entry, io.BytesIO(content))
    except OSError as error:
        raise ConfigError(f"--bundle {path}: cannot be written: {error.strerror}") from None


def _json(value: object) -> str:
    return json.dumps(value, indent=2, default=str, ensure_ascii=False) + "\n"

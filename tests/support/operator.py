"""The operator's command within this process: a command of its own takes seconds to start on a busy machine."""

import asyncio
import os
from dataclasses import dataclass
from unittest.mock import patch

from structlog.testing import capture_logs
from structlog.typing import EventDict
from typer.testing import CliRunner

from app.cli import app
from app.core.errors import PaywatchError

NEVER_ASKED = {
    "PAYWATCH_REDIS_URL": "redis://never-asked",
    "PAYWATCH_SECRET_KEY": "k" * 32,
    "PAYWATCH_PUBLIC_URL": "https://pay.example.com",
}


@dataclass(frozen=True)
class Told:
    """What the command answered. `log`: the lines of its log, which its standard error (`error`) is without here."""

    code: int
    out: str
    error: str
    log: tuple[EventDict, ...]


async def command(*arguments: str, **variables: str) -> Told:
    """Run `paywatch …` with the settings `variables` and nobody at a terminal."""
    others = {name: "" for name in os.environ if name.startswith("PAYWATCH_")}
    with (
        patch("app.cli.installation.configure_logging"),
        patch("app.cli.backup.configure_logging"),
        patch.dict(os.environ, others | NEVER_ASKED | variables),
        capture_logs() as log,
    ):
        result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    if isinstance(result.exception, PaywatchError):  # as `main` does
        return Told(1, result.stdout, f"{result.stderr}{result.exception}\n", tuple(log))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Told(result.exit_code, result.stdout, result.stderr, tuple(log))

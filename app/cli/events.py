"""`paywatch events export`"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer

from app.cli.installation import opened
from app.cli.times import parse_time
from app.core.clock import utc_now
from app.core.errors import ConfigError
from app.core.terminal import utf_8_output
from app.services.export import ExportFormat, export_events

app = typer.Typer(help="The audit trail.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `export` a command of its own: typer folds a group of one."""


@app.command()
def export(
    form: Annotated[ExportFormat, typer.Option("--format", help="csv: main fields; jsonl: all of each event.")],
    file: Annotated[Path | None, typer.Argument(help="Made with mode 0600; standard output by default.")] = None,
    since: Annotated[datetime | None, typer.Option(parser=parse_time, help="From then on.")] = None,
    until: Annotated[datetime | None, typer.Option(parser=parse_time, help="Before then; by default now.")] = None,
    merchant: Annotated[str | None, typer.Option(help="One merchant's, by name; by default all.")] = None,
) -> None:
    """Write all events, the oldest first. Only reads; it may run beside a busy gateway."""
    with _target(file) as target:
        asyncio.run(_export(target, form, merchant, since, until or utc_now()))


async def _export(
    target: TextIO, form: ExportFormat, merchant: str | None, since: datetime | None, until: datetime
) -> None:
    async with opened() as context:
        async for text in export_events(context, form, merchant, since, until):
            target.write(text)


@contextmanager
def _target(file: Path | None) -> Iterator[TextIO]:
    """The file appears under its name once it is whole. Raises ConfigError when it cannot be made, or is there."""
    if file is None:
        utf_8_output()
        yield sys.stdout
        return
    part = file.with_name(f"{file.name}.part")
    if file.exists():
        raise ConfigError(f"{file} exists already")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise ConfigError(f"{part}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as target:
            yield target
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)

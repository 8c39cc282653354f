"""`paywatch doctor`: what is wrong, and what to do about it."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.core.logger import configure_logging
from app.services.doctor import Finding, diagnose, worst
from app.services.doctor.bundle import write_bundle
from app.services.doctor.mock_payment import mock_payment

COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red"}
_WIDTH: Final = 400  # a remedy that is cut short is of no use; a terminal wraps the line


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    mock: Annotated[bool, typer.Option("--mock-payment", help="Instead: pay a payment on a devnet chain.")] = False,
    chain: Annotated[str | None, typer.Option("--chain", help="With --mock-payment: on which devnet chain.")] = None,
    api_key: Annotated[
        str,
        typer.Option("--api-key", help="With --mock-payment: an API key; else that of the settings."),
    ] = "",
    bundle: Annotated[Path | None, typer.Option(help="Also pack what an escalation needs, as a .tar.gz.")] = None,
    log: Annotated[Path | None, typer.Option(help="With --bundle: a log file, packed without its secrets.")] = None,
) -> None:
    """Look for everything that can be wrong with this installation; exit code 1 when something is.

    Nothing is changed. Each line says what was looked at, what was found, and which command mends it. --mock-payment
    sends a real payment through the running installation, on a devnet, and says where it stopped.
    """
    configure_logging(None, "CRITICAL")  # what a library would log of a fault is a finding here
    findings = asyncio.run(mock_payment(chain, api_key) if mock else _diagnose(bundle, log))
    if as_json:
        print(json.dumps({"status": worst(findings), "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        _print(findings)
    if bundle is not None and not mock:
        sys.stderr.write(f"packed {bundle}\n")
    if worst(findings) == "failed":
        raise typer.Exit(1)


async def _diagnose(bundle: Path | None, log: Path | None) -> list[Finding]:
    patient, findings = await diagnose()
    try:
        if bundle is not None:
            await write_bundle(bundle, log, patient, findings)
    finally:
        if patient is not None:
            await patient.context.close()
    return findings


def _print(findings: Sequence[Finding]) -> None:
    table = Table("check", "result", "found", "what to do", box=None, pad_edge=False, header_style="bold")
    for each in findings:
        table.add_row(Text(each.check), Text(each.result, COLOURS[each.result]), Text(each.found), Text(each.remedy))
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH).print(table)
    counts = {result: sum(each.result == result for each in findings) for result in ("ok", "warning", "failed")}
    print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failed']} failed")

"""`paywatch doctor`: every check, each within a time limit of its own, whatever of the installation is broken."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from app.core import limits
from app.services.doctor import (
    chains,
    configuration,
    database,
    disk,
    integrity,
    nodes,
    pauses,
    processes,
    second_looks,
    sweeping,
    webhooks,
)
from app.services.doctor.configuration import admit, make_patient
from app.services.doctor.finding import Finding, Patient, Thing, failed, warning

__all__ = ["Finding", "Patient", "admit", "diagnose", "diagnose_stored", "examine", "make_patient"]


@dataclass(frozen=True, slots=True)
class Check:
    """`needs`: what must be well, or the check has nothing to look at."""

    name: str
    run: Callable[[Patient], Awaitable[list[Finding]]]
    needs: tuple[Thing, ...] = ()


# In this order: the first of each kind say what is down, and the ones after them go by that.
CHECKS = (
    Check("secrets", configuration.check_secrets),
    Check("database", database.check_database, ("database",)),
    Check("disk", disk.check_disk),
    Check("schema", database.check_schema, ("database",)),
    Check("redis", processes.check_redis, ("redis",)),
    Check("wallet", configuration.check_wallet),
    Check("stored secrets", configuration.check_secret_key, ("database", "schema")),
    Check("locks", database.check_locks, ("database",)),
    Check("orphan rows", integrity.check_rows, ("database", "schema")),
    Check("payments", integrity.check_payments, ("database", "schema")),
    Check("headers", integrity.check_headers, ("database", "schema", "chains.yaml")),
    Check("queues", processes.check_queues, ("redis", "chains.yaml")),
    Check("workers", processes.check_workers, ("redis", "chains.yaml")),
    Check("tasks", second_looks.check_tasks, ("redis", "chains.yaml")),
    Check("rpc", nodes.check_nodes, ("chains.yaml",)),
    Check("tokens", nodes.check_tokens, ("chains.yaml",)),
    Check("chains", chains.check_chains, ("database", "schema", "chains.yaml")),
    Check("backups", second_looks.check_backups, ("database", "schema", "chains.yaml")),
    Check("webhooks", webhooks.check_webhooks, ("database", "schema")),
    Check("pauses", pauses.check_pauses, ("database", "schema")),
    Check("sweeping", sweeping.check_sweeping, ("database", "schema", "chains.yaml")),
    Check("clocks", chains.check_clocks),
)

# Of them, those that look at what the database holds.
STORED: Final = ("database", "schema", "wallet", "stored secrets", "orphan rows", "payments", "headers")


async def diagnose() -> tuple[Patient | None, list[Finding]]:
    """Examine the installation of this folder. The patient is still open: close its context."""
    patient, findings = admit()
    if patient is not None:
        findings += await examine(patient)
    return patient, findings


async def diagnose_stored() -> list[Finding]:
    """What is wrong with what the database holds, after a restore. A host without a wallet is not asked for one."""
    patient, findings = admit()
    if patient is None:
        return findings
    settings = patient.context.settings
    has_wallet = settings.xpub is not None or settings.has_private_key
    try:
        findings = await examine(patient, [name for name in STORED if has_wallet or name != "wallet"])
    finally:
        await patient.context.close()
    return [finding for finding in findings if finding.result == "failed"]


async def examine(patient: Patient, names: Collection[str] | None = None) -> list[Finding]:
    """Run every check, or those named. Nothing is changed, and nothing is raised but a cancellation."""
    findings: list[Finding] = []
    for check in CHECKS:
        if names is not None and check.name not in names:
            continue
        down = [thing for thing in check.needs if thing in patient.down]
        findings += [_put_off(check, patient, down[0])] if down else await _run(check, patient)
    return findings


def _put_off(check: Check, patient: Patient, thing: Thing) -> Finding:
    why = patient.down[thing]
    if check.name == thing:
        return failed(check.name, why, _remedy(patient, thing))
    return warning(check.name, f"not checked: {why}", f"mend {thing} first")


def _remedy(patient: Patient, thing: Thing) -> str:
    if thing == "database" and "is not there" in patient.down[thing]:
        return f"{patient.start_server}, or python migrate.py upgrade; or give back the file"
    return f"mend {thing} first"


async def _run(check: Check, patient: Patient) -> list[Finding]:
    try:
        async with asyncio.timeout(limits.DOCTOR_CHECK_S):
            return await check.run(patient)
    except TimeoutError:
        found = f"the check was not done in {limits.DOCTOR_CHECK_S:.0f} s"
        return [failed(check.name, found, "run it again when there is less to do; else paywatch doctor --bundle FILE")]
    except Exception as error:  # noqa: BLE001 a doctor that dies of what it finds is of no use
        found = f"the check ended with {type(error).__name__}"
        return [failed(check.name, found, "see what else failed; else paywatch doctor --bundle FILE for whoever helps")]


def worst(findings: Sequence[Finding]) -> str:
    """`failed`, `warning` or `ok`."""
    results = {finding.result for finding in findings}
    return next((result for result in ("failed", "warning") if result in results), "ok")

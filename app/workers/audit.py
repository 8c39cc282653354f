"""Periodic second looks at the listener's work: the backup pass and the reconciliation."""

import asyncio
import time
from typing import Any

from app.core import limits, pulse
from app.core.logger import get_logger
from app.core.queue import BACKUP_TASK, RECONCILE_TASK
from app.services.blockchain.backup import backup_pass
from app.services.blockchain.reconcile import reconcile_chain
from app.workers.job import job
from app.workers.listener import Listener

log = get_logger(__name__)


@job(BACKUP_TASK)
async def backup_pass_task(ctx: dict[str, Any], chain_name: str) -> str | None:
    """Read the final blocks of a chain again for at most `LISTEN_BUDGET_S`."""
    listener: Listener = ctx["listener"]
    chain = listener.context.by_name.get(chain_name)
    if chain is None:
        return None
    deadline = time.monotonic() + limits.LISTEN_BUDGET_S
    while time.monotonic() < deadline:
        async with asyncio.timeout(limits.STEP_TIMEOUT_S):
            outcome = await backup_pass(listener.context, chain)
        if outcome is None:
            return None
        if outcome.changes:
            await listener.wake_ups.webhooks()
        if outcome.problem is not None:
            log.warning("backup pass put off", reason=outcome.problem)
            return outcome.problem
    return None


@job(RECONCILE_TASK)
async def reconcile_task(ctx: dict[str, Any], chain_name: str) -> str | None:
    """Compare balances with what was recorded; differences are logged by the service, their number is told here.

    A comparison that was not whole tells what it found, but never that nothing differs.
    """
    listener: Listener = ctx["listener"]
    chain = listener.context.by_name.get(chain_name)
    if chain is None:
        return None
    report = await reconcile_chain(listener.context, chain)
    if report.problem is not None:
        log.warning("reconciliation put off", reason=report.problem)
    if report.problem is None or report.differences:
        await pulse.tell_differences(ctx["redis"], chain.name, len(report.differences))
    return report.problem

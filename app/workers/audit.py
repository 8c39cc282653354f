"""Periodic second looks at the listener's work: the backup pass and the reconciliation."""

import asyncio
import time
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.core import limits
from app.core.logger import get_logger
from app.services.blockchain.backup import backup_pass
from app.services.blockchain.reconcile import reconcile_chain
from app.workers.listener import Listener

log = get_logger(__name__)


async def backup_pass_task(ctx: dict[str, Any], chain_name: str) -> None:
    """Read the final blocks of a chain again for at most `LISTEN_BUDGET_S`."""
    listener: Listener = ctx["listener"]
    chain = listener.context.by_name.get(chain_name)
    if chain is None:
        return
    deadline = time.monotonic() + limits.LISTEN_BUDGET_S
    with structlog.contextvars.bound_contextvars(task="backup_pass", chain=chain.name):
        try:
            while time.monotonic() < deadline:
                async with asyncio.timeout(limits.STEP_TIMEOUT_S):
                    outcome = await backup_pass(listener.context, chain)
                if outcome is None:
                    return
                if outcome.changes:
                    await listener.wake_ups.webhooks()
                if outcome.problem is not None:
                    log.warning("backup pass put off", reason=outcome.problem)
                    return
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.error("backup pass failed", reason=f"{type(error).__name__}: {error}")


async def reconcile_task(ctx: dict[str, Any], chain_name: str) -> None:
    """Compare balances with what was recorded; differences are logged by the service."""
    listener: Listener = ctx["listener"]
    chain = listener.context.by_name.get(chain_name)
    if chain is None:
        return
    with structlog.contextvars.bound_contextvars(task="reconcile", chain=chain.name):
        try:
            report = await reconcile_chain(listener.context, chain)
            if report.problem is not None:
                log.warning("reconciliation put off", reason=report.problem)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.error("reconciliation failed", reason=f"{type(error).__name__}: {error}")

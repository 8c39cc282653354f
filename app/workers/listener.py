"""The listener's task: follows one chain until there is nothing new."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from app.core import limits
from app.core.chains import Chain
from app.core.logger import get_logger
from app.core.queue import LISTEN_TASK, WakeUps
from app.services.blockchain.chains import prepare
from app.services.blockchain.scanner import step, too_much
from app.services.context import Context
from app.workers.job import job

log = get_logger(__name__)


@dataclass
class Listener:
    """What the tasks of one process share. `checked_at`: when a chain that is not ready was last checked."""

    context: Context
    wake_ups: WakeUps
    ready: set[str] = field(default_factory=set)
    checked_at: dict[str, float] = field(default_factory=dict)


@job(LISTEN_TASK)
async def listen_for_payments(ctx: dict[str, Any], chain_name: str) -> None:
    """Follow a chain for at most `LISTEN_BUDGET_S`."""
    listener: Listener = ctx["listener"]
    chain = listener.context.by_name.get(chain_name)
    if chain is None:
        return  # a wake-up from before chains.yaml changed
    if await _is_ready(listener, chain):
        await _follow(listener, chain)


async def _is_ready(listener: Listener, chain: Chain) -> bool:
    if chain.name in listener.ready:
        return True
    now = time.monotonic()
    if now - listener.checked_at.get(chain.name, -limits.PREPARE_EVERY_S) < limits.PREPARE_EVERY_S:
        return False
    listener.checked_at[chain.name] = now
    check = await prepare(listener.context, chain)
    if check.problem is None:
        listener.ready.add(chain.name)
    elif not check.final and listener.context.nodes.nodes(chain).has_healthy:
        del listener.checked_at[chain.name]  # the next tick asks that one
    return check.problem is None


async def _follow(listener: Listener, chain: Chain) -> None:
    deadline = time.monotonic() + limits.LISTEN_BUDGET_S
    while time.monotonic() < deadline:
        try:
            async with asyncio.timeout(limits.STEP_TIMEOUT_S):
                outcome = await step(listener.context, chain)
        except TimeoutError:
            too_much(listener.context, chain)
            raise
        if outcome.changes:
            await listener.wake_ups.webhooks()
        if outcome.halted == "config":  # perhaps by another worker's check, and that worker may be gone: check again
            listener.ready.discard(chain.name)
        if outcome.problem is not None:
            log.warning("node not usable", reason=outcome.problem)
        if not outcome.progressed:
            return

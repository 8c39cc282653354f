"""The sweeper's task: one round of one chain. Only a process with this role holds a private key."""

import asyncio
from typing import Any

from app.core import limits
from app.core.logger import get_logger
from app.core.queue import SWEEP_TASK
from app.services.blockchain.sweeper import Sweeper, open_sweeper, sweep_round, swept_chains
from app.services.context import Context
from app.workers.job import job

log = get_logger(__name__)


async def load_sweeper(context: Context) -> Sweeper | None:
    """The sweeper, when there is something to sweep and a key for it. Raises ConfigError for a bad wallet."""
    wanted = swept_chains(context)
    sweeper = await open_sweeper(context) if wanted else None
    if wanted and sweeper is None:
        log.error(
            "nothing is swept: the sweeper has no private key; set PAYWATCH_MNEMONIC or PAYWATCH_KEYSTORE_FILE",
            chains=[chain.name for chain in wanted],
        )
    return sweeper


@job(SWEEP_TASK)
async def sweep_funds(ctx: dict[str, Any], chain_name: str) -> str | None:
    """One round of a chain."""
    sweeper: Sweeper = ctx["sweeper"]
    chain = sweeper.context.by_name.get(chain_name)
    if chain is None or chain.sweep.mode == "off":
        return None  # a wake-up from before chains.yaml changed
    async with asyncio.timeout(limits.SWEEP_ROUND_TIMEOUT_S):
        outcome = await sweep_round(sweeper, chain)
    if sweeper.memory(chain).news("problem", outcome.problem):
        log.warning("round put off", reason=outcome.problem)
    return outcome.problem if outcome.ready else None

"""`python -m app.workers [--roles listener,webhook,sweeper]`"""

import argparse
import asyncio
import sys
from collections.abc import Coroutine
from typing import Any

from app.core.chains import load_chains
from app.core.config import load_settings, read_environment
from app.core.errors import ConfigError, PaywatchError
from app.core.logger import configure_logging, get_logger, report_error
from app.core.loop_lag import LoopLag
from app.core.queue import ROLES
from app.core.shutdown import stop_on_signals
from app.services.gateway import require_schema
from app.workers.exposed import exposed_metrics
from app.workers.runner import run_workers

log = get_logger(__name__)


def _roles(text: str) -> list[str]:
    roles = [role.strip() for role in text.split(",") if role.strip()]
    unknown = sorted(set(roles) - set(ROLES))
    if unknown or not roles:
        raise argparse.ArgumentTypeError(f"roles are {', '.join(ROLES)}; not {', '.join(unknown) or 'none'}")
    return roles


async def _main(roles: list[str]) -> None:
    stop = stop_on_signals()  # first of all: until then a stop is no clean end
    settings = load_settings()
    configure_logging(settings.log_format, settings.log_level)
    settings.check_worker(roles)
    if not settings.redis_url:
        raise ConfigError("PAYWATCH_REDIS_URL is not set: without it the server runs the workers itself")
    chains = load_chains(settings.chains_file, read_environment())
    if await _done_before(stop, require_schema(settings)):
        loop_lag = LoopLag()
        async with exposed_metrics(settings, loop_lag), asyncio.TaskGroup() as group:
            lag = group.create_task(loop_lag.measure())
            await run_workers(settings, chains, settings.redis_url, roles, stop)
            lag.cancel()
    log.info("stopped")


async def _done_before(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done; a stop ends it, however long it would still wait. Raises what it raises."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            return False
        await working
        return True
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.workers", description="Run Paywatch's workers.")
    parser.add_argument("--roles", type=_roles, default=list(ROLES), help="comma-separated; default: all")
    arguments = parser.parse_args()
    configure_logging(None, "INFO")  # until the settings say how
    code = 0
    try:
        asyncio.run(_main(arguments.roles))
    except* PaywatchError as failures:
        sys.stderr.write("".join(f"{failure}\n" for failure in failures.exceptions))
        code = 1
    except* Exception as failures:  # noqa: BLE001 it is reported
        report_error(log, failures)
        code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())

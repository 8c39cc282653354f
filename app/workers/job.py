"""What all jobs have in common: a name on each log line, a duration, and an end that says what it was."""

import contextlib
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from redis.exceptions import RedisError

from app.core import metrics, pulse
from app.core.errors import PaywatchError
from app.core.logger import get_logger, report_error
from app.services.outages import is_outage

log = get_logger(__name__)

# Returns why it was put off, or None when it did its work.
Work = Callable[..., Awaitable[str | None]]
Task = Callable[..., Awaitable[None]]


def job(name: str) -> Callable[[Work], Task]:
    """Make an ARQ task of `work(ctx)` or `work(ctx, chain_name)`; when it last did its work is told to Redis.

    It raises nothing: what failed is logged, an outage in a line and anything unforeseen as a report, and the next tick
    tries again.
    """

    def decorate(work: Work) -> Task:
        @functools.wraps(work)
        async def run(ctx: dict[str, Any], *args: str) -> None:
            began, outcome = time.perf_counter(), "cancelled"
            with structlog.contextvars.bound_contextvars(task=name, **dict(zip(("chain",), args, strict=False))):
                try:
                    put_off = await work(ctx, *args)
                    outcome = "ok"
                    if put_off is None and "redis" in ctx:  # arq's own
                        with contextlib.suppress(RedisError, OSError):  # the worker that lost it says so
                            await pulse.done(ctx["redis"], name, *args or ("",))
                except Exception as error:  # noqa: BLE001 each is logged
                    foreseen = isinstance(error, PaywatchError) or is_outage(error)
                    outcome = "failed" if foreseen else "error"
                    if foreseen:
                        log.error("job failed", reason=f"{type(error).__name__}: {error}")
                    else:
                        report_error(log, error)
                finally:
                    metrics.JOB_SECONDS.labels(name, outcome).observe(time.perf_counter() - began)

        return run

    return decorate

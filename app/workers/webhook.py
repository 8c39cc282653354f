"""The webhook's task: sends what is due."""

import time
from dataclasses import dataclass
from typing import Any

import httpx
import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.core import limits
from app.core.logger import get_logger
from app.services.context import Context
from app.services.idempotency import forget_old
from app.services.webhook import send_due

log = get_logger(__name__)


@dataclass
class Sender:
    """What the tasks of one process share."""

    context: Context
    client: httpx.AsyncClient


async def send_webhook_task(ctx: dict[str, Any]) -> None:
    """Send until nothing is due, claiming nothing new after `WEBHOOK_BUDGET_S`."""
    sender: Sender = ctx["sender"]
    deadline = time.monotonic() + limits.WEBHOOK_BUDGET_S
    with structlog.contextvars.bound_contextvars(task="send_webhook_task"):
        try:
            while time.monotonic() < deadline and await send_due(sender.context, sender.client):
                pass
        except (SQLAlchemyError, OSError) as error:
            log.error("sending failed", reason=f"{type(error).__name__}: {error}")


async def housekeeping(ctx: dict[str, Any]) -> None:
    """Forget what is no longer needed: the answers of old idempotency keys."""
    sender: Sender = ctx["sender"]
    with structlog.contextvars.bound_contextvars(task="housekeeping"):
        try:
            async with sender.context.db.write() as session:
                await forget_old(session)
        except (SQLAlchemyError, OSError) as error:
            log.error("housekeeping failed", reason=f"{type(error).__name__}: {error}")

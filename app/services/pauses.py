"""Isolation switches: webhooks, sweeping, or one chain's sweeping stand still while all else goes on.

The database is asked before every claim and every signature, so a pause reaches running workers within seconds and
outlasts them. Halting a chain is `app.services.blockchain.control`.
"""

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import rfc3339, utc_now
from app.core.logger import get_logger
from app.db.models import Pause
from app.db.repositories import pauses, receivers
from app.db.repositories.pauses import SWEEPING, WEBHOOKS, sweeping_of
from app.services.context import Context
from app.services.views import View

__all__ = ["SWEEPING", "WEBHOOKS", "PauseView", "active", "list_pauses", "pause", "resume", "sweeping_of"]

log = get_logger(__name__)


class PauseView(View):
    """What stands still on an operator's word, and the command that ends it."""

    what: str
    reason: str
    paused_by: str
    since: str
    resume_command: str

    @property
    def told(self) -> str:
        """In a sentence."""
        return f"paused by {self.paused_by} since {self.since}: {self.reason}; `{self.resume_command}` ends it"


async def active(context: Context) -> dict[str, PauseView]:
    """Every pause that lasts, by what is paused."""
    async with context.db.read() as session:
        return {each.what: each for each in await list_pauses(session)}


async def list_pauses(session: AsyncSession) -> list[PauseView]:
    return [_view(row) for row in await pauses.list_pauses(session)]


async def pause(context: Context, what: str, reason: str, by: str) -> bool:
    """Pause it; False when it was paused already, and that pause stays as it is.

    Webhooks: deliveries are written and none is claimed. Sweeping: nothing is signed or broadcast any more, and what
    was is followed.
    """
    async with context.db.write() as session:
        made = await pauses.add(session, what, reason, by, utc_now())
    if made:
        log.warning("paused by an operator", what=what, reason=reason, operator=by)
    return made


async def resume(context: Context, what: str, by: str) -> bool:
    """End a pause; False when there was none. What has come due meanwhile is taken up by the workers' next turn."""
    now = utc_now()
    async with context.db.write() as session:
        ended = await pauses.remove(session, what)
        if ended is None:
            return False
        if what == WEBHOOKS:
            await receivers.forgive_pause(session, ended.since, now)
    log.warning("resumed by an operator", what=what, operator=by, paused_since=rfc3339(ended.since))
    return True


def _view(row: Pause) -> PauseView:
    return PauseView(
        what=row.what,
        reason=row.reason,
        paused_by=row.paused_by,
        since=rfc3339(row.since),
        resume_command=_resume_command(row.what),
    )


def _resume_command(what: str) -> str:
    if what == WEBHOOKS:
        return "paywatch webhooks resume"
    chain = what.removeprefix(f"{SWEEPING}:")
    return "paywatch sweep resume" if what == SWEEPING else f"paywatch sweep resume --chain {chain}"

"""What an operator has switched off for a while."""

from datetime import datetime

from sqlalchemy import String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core import limits
from app.db.base import Base
from app.db.types import UtcDateTime


class Pause(Base):
    """A row is there for as long as the pause lasts: workers ask for it before they act, so a restart changes nothing.

    A chain that stands still is `ChainState.halt_code`, not a row here.
    """

    __tablename__ = "pauses"

    # `webhooks`, `sweep` (every chain) or `sweep:<chain's name>`.
    what: Mapped[str] = mapped_column(String(80), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    # Who ran the command, as the operating system calls them.
    paused_by: Mapped[str] = mapped_column(String(limits.OPERATOR_CHARS))
    since: Mapped[datetime] = mapped_column(UtcDateTime)

"""The chains as a new payment needs them: their cursors and checked assets."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.core import limits
from app.db.engine import Database
from app.db.models import ChainState, Token
from app.db.repositories import chains


@dataclass(frozen=True, slots=True)
class Watched:
    """Cursors by chain id, and assets by chain id and address; of all chains that were ever checked."""

    cursors: Mapping[int, ChainState] = field(default_factory=dict)
    tokens: Mapping[tuple[int, bytes], Token] = field(default_factory=dict)


class WatchedBook:
    """What this process knows of the chains, read again after `WATCHED_AGE_S`.

    A cursor and an asset are never deleted, so one that is known is there. A chain that was halted since is found out
    within that time, as it is by those who wait for its cursor.
    """

    def __init__(self) -> None:
        self._watched = Watched()
        self._read_at = -math.inf

    async def find(self, db: Database, anew: bool = False) -> Watched:
        """`anew`: as it is now, for whoever would refuse a payment otherwise."""
        if anew or time.monotonic() - self._read_at > limits.WATCHED_AGE_S:
            self._read_at = time.monotonic()  # one reads, and whoever comes meanwhile takes what is known
            async with db.read() as session:
                self._watched = Watched(await chains.list_states(session), await chains.list_tokens(session))
        return self._watched

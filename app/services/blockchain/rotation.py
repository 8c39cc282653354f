"""Which chain is due to have the next addresses' balances looked at."""

import time

from app.core import limits


class Rotation:
    """Whose turn it is to have all addresses' balances looked at: each chain once in `ROTATION_EVERY_S`."""

    def __init__(self) -> None:
        self._turned_at: dict[int, float] = {}

    def is_due(self, chain_id: int) -> bool:
        return time.monotonic() - self._turned_at.get(chain_id, -limits.ROTATION_EVERY_S) >= limits.ROTATION_EVERY_S

    def turned(self, chain_id: int, turn: bool) -> None:
        if turn:
            self._turned_at[chain_id] = time.monotonic()

"""How late the event loop is: what blocks it holds up everything else of its process."""

import asyncio
import time

from app.core import limits, metrics


class LoopLag:
    """Measured from within; `stuck_s` is for another thread, which sees also what has not ended yet."""

    def __init__(self) -> None:
        self._due = time.monotonic()

    @property
    def stuck_s(self) -> float:
        """How long the loop has been held up by now."""
        return max(time.monotonic() - self._due, 0.0)

    async def measure(self) -> None:
        """Runs until cancelled."""
        while True:
            self._due = time.monotonic() + limits.LOOP_TICK_S
            await asyncio.sleep(limits.LOOP_TICK_S)
            metrics.LOOP_LAG_SECONDS.observe(self.stuck_s)

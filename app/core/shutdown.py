"""SIGTERM and SIGINT: a process ends by itself, and in time even when something will not let it."""

import asyncio
import os
import signal
import threading

from app.core import limits
from app.core.logger import get_logger

log = get_logger(__name__)


def stop_on_signals() -> asyncio.Event:
    """The event that SIGTERM and SIGINT set in the running loop.

    `SHUTDOWN_S` later the process ends wherever it is, with exit code 0: a database or a resolver that hangs holds
    connections and threads for longer than that, and work may be cut off anywhere, as by kill -9.
    """
    stop = asyncio.Event()

    def begin(name: str) -> None:
        if not stop.is_set():
            log.info("stopping", signal=name)
            stop.set()
            # A thread: the loop may be what hangs.
            timer = threading.Timer(limits.SHUTDOWN_S, _end_now)
            timer.daemon = True
            timer.start()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, begin, number.name)
    return stop


def _end_now() -> None:
    log.error("not waiting any longer for what does not answer", after_s=limits.SHUTDOWN_S)
    os._exit(0)

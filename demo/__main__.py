"""`python -m demo`. Exit code 0: every step was seen; 1: one was not, and the last line says which."""

import asyncio
import os
import signal
import sys

from demo.story import DemoError, Story
from demo.timeline import Timeline


async def run(keep: bool) -> int:
    timeline = Timeline()
    story = Story(timeline)
    task = asyncio.create_task(story.play(keep))
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()  # everything that was started is ended on the way out

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        await task
    except DemoError as error:
        timeline.fail(str(error))
        return 1
    except asyncio.CancelledError:
        if story.succeeded:
            return 0
        timeline.fail(f"stopped by {signal.Signals(received[-1]).name}")
        return 128 + received[-1]
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(run(keep=os.environ.get("KEEP", "") not in ("", "0"))))

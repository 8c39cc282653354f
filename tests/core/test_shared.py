"""Goal: however many ask, the work is done once at a time; nobody's going away or failure is anybody else's."""

import asyncio

import pytest

from app.core.shared import Shared


class Work:
    """Answers how often it was done; waits until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.begun += 1
        done = self.begun
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return done


async def test_all_who_ask_meanwhile_get_one_answer_and_it_is_kept() -> None:
    work = Work()
    shared = Shared(work, keep_s=3_600.0)
    asking = [asyncio.create_task(shared.get()) for _ in range(50)]
    await asyncio.sleep(0)
    work.go.set()
    assert set(await asyncio.gather(*asking)) == {1}
    assert await shared.get() == 1
    shared.keep_s = 0.0
    assert (await shared.get(), await shared.get()) == (2, 3)


async def test_whoever_goes_away_takes_it_from_nobody() -> None:
    work = Work()
    shared = Shared(work, keep_s=3_600.0)
    first, second = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    work.go.set()
    assert await second == 1


async def test_a_failure_is_for_those_who_waited() -> None:
    work = Work()
    work.error = OSError("away")
    shared = Shared(work, keep_s=3_600.0)
    asking = [asyncio.create_task(shared.get()) for _ in range(5)]
    await asyncio.sleep(0)
    work.go.set()
    assert {type(each) for each in await asyncio.gather(*asking, return_exceptions=True)} == {OSError}
    work.error = None
    assert await shared.get() == 2


async def test_what_is_being_made_ends_with_it() -> None:
    work = Work()
    shared = Shared(work, keep_s=3_600.0)
    asking = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    await shared.close()
    with pytest.raises(asyncio.CancelledError):
        await asking

"""Time that only the simulation moves, and turns that only it gives: a run depends on its seed and on nothing else."""

import asyncio
import contextlib
import datetime as real_datetime
import math
import random
import selectors
import sys
import time as real_time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiosqlite

from app.core import clock as app_clock
from app.core import ids as app_ids

EPOCH = 1_750_000_000
real_sleep = asyncio.sleep


class _Selector(selectors.DefaultSelector):
    """Says when the loop has nothing to do: loopback sockets are as quick as a call, and there are no threads."""

    def __init__(self) -> None:
        super().__init__()
        self.when_idle: Callable[[], bool] = lambda: False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0) or self.when_idle():
            return events
        return super().select(timeout)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A loop whose time stands still but for what `Clock.wait` adds: a timeout of ten seconds takes none of ours."""

    skipped = 0.0

    def __init__(self) -> None:
        self._idle = _Selector()
        super().__init__(self._idle)

    def when_idle(self, call: Callable[[], bool]) -> None:
        """Call this whenever nothing is left to be done; it tells whether it made something."""
        self._idle.when_idle = call

    def time(self) -> float:
        return self.skipped

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At once and here: a thread would make runs differ. web3 takes a lock so, for each request."""
        future = self.create_future()
        future.set_result(func(*args))
        return future


class Clock:
    """Seconds since the run began. Nodes, chain, gateway and timers of the loop live by it."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.elapsed = 0.0
        self._loop = loop
        loop.skipped = float(math.ceil(loop.skipped))  # aiohttp rounds timeouts up to whole seconds of the loop's time

    @property
    def unix(self) -> int:
        return EPOCH + int(self.elapsed)

    @property
    def now(self) -> real_datetime.datetime:
        return real_datetime.datetime.fromtimestamp(EPOCH, real_datetime.UTC) + real_datetime.timedelta(
            seconds=self.elapsed
        )

    def advance(self, seconds: float) -> None:
        """Let time pass between two things that happen."""
        self.elapsed += seconds

    async def wait(self, seconds: float) -> None:
        """Let time pass for those who wait for it: timers of the loop that are due by then fire now."""
        self.elapsed += seconds
        self._loop.skipped += seconds
        for _ in range(3):
            await real_sleep(0)


@contextlib.contextmanager
def simulated_time(clock: Clock, rng: random.Random) -> Iterator[None]:
    """Put the simulation's clock, sleep and randomness in the place of the real ones that `app` looks at."""

    async def sleep(delay: float, result: Any = None) -> Any:
        if delay > 0:
            await clock.wait(delay)
        else:
            await real_sleep(0)
        return result

    shim = SimpleNamespace(
        monotonic=lambda: 1_000.0 + clock.elapsed,
        perf_counter=lambda: 1_000.0 + clock.elapsed,
        time=lambda: EPOCH + clock.elapsed,
        time_ns=lambda: int((EPOCH + clock.elapsed) * 1e9),
        sleep=real_time.sleep,
    )
    moments = SimpleNamespace(
        now=lambda _zone=None: clock.now, fromtimestamp=real_datetime.datetime.fromtimestamp, strptime=None
    )
    patches: list[tuple[Any, str, Any]] = [
        (asyncio, "sleep", sleep),
        (app_clock, "datetime", moments),
        (app_ids, "secrets", SimpleNamespace(randbits=rng.getrandbits)),
    ]
    for name, module in list(sys.modules.items()):
        if name.startswith("app.") and getattr(module, "time", None) is real_time:
            patches.append((module, "time", shim))
        if name.startswith("app.") and getattr(module, "monotonic", None) is real_time.monotonic:
            patches.append((module, "monotonic", shim.monotonic))
    saved = [(target, name, getattr(target, name)) for target, name, _ in patches]
    state = random.getstate()
    random.seed(rng.random())
    for target, name, value in patches:
        setattr(target, name, value)
    try:
        yield
    finally:
        for target, name, value in saved:
            setattr(target, name, value)
        random.setstate(state)


@contextlib.contextmanager
def sqlite_on_the_loop() -> Iterator[None]:
    """Let SQLite's calls run where they are awaited: the thread that aiosqlite gives them makes runs differ, and slow.

    Where a call may be interrupted is for `Worker` to say, before and after each statement.
    """
    real = aiosqlite.Connection.__await__

    def connect(self: aiosqlite.Connection) -> Generator[Any, None, aiosqlite.Connection]:
        self._tx = _AtOnce()  # type: ignore[assignment]
        return self._connect().__await__()

    aiosqlite.Connection.__await__ = connect  # type: ignore[method-assign]
    try:
        yield
    finally:
        aiosqlite.Connection.__await__ = real  # type: ignore[method-assign]


class _AtOnce:
    """In the place of the queue to aiosqlite's thread: what is put in is done."""

    def put_nowait(self, item: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        future, function = item
        future = future or asyncio.get_running_loop().create_future()
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 (it is for who waits)
            future.set_exception(error)


@dataclass(eq=False)
class _Waiting:
    actor: object
    name: str
    future: asyncio.Future[None]
    wants_to_write: bool


@dataclass(eq=False)
class Turns:
    """Lets one await after another end, chosen by the seed, each when all that followed from the last one is done.

    Who wants to begin a writing transaction on SQLite while another has one is not chosen: there it would wait. On
    PostgreSQL, where a lock is waited for in the server, the turns are the server's to give (`free`).
    """

    rng: random.Random
    free: bool = False
    writer: object | None = None
    _waiting: list[_Waiting] = field(default_factory=list)

    async def turn(self, actor: object, name: str, wants_to_write: bool = False) -> None:
        if self.free:
            for _ in range(self.rng.randrange(3)):
                await real_sleep(0)
            return
        waiting = _Waiting(actor, name, asyncio.get_running_loop().create_future(), wants_to_write)
        self._waiting.append(waiting)
        try:
            await waiting.future
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def release_writer(self, actor: object) -> None:
        if self.writer is actor:
            self.writer = None

    def choose(self) -> bool:
        """End one await. False when nobody waits who may go on."""
        able = [each for each in self._waiting if not (each.wants_to_write and self.writer not in (None, each.actor))]
        if not able:
            return False
        # Who came first is a matter of sockets, so it must not matter.
        chosen = self.rng.choice(sorted(able, key=lambda each: each.name))
        self._waiting.remove(chosen)
        if not chosen.future.done():
            chosen.future.set_result(None)
        return True

"""Goal: what is read when somebody looks is what there is then, summed over the process; a lag is seen."""

import asyncio
import gc
import time
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from app.core import metrics
from app.core.loop_lag import LoopLag
from tests.support.exposition import counted


class Pond:
    def __init__(self, ducks: int) -> None:
        self.ducks = ducks

    def count(self) -> Iterator[metrics.Sample]:
        yield ("here",), self.ducks


@pytest.fixture
def ducks() -> Iterator[metrics.Live]:
    live = metrics.Live("test_ducks", "Ducks.", "where")
    yield live
    metrics.REGISTRY.unregister(live)


def test_a_live_metric_is_read_anew_and_summed(ducks: metrics.Live) -> None:
    one, two = Pond(1), Pond(2)
    for pond in (one, two):
        ducks.watch(pond.count)
    assert counted("paywatch_test_ducks", where="here") == 3
    two.ducks = 5
    assert counted("paywatch_test_ducks", where="here") == 6


def test_a_live_metric_can_be_that_of_the_fullest() -> None:
    live = metrics.Live("test_fullest", "Ducks.", "where", join=max)
    try:
        ponds = [Pond(2), Pond(5), Pond(1)]
        for pond in ponds:
            live.watch(pond.count)
        assert counted("paywatch_test_fullest", where="here") == 5
    finally:
        metrics.REGISTRY.unregister(live)


def test_a_live_metric_keeps_nothing_alive(ducks: metrics.Live) -> None:
    one, two = Pond(1), Pond(2)
    for pond in (one, two):
        ducks.watch(pond.count)
    del two, pond
    gc.collect()
    assert counted("paywatch_test_ducks", where="here") == 1


def test_a_chains_counters_begin_at_zero() -> None:
    metrics.known_chain("a chain of this test")
    text = generate_latest(metrics.REGISTRY).decode()
    for name in ("blocks_scanned_total", "transfers_total", "reorg_depth_blocks_count"):
        assert f'paywatch_{name}{{chain="a chain of this test"}} 0.0' in text


async def test_a_blocked_loop_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by two seconds while the measuring task sleeps: as if something had blocked for as long."""
    moments = iter([100.0, 102.25])
    slept = asyncio.Event()

    async def sleep(_: float) -> None:
        if slept.is_set():
            raise asyncio.CancelledError
        slept.set()

    lag = LoopLag()
    before = counted("paywatch_event_loop_lag_seconds_sum")
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        patched.setattr(time, "monotonic", lambda: next(moments, 200.0))
        with pytest.raises(asyncio.CancelledError):
            await lag.measure()
    assert counted("paywatch_event_loop_lag_seconds_sum") - before == pytest.approx(2.0)

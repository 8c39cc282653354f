"""Goal: a node whose head stands still keeps neither the chain nor anybody's money, and an idle chain stays well."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.core import limits
from app.services.status import ChainView, list_chains
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.watch import Watch
from tests.support.anvil import Anvil
from tests.support.node import Call, ProxyNode, result


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    """A chain whose blocks are an hour old as soon as they are mined."""
    async with Anvil(extra_args=["--timestamp", str(int(time.time()) - 3600)]) as node:
        yield node


@pytest.fixture(autouse=True)
def long_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that failed is not tried again while the test lasts."""
    monkeypatch.setattr(limits, "BREAKER_MIN_S", 600.0)
    monkeypatch.setattr(limits, "BREAKER_MAX_S", 600.0)


class Frozen(ProxyNode):
    """From freeze() on its newest block stays what it was."""

    async def freeze(self, anvil: Anvil) -> None:
        block = await anvil.block("latest")

        def change(call: Call, answer: Call) -> Call:
            return result(call, block) if call["params"][:1] == ["latest"] else answer

        self.change = change


@asynccontextmanager
async def before(opened: OpenWatch, anvil: Anvil) -> AsyncIterator[tuple[Watch, Frozen, ProxyNode]]:
    """A chain with two endpoints, of which the preferred one can be frozen."""
    async with (
        Frozen(anvil.url) as frozen,
        ProxyNode(anvil.url) as other,
        opened(rpc_urls=[frozen.url, other.url]) as watch,
    ):
        await watch.mine_and_scan()
        yield watch, frozen, other


async def chain_view(watch: Watch) -> ChainView:
    async with watch.context.db.read() as session:
        [view] = await list_chains(watch.context, session)
    return view


async def test_what_was_paid_while_the_preferred_node_stood_still_does_not_expire(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison that found nothing is over by the time that anything could expire."""
    async with before(opened, anvil) as (watch, frozen, _):
        payment = await watch.create()
        await frozen.freeze(anvil)
        await watch.scan()
        await watch.pay(payment)
        await anvil.mine()
        await watch.expire_at(payment, seconds_ago=31)
        monkeypatch.setattr(limits, "HEAD_COMPARE_EVERY_S", 0.0)  # as if so long had passed
        outcome = await watch.step()
        assert "s old, and http://127.0.0.1" in (outcome.problem or "")
        await watch.scan()
        assert await watch.told(payment) == "created detected"


async def test_a_node_that_stands_still_on_a_lost_fork_undoes_nothing(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEAD_COMPARE_EVERY_S", 0.0)
    async with before(opened, anvil) as (watch, frozen, _):
        await frozen.freeze(anvil)
        await anvil.reorg(1)
        await anvil.mine()
        async with opened(rpc_urls=[anvil.url]) as elsewhere:
            await elsewhere.scan()  # another worker, which the frozen node has not served
        stored = await watch.dump()
        outcome = await watch.step()
        assert "s old, and http://127.0.0.1" in (outcome.problem or "")
        assert await watch.dump() == stored


async def test_comparing_costs_a_call_now_and_then_and_an_idle_chain_expires_what_it_has(
    opened: OpenWatch, anvil: Anvil
) -> None:
    async with before(opened, anvil) as (watch, _, other):
        payment = await watch.create()
        for _ in range(5):
            await watch.step()
        assert len(other.calls("eth_getBlockByNumber")) == 1
        await watch.expire_at(payment, seconds_ago=31)
        await watch.scan()
        assert await watch.told(payment) == "created expired"
        assert len(other.calls("eth_getBlockByNumber")) == 1


async def test_a_node_that_cannot_be_compared_with_is_no_reason_to_stop(opened: OpenWatch, anvil: Anvil) -> None:
    async with before(opened, anvil) as (watch, _, other), opened(rpc_urls=[anvil.url, other.url]) as restarted:
        await other.stop()
        await restarted.scan()
        await watch.mine_and_scan()


async def test_a_young_head_is_compared_with_none(opened: OpenWatch) -> None:
    async with (
        Anvil() as young,
        ProxyNode(young.url) as other,
        opened(rpc_urls=[young.url, other.url], tokens={}) as watch,
    ):
        await young.mine()
        await watch.scan()
        assert other.calls("eth_getBlockByNumber") == []


async def test_the_only_node_that_stands_still_expires_nothing_and_is_told(opened: OpenWatch, anvil: Anvil) -> None:
    """On a chain that never rests the head is old: nobody knows what was paid since."""
    async with opened(max_head_age=180) as watch:
        payment = await watch.create()
        await watch.mine_and_scan()
        await watch.expire_at(payment, seconds_ago=31)
        await watch.scan()
        assert await watch.told(payment) == "created"
        view = await chain_view(watch)
        assert (view.state, view.lag_blocks) == ("lagging", 0)
        assert 3_000 < (view.lag_seconds or 0) < 4_000
        assert "the newest block of its nodes" in (view.reason or "")
        await anvil.increase_time(3600)  # it goes on
        await watch.mine_and_scan()
        assert await watch.told(payment) == "created expired"
        assert (await chain_view(watch)).state == "ok"


async def test_a_chain_that_may_rest_is_well_however_old_its_newest_block_is(opened: OpenWatch, anvil: Anvil) -> None:
    async with opened() as watch:
        await watch.mine_and_scan()
        view = await chain_view(watch)
        assert (view.state, view.lag_seconds, view.reason) == ("ok", 0.0, None)

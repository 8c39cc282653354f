"""Goal: a block is final when our own chain proves it, and not because somebody behind the node's URL names its height.

The URL belongs to a balancer before two nodes, one of which may be on a branch that lost to what is final.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from app.core import limits
from app.db.models import BlockHeader
from app.services.views import PaymentView
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.watch import Watch
from tests.support.anvil import Anvil
from tests.support.node import Balancer

BY_TAG = "{tag: finalized}"


@dataclass
class Branches:
    """Two branches from block `fork` on, the cursor at it. Each pays another payment in its first block."""

    watch: Watch
    balancer: Balancer
    main: Anvil
    lost: Anvil
    fork: int
    paid: PaymentView
    paid_on_lost: PaymentView

    @property
    def is_open(self) -> bool:
        """Whether the balancer rests."""
        return self.watch.context.nodes.nodes(self.watch.chain).states()[0][1] == "open"

    async def mine(self, main: int, lost: int) -> None:
        await self.watch.pay(self.paid)
        await self.lost.send_ether(2, self.paid_on_lost.address, int(self.paid_on_lost.amount_units))
        await self.main.mine(main)
        await self.lost.mine(lost)

    async def finalized(self) -> int:
        """Blocks above the fork that we take for final."""
        return (await self.watch.state()).finalized_block - self.fork

    async def refused(self, words: str) -> None:
        """A step must write nothing and say why."""
        before = await self.watch.dump()
        outcome = await self.watch.step()
        assert outcome.problem is not None
        assert words in outcome.problem
        assert not outcome.progressed
        assert await self.watch.dump() == before


@pytest.fixture
def branches(opened: OpenWatch, anvil: Anvil) -> Any:
    @asynccontextmanager
    async def open_branches(**changed: Any) -> AsyncIterator[Branches]:
        fork = await anvil.mine(3)
        extra_args = ["--fork-url", anvil.url, "--fork-block-number", str(fork)]
        async with (
            Anvil(extra_args=extra_args) as lost,
            Balancer(anvil, fork - 1) as balancer,
            opened(rpc_urls=[balancer.url], **({"finality": BY_TAG} | changed)) as watch,
        ):
            paid, paid_on_lost = [await watch.create("ETH", confirmations_required=1) for _ in range(2)]
            yield Branches(watch, balancer, anvil, lost, fork, paid, paid_on_lost)
            await watch.audit()

    return open_branches


async def test_a_range_that_holds_another_block_at_the_final_height_is_refused(branches: Any) -> None:
    async with branches() as it:
        await it.mine(10, 10)
        it.balancer.final_height, it.balancer.blocks = it.fork + 10, it.lost
        await it.refused("another one is final")
        assert it.is_open
        it.balancer.blocks = it.main
        await it.watch.scan()
        assert await it.watch.told(it.paid) == "created detected confirmed settled"
        assert await it.watch.told(it.paid_on_lost) == "created"
        assert await it.finalized() == 10


async def test_a_range_below_the_final_height_proves_nothing_and_can_be_undone(branches: Any) -> None:
    async with branches(block_batch_size=4) as it:
        await it.mine(12, 12)
        before = await it.finalized()
        it.balancer.final_height, it.balancer.blocks = it.fork + 12, it.lost
        for _ in range(2):
            await it.watch.step()
        it.watch.context.ahead.close()  # as a restart would: the next range is asked for anew
        assert (await it.watch.get(it.paid_on_lost)).status == "confirmed"
        assert await it.finalized() == before
        it.balancer.blocks = it.main
        await it.watch.scan()
        assert await it.watch.told(it.paid_on_lost) == "created detected confirmed reverted"
        assert await it.watch.told(it.paid) == "created detected confirmed settled"
        assert ((await it.watch.state()).halt_code, await it.finalized()) == (None, 12)


async def test_another_final_block_under_the_cursor_is_a_fork_to_be_undone(branches: Any) -> None:
    async with branches() as it:
        await it.mine(8, 6)
        it.balancer.head = it.balancer.blocks = it.lost
        await it.watch.scan()
        assert (await it.watch.get(it.paid_on_lost)).status == "confirmed"
        it.balancer.head = it.balancer.blocks = it.main
        it.balancer.final_height = it.fork + 5
        await it.watch.step()
        assert (await it.watch.state()).last_scanned_block == it.fork
        await it.watch.scan()
        assert await it.watch.told(it.paid_on_lost) == "created detected confirmed reverted"
        assert await it.watch.told(it.paid) == "created detected confirmed settled"
        assert ((await it.watch.state()).halt_code, await it.finalized()) == (None, 5)


async def test_a_node_that_contradicts_the_cursor_and_has_it_is_refused(branches: Any) -> None:
    """Its final block is of the one branch, the others are of ours: nothing is final, nothing undone, and it rests."""
    async with branches() as it:
        await it.mine(8, 6)
        it.balancer.head = it.balancer.blocks = it.lost
        await it.watch.scan()
        await it.lost.mine(2)
        it.balancer.final_height = it.fork + 5
        await it.refused(f"contradicts block {it.fork + 6} and has it")
        assert it.is_open
        assert await it.watch.told(it.paid_on_lost) == "created detected confirmed"
        it.balancer.head = it.balancer.blocks = it.main
        await it.watch.scan()


async def test_depth_is_that_of_our_own_chain_and_not_of_the_nodes_head(branches: Any) -> None:
    async with branches(finality={"depth": 5}, block_batch_size=2) as it:
        await it.mine(20, 20)
        it.balancer.blocks = it.lost
        for _ in range(2):
            await it.watch.step()
        it.watch.context.ahead.close()
        assert (await it.watch.get(it.paid_on_lost)).status == "confirmed"
        assert await it.finalized() == -1
        it.balancer.blocks = it.main
        await it.watch.scan()
        assert await it.watch.told(it.paid_on_lost) == "created detected confirmed reverted"
        assert await it.watch.told(it.paid) == "created detected confirmed settled"
        assert await it.finalized() == 15


async def test_a_node_left_on_a_branch_that_lost_to_what_is_final_halts_nothing(branches: Any) -> None:
    """It is longer than ours, but calls nothing of its own final; once it does, that is a fork below finality."""
    async with branches() as it:
        await it.mine(8, 10)
        it.balancer.final_height = it.fork + 6
        await it.watch.scan()
        assert await it.finalized() == 6
        it.balancer.head = it.balancer.blocks = it.balancer.final = it.lost
        it.balancer.final_height = it.fork
        for _ in range(3):
            await it.refused("left our branch")
        it.balancer.head = it.balancer.blocks = it.balancer.final = it.main
        it.balancer.final_height = it.fork + 7
        await it.main.mine()
        await it.watch.scan()
        assert await it.finalized() == 7
        it.balancer.head = it.balancer.blocks = it.balancer.final = it.lost
        await it.watch.step()
        assert (await it.watch.state()).halt_code == "reorg"
        it.balancer.head = it.balancer.blocks = it.balancer.final = it.main


async def test_by_depth_too_a_shorter_branch_halts_nothing(branches: Any) -> None:
    async with branches(finality={"depth": 2}) as it:
        await it.mine(8, 7)
        await it.watch.scan()
        assert await it.finalized() == 6
        it.balancer.head = it.balancer.blocks = it.lost
        await it.refused("left our branch")
        assert (await it.watch.state()).halt_code is None


async def test_a_long_catch_up_keeps_no_more_headers_than_the_window(
    branches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is final is known at its end only; until then the node's word is good enough to throw headers away."""
    monkeypatch.setattr(limits, "HEADER_WINDOW_BLOCKS", 6)
    async with branches(block_batch_size=5) as it:
        await it.mine(30, 1)
        before = await it.finalized()
        it.balancer.final_height = it.fork + 30
        for steps in range(1, 6):
            await it.watch.step()
            assert await it.finalized() == before
            heights = [header.number - it.fork for header in await it.watch.rows(BlockHeader)]
            assert sorted(heights) == list(range(max(5 * steps - 6, 0), 5 * steps + 1))
        await it.watch.scan()
        assert await it.finalized() == 30
        assert await it.watch.told(it.paid) == "created detected confirmed settled"


async def test_a_cursor_that_began_on_a_lost_branch_at_the_final_height_begins_anew(
    opened: OpenWatch, anvil: Anvil
) -> None:
    """A fork below the first block scanned restarts by height, so it may restart on the wrong branch, and once more."""
    fork = await anvil.mine(3)
    extra_args = ["--fork-url", anvil.url, "--fork-block-number", str(fork)]
    async with Anvil(extra_args=extra_args) as lost, Balancer(anvil, fork) as balancer:
        await lost.send_ether(1, anvil.accounts[2], 1)
        await lost.mine(3)
        await anvil.mine(9)
        balancer.blocks = lost
        async with opened(rpc_urls=[balancer.url], finality=BY_TAG, start_block=fork + 3) as watch:
            async with watch.context.db.write() as session:
                state = await session.merge(await watch.state())
                state.finalized_block = fork + 2  # where such a restart leaves it
            balancer.blocks, balancer.final_height = anvil, fork + 5
            await watch.scan()
            await watch.anvil.mine()
            await watch.scan()
            state = await watch.state()
            assert (state.first_block, state.finalized_block) == (fork + 2, fork + 5)
            for header in await watch.rows(BlockHeader):
                assert "0x" + header.hash.hex() == (await anvil.block(header.number))["hash"]
            await watch.audit()


async def test_to_know_what_is_final_costs_one_request_a_step(branches: Any, requests: Requests) -> None:
    async with branches() as it:
        await it.mine(3, 1)
        await it.watch.scan()
        await it.main.mine()
        it.balancer.final_height = it.fork + 2
        requests.bodies.clear()
        await it.watch.step()
        assert await it.finalized() == 2
        methods = [[call["method"], len(body)] for body in requests.bodies for call in body[:1]]
        assert methods == [["eth_getBlockByNumber", 1]] * 3 + [["eth_getLogs", 1]]

"""Goal: an isolation switch reaches workers that run, stops what it names, and nothing else."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from sqlalchemy import func, select

from app.core.chains import ChainsFile
from app.db.models import ChainState, WebhookDelivery
from app.services import pauses
from app.services.blockchain import control
from app.services.gateway import Gateway
from app.workers.runner import run_workers
from tests.support.anvil import Anvil
from tests.support.gateway import chains_of, client_of, create_payment, open_gateway, running_devnet
from tests.support.receiver import Receiver

DEADLINE_S = 90.0


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await done():
            await asyncio.sleep(0.05)


async def cursors(gateway: Gateway) -> dict[str, int]:
    async with gateway.context.db.read() as session:
        return {state.name: state.last_scanned_block for state in await session.scalars(select(ChainState))}


async def delivered(gateway: Gateway) -> int:
    async with gateway.context.db.read() as session:
        query = select(func.count()).where(WebhookDelivery.status == "delivered")
        return await session.scalar(query) or 0


@pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # of arq, when a worker ends
async def test_one_chain_and_the_webhooks_stand_still_while_the_other_chain_goes_on(
    db_url: str, redis_url: str, receiver: Receiver
) -> None:
    async with running_devnet() as first, Anvil(chain_id=31338) as second:
        one = first.chain()
        two = first.chain(name="second", chain_id=31338, rpc_urls=(second.url,), tokens=())
        async with open_gateway(db_url, redis_url, one, two) as gateway, client_of(gateway) as client:
            await _story(gateway, client, first.anvil, second, chains_of(one, two), redis_url, receiver)


async def _story(
    gateway: Gateway,
    client: httpx.AsyncClient,
    first: Anvil,
    second: Anvil,
    chains: ChainsFile,
    redis_url: str,
    receiver: Receiver,
) -> None:
    context, stop = gateway.context, asyncio.Event()
    one, two = chains.enabled
    workers = asyncio.create_task(run_workers(context.settings, chains, redis_url, ["listener", "webhook"], stop))
    try:
        for node in (first, second):
            await node.mine()
        heads = {
            one.name: int((await first.block())["number"], 16),
            two.name: int((await second.block())["number"], 16),
        }
        await until(lambda: _equals(cursors(gateway), heads))

        await control.halt(context, one, "its node moves", "op")
        await pauses.pause(context, pauses.WEBHOOKS, "the receiver moves", "op")
        await create_payment(client, chain="second", token="ETH", webhook_url=receiver.url)
        for node in (first, second):
            await node.mine()
        await until(lambda: _equals(cursors(gateway), {one.name: heads[one.name], two.name: heads[two.name] + 1}))
        assert (await delivered(gateway), receiver.requests) == (0, [])

        found = await control.find_resumption(context, one)
        assert found is not None
        await control.resume(context, one, found, "op")
        await pauses.resume(context, pauses.WEBHOOKS, "op")
        await until(lambda: _equals(cursors(gateway), {name: number + 1 for name, number in heads.items()}))
        await until(lambda: _equals(delivered(gateway), 1))
    finally:
        stop.set()
        await workers


async def _equals(found: Awaitable[object], wanted: object) -> bool:
    return await found == wanted

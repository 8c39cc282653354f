"""Webhooks of a real installation: whatever is killed, emptied or down meanwhile, every event arrives under one id."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import h11
import pytest
import redis.asyncio as redis_client

from tests.e2e.conftest import Devnet
from tests.e2e.harness import DEADLINE_S, START_S, TAKEOVER_S, WEBHOOK_SECRET, House, until
from tests.support.receiver import Receiver, Reply
from tests.support.redis import RedisServer


class DeadlyReceiver(Receiver):
    """Kills the worker that sends to it, `deaths` times: after the request, before its answer can be recorded."""

    def __init__(self, house: House, deaths: int) -> None:
        super().__init__(WEBHOOK_SECRET)
        self._house = house
        self._deaths = deaths

    async def _record(self, head: h11.Request, body: bytes) -> Reply:
        reply = await super()._record(head, body)
        if self._deaths:
            self._deaths -= 1
            for worker in self._house.workers:
                worker.kill()
        return reply


@dataclass
class Shop:
    house: House
    redis: RedisServer


@pytest.fixture
async def shop(database_url: str, redis_server: RedisServer, redis_url: str, devnet: Devnet) -> AsyncIterator[Shop]:
    """A server and workers, on SQLite and on PostgreSQL."""
    house = House(devnet.chains_yaml(), database_url=database_url, redis_url=redis_url)
    try:
        await house.migrate()
        await house.start()
        yield Shop(house, redis_server)
    finally:
        await house.close()


async def start_sender(house: House) -> None:
    worker = house.run("-m", "app.workers", "--roles", "webhook")
    house.workers.append(worker)

    async def started() -> bool:
        return "workers started" in worker.output

    await until(started, "the worker's start", START_S)


@pytest.mark.slow
async def test_kills_between_send_and_record_an_emptied_redis_and_a_receiver_that_is_down_lose_nothing(
    shop: Shop,
) -> None:
    house = shop.house
    async with DeadlyReceiver(house, deaths=1) as receiver:
        url = receiver.url
        made = [(await house.create("ETH", "1", webhook_url=url))["id"] for _ in range(3)]
        await start_sender(house)
        await receiver.wait_for_count(1, DEADLINE_S)
        await until(_all_ended(house), "the worker's death", DEADLINE_S)
        first = receiver.requests[0].webhook_id

        await receiver.stop()  # and it is down, and Redis forgets everything
        async with redis_client.Redis.from_url(shop.redis.url) as client:
            await client.flushall()
        made += [(await house.create("ETH", "1", webhook_url=url))["id"] for _ in range(3)]
        await start_sender(house)

        async def a_failure() -> bool:
            data = (await house.get("/v1/webhook_deliveries", limit=100))["data"]
            return any(each["attempts"] and each["attempts"][-1]["error"] == "connect_failed" for each in data)

        await until(a_failure, "an attempt that found nobody", DEADLINE_S)
        await receiver.start()

        requests = await receiver.wait_for(
            lambda them: {it.payload["data"]["id"] for it in them} >= set(made), TAKEOVER_S
        )
        await until(_all_delivered(house, len(made)), "everything to be recorded", TAKEOVER_S)
    assert all(request.verified for request in requests)
    deliveries = (await house.get("/v1/webhook_deliveries", limit=100))["data"]
    ids = {each["payment_id"]: each["event_id"] for each in deliveries}
    assert {request.payload["data"]["id"]: request.webhook_id for request in receiver.requests} == ids
    assert all(request.webhook_id == ids[request.payload["data"]["id"]] for request in receiver.requests)
    assert [request.webhook_id for request in receiver.requests].count(first) >= 2  # what was not recorded came again


@pytest.mark.slow
async def test_a_worker_that_is_told_to_stop_gives_its_deliveries_to_the_next_one(shop: Shop) -> None:
    house = shop.house
    async with Receiver(WEBHOOK_SECRET) as receiver:
        receiver.answer(Reply(hangs=True))
        await house.create("ETH", "1", webhook_url=receiver.url)
        await start_sender(house)
        await receiver.wait_for_count(1, DEADLINE_S)
        [worker] = house.workers
        worker.send(signal.SIGTERM)
        assert await worker.ended(DEADLINE_S) == 0
        # Its lease would have lasted as long as a whole attempt and more.
        await start_sender(house)
        await receiver.wait_for_count(2, DEADLINE_S)
        await until(_all_delivered(house, 1), "the delivery", DEADLINE_S)
        [delivery] = (await house.get("/v1/webhook_deliveries"))["data"]
        assert delivery["attempt_count"] == 1  # the one that was broken off was none


def _all_ended(house: House) -> Callable[[], Awaitable[bool]]:
    async def ended() -> bool:
        return not any(worker.is_running for worker in house.workers)

    return ended


def _all_delivered(house: House, count: int) -> Callable[[], Awaitable[bool]]:
    async def delivered() -> bool:
        data = (await house.get("/v1/webhook_deliveries", limit=100, status="delivered"))["data"]
        return len(data) == count

    return delivered

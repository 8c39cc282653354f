"""Goal: storage that comes and goes under load, or a signal, costs waiting: no answer is wrong, nothing is lost."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import pytest

from tests.e2e.conftest import Devnet, deploy
from tests.e2e.harness import API_KEY, DEADLINE_S, POLL_S, STOP_S, WEBHOOK_SECRET, House, soon, until
from tests.support.anvil import Anvil
from tests.support.postgres import Postgres
from tests.support.receiver import Receiver
from tests.support.redis import RedisServer

BUYERS = 6  # at once; each orders again as soon as it has an answer
ORDERS_MAX = 3_000


@dataclass
class Load:
    """Buyers that order without a pause, with an order_id and an Idempotency-Key each, and what they were answered."""

    house: House
    payments: dict[str, dict[str, Any]] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _next: int = 0

    async def buy(self, client: httpx.AsyncClient, order_id: str) -> None:
        body = {"chain": "devnet", "token": "ETH", "amount": "1", "order_id": order_id}
        self.unanswered.add(order_id)
        try:
            answer = await client.post("/v1/payments", json=body, headers={"Idempotency-Key": order_id})
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return
        self.answers[str(answer.status_code)] += 1
        if answer.status_code == 201:
            self.payments[order_id] = answer.json()
            self.unanswered.discard(order_id)
        elif answer.status_code != 503 or answer.headers["content-type"] != "application/problem+json":
            self.wrong.append(f"{answer.status_code} {answer.text}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(
            base_url=self.house.url, headers=headers, timeout=120.0, trust_env=False
        ) as client:
            stop = asyncio.Event()
            tasks = [asyncio.create_task(self._buyer(client, stop)) for _ in range(BUYERS)]
            try:
                yield
            finally:
                stop.set()
                await asyncio.gather(*tasks)

    async def has(self, more: Callable[[Counter[str]], bool], what: str) -> None:
        await until(lambda: soon(more(self.answers)), what, DEADLINE_S)

    async def settle_up(self) -> None:
        """Ask again for every order without an answer, as a storefront does: each ends with one payment."""
        for order_id in sorted(self.unanswered):
            await self.buy(self.house.client, order_id)
        assert not self.wrong
        assert not self.unanswered
        for order_id, payment in self.payments.items():
            page = await self.house.get("/v1/payments", order_id=order_id)
            assert [each["id"] for each in page["data"]] == [payment["id"]], order_id

    async def _buyer(self, client: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set() and self._next < ORDERS_MAX:
            self._next += 1
            before = len(self.unanswered)
            await self.buy(client, f"L-{self._next:05d}")
            if len(self.unanswered) > before:
                await asyncio.sleep(POLL_S)  # as a buyer would, it does not hammer a shop that is closed


@dataclass
class Shop:
    house: House
    devnet: Devnet
    redis: RedisServer
    postgres: Postgres
    receiver: Receiver

    async def pays(self, payment: dict[str, Any]) -> None:
        """Paid, and mined deep enough to be confirmed."""
        await self.devnet.pay(payment)
        await self.devnet.anvil.mine(2)

    async def is_confirmed_and_told(self, payments: list[dict[str, Any]]) -> None:
        for payment in payments:
            await self.house.reaches(payment["id"], "confirmed")
        wanted = {(payment["id"], "payment.confirmed") for payment in payments}
        await self.receiver.wait_for(
            lambda them: {(it.payload["data"]["id"], it.payload["type"]) for it in them if it.verified} >= wanted,
            DEADLINE_S,
        )


@pytest.fixture
async def shop(postgres: Postgres) -> AsyncIterator[Shop]:
    if postgres.is_external:
        pytest.skip("that server is not ours to stop")
    postgres.start()
    async with Anvil() as anvil, RedisServer() as redis, Receiver(WEBHOOK_SECRET) as receiver:
        devnet = await deploy(anvil)
        url = await postgres.create_database()
        house = House(devnet.chains_yaml(), database_url=url, redis_url=redis.url, RATE_LIMIT="")
        try:
            await house.migrate()
            await house.start(workers=1)
            yield Shop(house, devnet, redis, postgres, receiver)
        finally:
            await house.close()
            postgres.start()


async def test_postgresql_and_redis_may_stop_and_start_under_load(shop: Shop) -> None:
    """One order is paid, and mined deep enough, while PostgreSQL is away, another while Redis is."""
    load, house = Load(shop.house), shop.house
    paid = [await house.create("ETH", "1", webhook_url=shop.receiver.url) for _ in range(2)]
    async with load.running():
        await load.has(lambda answers: answers["201"] >= BUYERS, "orders before")
        shop.postgres.interrupt()
        await shop.pays(paid[0])
        await load.has(lambda answers: answers["503"] >= BUYERS, "refusals while PostgreSQL is away")
        shop.redis.stop()
        shop.postgres.start()
        await shop.pays(paid[1])
        made = load.answers["201"]
        await load.has(lambda answers: answers["201"] >= made + BUYERS, "orders while Redis is away")
        await shop.redis.start()
        made = load.answers["201"]
        await load.has(lambda answers: answers["201"] >= made + BUYERS, "orders after")
    await load.settle_up()
    assert set(load.answers) <= {"201", "503"}, load.answers
    assert all(program.is_running for program in (house.server, *house.workers) if program is not None)
    await shop.is_confirmed_and_told(paid)
    order = next(iter(load.payments.values()))
    await shop.pays(order)
    await house.reaches(order["id"], "confirmed")


async def test_a_signal_under_load_lets_every_request_that_was_taken_be_answered(shop: Shop) -> None:
    """Requests and the worker wait for a lock when the signal comes: all is under way, whatever the machine's speed."""
    load, house = Load(shop.house), shop.house
    paid = [await house.create("ETH", "1", webhook_url=shop.receiver.url)]
    assert house.server is not None
    [worker] = house.workers
    blocker = await asyncpg.connect(house.database_url.replace("+asyncpg", ""))
    try:
        lock = blocker.transaction()
        await lock.start()
        await blocker.execute("LOCK TABLE payments IN SHARE ROW EXCLUSIVE MODE")
        async with load.running():
            await shop.pays(paid[0])
            await until(lambda: _waiting(blocker, BUYERS + 1), "every request and a step to be under way", DEADLINE_S)
            for program in (house.server, worker):
                program.send(signal.SIGTERM)
            for program in (house.server, worker):
                await until(lambda it=program: soon("stopping" in it.output), "everything to stop", DEADLINE_S)
            await lock.rollback()
            assert await asyncio.gather(house.server.ended(STOP_S), worker.ended(STOP_S)) == [0, 0]
    finally:
        await blocker.close()
    assert load.answers["201"] >= BUYERS, load.answers
    await house.start(workers=1)
    await load.settle_up()
    await shop.is_confirmed_and_told(paid)


async def _waiting(connection: asyncpg.Connection, number: int) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") >= number)

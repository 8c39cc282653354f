"""A server and two workers beside each other, on PostgreSQL and a Redis that others run."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import redis.asyncio as redis_client

from tests.e2e.conftest import Devnet, deploy
from tests.e2e.harness import DEADLINE_S, STOP_S, TAKEOVER_S, WEBHOOK_SECRET, House, Program, children, freeze, until
from tests.e2e.story import SlowReceiver, assert_credited_once, assert_told, survive_kills
from tests.support.anvil import Anvil
from tests.support.postgres import Postgres
from tests.support.receiver import HANG, Receiver
from tests.support.redis import RedisServer

WORKERS = 2


@dataclass
class Production:
    """Everything that the tests of this file share; each finds it running."""

    house: House
    devnet: Devnet
    redis: RedisServer
    postgres: Postgres
    receiver: Receiver

    async def paid(self, token: str, amount: str) -> dict[str, str]:
        """A payment with its money in a block that is not yet confirmed; its id and its transaction's hash."""
        payment = await self.house.create(token, amount, webhook_url=self.receiver.url)
        tx_hash = await self.devnet.pay(payment)
        await self.devnet.anvil.mine()
        return {"id": payment["id"], "tx_hash": tx_hash}

    async def is_confirmed_and_told(self, paid: dict[str, str], timeout_s: float = DEADLINE_S) -> None:
        payment = await self.house.reaches(paid["id"], "confirmed", timeout_s=timeout_s)
        assert_credited_once(payment, paid["tx_hash"])
        await assert_told(self.house, self.receiver, paid["id"], "created", "detected", "confirmed")

    def pause_storage(self) -> None:
        """Redis and, where it is ours, PostgreSQL hang: connections stay open and nothing answers."""
        self.redis.process.pause()
        if not self.postgres.is_external:
            self._signal_postgres(signal.SIGSTOP)

    def resume_storage(self) -> None:
        self.redis.process.resume()
        if not self.postgres.is_external:
            self._signal_postgres(signal.SIGCONT)

    def _signal_postgres(self, number: signal.Signals) -> None:
        server = self.postgres.process.pid
        os.kill(server, number)  # first of all: it makes no further ones then
        for pid in children(server):
            with contextlib.suppress(ProcessLookupError):  # one that has just ended
                os.kill(pid, number)

    async def readiness(self) -> dict[str, str]:
        """What /health/ready says of each dependency; its HTTP status must agree."""
        response = await self.house.client.get("/health/ready")
        checks = {check["name"]: check["status"] for check in response.json()["checks"]}
        assert response.status_code == (503 if "down" in checks.values() else 200)
        return checks


@pytest.fixture(scope="module")
async def shared(postgres: Postgres) -> AsyncIterator[Production]:
    async with Anvil() as anvil, RedisServer() as redis, Receiver(WEBHOOK_SECRET) as receiver:
        devnet = await deploy(anvil)
        house = House(devnet.chains_yaml(), database_url=await postgres.create_database(), redis_url=redis.url)
        try:
            await house.migrate()
            yield Production(house, devnet, redis, postgres, receiver)
        finally:
            await house.close()


@pytest.fixture
async def house(shared: Production) -> House:
    """By its name, the logs are shown on failure."""
    return shared.house


@pytest.fixture
async def production(shared: Production, house: House) -> Production:
    """Running, whatever the test before did to it."""
    shared.postgres.start()
    await shared.redis.start()
    shared.receiver.answer(then=200)
    await house.start(WORKERS)
    return shared


async def test_native_and_token_payments_are_confirmed_and_told(production: Production) -> None:
    payments = [await production.paid("ETH", "0.5"), await production.paid("USDC", "25")]
    for paid in payments:
        await production.house.reaches(paid["id"], "detected", "confirmed")
    await production.devnet.anvil.mine()
    for paid in payments:
        await production.is_confirmed_and_told(paid)


async def test_a_killed_workers_work_goes_on_in_the_other(production: Production) -> None:
    """The dead worker held the chain's job and a delivery that its receiver had not answered."""
    house, anvil, receiver = production.house, production.devnet.anvil, production.receiver
    dying, surviving = house.workers
    await freeze(surviving, house.database_url)
    try:
        receiver.answer(then=HANG)
        before = len(receiver.requests)
        paid = await production.paid("USDC", "25")
        await receiver.wait_for_count(before + 1, DEADLINE_S)
        anvil.pause()
        await _holds_the_chain(production.redis)
        dying.kill()
    finally:
        surviving.resume()
        anvil.resume()
        receiver.answer(then=200)
    await anvil.mine()
    await production.is_confirmed_and_told(paid, TAKEOVER_S)


async def test_redis_may_stop_and_start(production: Production) -> None:
    before = await production.paid("ETH", "1")
    production.redis.stop()
    await until(lambda: _says(production, "redis", "down"), "readiness to name redis", DEADLINE_S)
    await until(lambda: _says(production, "database", "ok"), "the database to be well", DEADLINE_S)
    during = await production.paid("USDC", "25")
    await production.devnet.anvil.mine()
    await production.redis.start()
    await until(lambda: _says(production, "redis", "ok"), "readiness", DEADLINE_S)
    await production.is_confirmed_and_told(before)
    await production.is_confirmed_and_told(during)
    assert all(program.is_running for program in (production.house.server, *production.house.workers))


async def test_a_flushed_redis_loses_nothing(production: Production) -> None:
    payments = []
    for number in range(1, 6):
        payments.append(await production.paid("ETH" if number % 2 else "USDC", f"0.{number}"))
        await production.redis.flush()
    await production.devnet.anvil.mine()
    await production.redis.flush()
    for paid in payments:
        await production.is_confirmed_and_told(paid)


async def test_postgresql_may_restart(production: Production) -> None:
    if production.postgres.is_external:
        pytest.skip("that server is not ours to stop")
    house = production.house
    paid = await production.paid("USDC", "25")
    production.postgres.interrupt()
    await until(lambda: _says(production, "database", "down"), "readiness to name the database", DEADLINE_S)
    for call in (
        house.client.get(f"/v1/payments/{paid['id']}"),
        house.client.post("/v1/payments", json={"chain": "devnet", "token": "ETH", "amount": "1"}),
    ):
        response = await call
        assert response.status_code == 503, response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "service_unavailable"
    assert (await house.client.get("/health/live")).status_code == 200
    await production.devnet.anvil.mine()
    production.postgres.start()
    await until(lambda: _says(production, "database", "ok"), "readiness", DEADLINE_S)
    await production.is_confirmed_and_told(paid)
    assert all(program.is_running for program in (house.server, *house.workers))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_signals_end_server_and_workers_in_time(production: Production) -> None:
    """With a receiver that never answers, and a node, a Redis and a database that do not answer any more."""
    house, receiver = production.house, production.receiver
    receiver.answer(then=HANG)
    before = len(receiver.requests)
    paid = await production.paid("ETH", "1")
    await receiver.wait_for_count(before + 1, DEADLINE_S)
    production.devnet.anvil.pause()
    try:
        await _holds_the_chain(production.redis)
        production.pause_storage()
        assert house.server is not None
        programs: list[Program] = [house.server, *house.workers]
        for program, number in zip(programs, (signal.SIGTERM, signal.SIGTERM, signal.SIGINT), strict=True):
            program.send(number)
        assert await asyncio.gather(*(program.ended(STOP_S) for program in programs)) == [0, 0, 0]
    finally:
        production.resume_storage()
        production.devnet.anvil.resume()
    receiver.answer(then=200)
    await production.devnet.anvil.mine()
    await house.start(WORKERS)
    await production.is_confirmed_and_told(paid)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_kills_lose_nothing(postgres: Postgres) -> None:
    async with Anvil(block_time=0.25) as anvil, RedisServer() as redis, SlowReceiver(WEBHOOK_SECRET) as receiver:
        devnet = await deploy(anvil)
        url = await postgres.create_database()
        house = House(devnet.chains_yaml(depth=8), database_url=url, redis_url=redis.url)
        try:
            await house.migrate()
            await survive_kills(house, devnet, receiver, workers=WORKERS, redis=redis)
        finally:
            await house.close()


async def _says(production: Production, dependency: str, status: str) -> bool:
    return (await production.readiness())[dependency] == status


async def _holds_the_chain(redis: RedisServer) -> None:
    """Wait until a worker has claimed the chain's job: arq's in-progress key, which outlives its worker."""

    async def claimed() -> bool:
        async with redis_client.Redis.from_url(redis.url) as client:
            return bool(await client.exists("arq:in-progress:listen:devnet"))

    await until(claimed, "a worker to take the chain's job", DEADLINE_S)
    await asyncio.sleep(0.5)  # an earlier claim has ended by then; the paused node ends none any more
    await until(claimed, "a worker to take the chain's job", DEADLINE_S)

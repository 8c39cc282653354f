"""The sweeper's worker as an operator runs it: the one process with a private key."""

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from tests.e2e.conftest import Devnet, deploy
from tests.e2e.harness import (
    DEADLINE_S,
    MNEMONIC,
    START_S,
    WEBHOOK_SECRET,
    XPUB,
    House,
    assert_no_secrets,
    soon,
    until,
)
from tests.e2e.story import SlowReceiver, survive_kills
from tests.support.anvil import Anvil
from tests.support.exposition import read_exposition
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer

TREASURY: Final = "0x" + "7e" * 20
GAS_ACCOUNT: Final = "0x44f649fc8Dc77694E6ABEF1aA966983Dd6ED7C64"  # m/44'/60'/1'/0/0 of the harness' words
POLICY: Final = f'{{mode: auto, treasury: "{TREASURY}", interval: 0.3}}'


@pytest.fixture
async def mining() -> AsyncIterator[Devnet]:
    """A chain that has a new block every quarter of a second."""
    async with Anvil(block_time=0.25) as anvil:
        yield await deploy(anvil)


async def check_of(house: House, name: str) -> dict[str, Any] | None:
    checks = (await house.client.get("/health")).json()["checks"]
    return next((check for check in checks if check["name"] == name), None)


async def is_well(house: House, name: str) -> bool:
    return (await check_of(house, name) or {})["status"] == "ok"


async def test_only_its_worker_has_the_key_and_health_names_the_account_to_fund(
    postgres: Postgres, mining: Devnet
) -> None:
    async with RedisServer() as redis:
        url = await postgres.create_database()
        house = House(mining.chains_yaml(sweep=POLICY), database_url=url, redis_url=redis.url)
        try:
            await house.migrate()
            await house.start()
            workers = [
                house.run("-m", "app.workers", "--roles", "listener,webhook"),
                house.run("-m", "app.workers", "--roles", "sweeper", MNEMONIC=MNEMONIC),
            ]
            for worker in workers:
                await until(lambda it=worker: soon("workers started" in it.output), "a worker's start", START_S)
            native, token = await house.create("ETH", "0.5"), await house.create("USDC", "25")
            for payment in (native, token):
                await mining.pay(payment)
            await house.reaches(native["id"], "settled")

            async def is_low() -> dict[str, Any] | None:
                check = await check_of(house, "gas:devnet")
                return check if check is not None and check["status"] == "degraded" else None

            low = await until(is_low, "a low gas account", DEADLINE_S)
            assert low["detail"].startswith(f"{GAS_ACCOUNT} holds 0 ETH; fund it with 0.")
            [worker] = [worker for worker in workers if "the gas account is low" in worker.output]
            assert GAS_ACCOUNT in worker.output
            await mining.anvil.set_balance(GAS_ACCOUNT, 10**18)
            settled = await house.reaches(token["id"], "settled")
            [sweep] = settled["sweeps"]
            [listed] = (await house.get("/v1/sweeps", payment_id=token["id"]))["data"]
            assert (listed["kind"], listed["tx_hash"]) == ("collect", sweep["tx_hash"])
            for check in ("gas:devnet", "worker:sweeper"):
                await until(lambda it=check: is_well(house, it), f"{check} to be well", DEADLINE_S)
            assert_no_secrets(house.programs)
        finally:
            await house.close()
            await postgres.drop_database(url)


async def test_without_a_private_key_it_says_so_once_and_nothing_is_swept(postgres: Postgres, mining: Devnet) -> None:
    async with RedisServer() as redis:
        url = await postgres.create_database()
        house = House(mining.chains_yaml(sweep=POLICY), database_url=url, redis_url=redis.url)
        try:
            await house.migrate()
            await house.start(workers=1)
            payment = await house.create("ETH", "0.5")
            await mining.pay(payment)
            await house.reaches(payment["id"], "confirmed")
            [worker] = house.workers
            assert worker.output.count("nothing is swept: the sweeper has no private key") == 1
            # It listens and sends, and nothing says that it sweeps.
            roles = ("listener", "webhook", "sweeper")
            for role in roles[:2]:
                await until(lambda it=role: is_well(house, f"worker:{it}"), f"a heartbeat of {role}", DEADLINE_S)
            assert (await check_of(house, "worker:sweeper") or {})["status"] == "degraded"
            metrics = read_exposition((await house.client.get("/metrics")).text)
            assert [metrics.value("paywatch_worker_alive", role=role) for role in roles] == [1, 1, 0]
            assert (await house.payment(payment["id"]))["status"] == "confirmed"
        finally:
            await house.close()
            await postgres.drop_database(url)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_kills_sweep_each_payment_once(mining: Devnet) -> None:
    """The treasury has all tokens that were paid, and all ether less the fees that the payments' sweeps tell."""
    await mining.anvil.set_balance(GAS_ACCOUNT, 10**18)
    house = House(mining.chains_yaml(depth=8, sweep=POLICY))
    try:
        async with SlowReceiver(WEBHOOK_SECRET) as receiver:
            payments = await survive_kills(house, mining, receiver)
        expected = {"ETH": 0, "USDC": 0}
        for payment in payments:
            expected[payment["token"]] += int(payment["amount_units"])
            assert len(payment["sweeps"]) == 1
            if payment["token"] == "ETH":
                expected["ETH"] -= int(payment["sweeps"][0]["fee_units"])
        balance = await mining.anvil.call(mining.token, "balanceOf(address)", TREASURY, returns="uint256")
        assert {"ETH": await mining.anvil.balance(TREASURY), "USDC": balance} == expected
    finally:
        await house.close()


async def test_a_server_that_only_watches_settles_by_finality_and_says_so_once(devnet: Devnet) -> None:
    """Embedded, with an xpub and no private key, although chains.yaml asks for sweeps: nobody could ever sweep."""
    house = House(devnet.chains_yaml(sweep=POLICY), MNEMONIC="", XPUB=XPUB)
    try:
        await house.start()
        payment = await house.create("USDC", "25")
        await devnet.pay(payment)
        await devnet.anvil.mine(100)
        await house.reaches(payment["id"], "settled")
        assert house.logs().count("there is no private key") == 1
    finally:
        await house.close()

"""What refuses to start says why, in words, and what one chain refuses does not stop another."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from tests.e2e.conftest import Devnet
from tests.e2e.harness import (
    API_KEY,
    DATABASE_PASSWORD,
    MNEMONIC,
    RPC_KEY,
    SECRET_KEY,
    START_S,
    WEBHOOK_SECRET,
    XPUB,
    House,
    Program,
    assert_no_secrets,
    chain_yaml,
    chains_yaml,
    until,
    with_key,
)
from tests.support.anvil import Anvil
from tests.support.receiver import HANG, Receiver

NOWHERE = "redis://127.0.0.1:1/0"  # production mode; who refuses to start has not asked there
DEAD_NODE = chains_yaml(chain_yaml("http://127.0.0.1:1"))
# m/44'/60'/0'/0 of the same mnemonic: a level too deep.
BRANCH_XPUB = (
    "xpub6EPuWo2Zez8qnWR1a44VViRzRwan7Ct5XaKCz2anC2xSQLCUUvhGEnGYBohKCsocJHEkYQ143QJH8fixW8ixUxrh6bU52qG2tPe1vqCJjiD"
)


@pytest.fixture
async def houses() -> AsyncIterator[list[House]]:
    made: list[House] = []
    yield made
    for house in made:
        await house.close()


async def refusal(program: Program) -> str:
    """What a program that must not start said instead: one line, no traceback, exit code 1."""
    assert await program.ended(START_S) == 1, program.output
    said = spoken(program.output.splitlines())
    assert "Traceback" not in program.output
    assert len(said) == 1, program.output
    return said[0]


def spoken(lines: Iterable[str]) -> list[str]:
    """The lines that are no log records."""
    return [line for line in lines if line and not line.startswith("{")]


async def test_server_without_a_wallet(houses: list[House]) -> None:
    house = House(DEAD_NODE, MNEMONIC="", forked=False)
    houses.append(house)
    assert "paywatch keys init" in await refusal(house.run("server.py"))


async def test_production_server_with_a_private_key(houses: list[House]) -> None:
    house = House(DEAD_NODE, redis_url=NOWHERE, MNEMONIC=MNEMONIC)
    houses.append(house)
    assert "PAYWATCH_MNEMONIC" in await refusal(house.run("server.py"))


async def test_production_without_a_secret_key(houses: list[House]) -> None:
    house = House(DEAD_NODE, redis_url=NOWHERE, SECRET_KEY="")
    houses.append(house)
    programs = [house.run("server.py"), house.run("-m", "app.workers")]
    for said in await asyncio.gather(*map(refusal, programs)):
        assert "PAYWATCH_SECRET_KEY" in said


async def test_production_without_its_schema(houses: list[House], database_url: str) -> None:
    house = House(DEAD_NODE, redis_url=NOWHERE, database_url=database_url)
    houses.append(house)
    programs = [house.run("server.py"), house.run("-m", "app.workers")]
    for said in await asyncio.gather(*map(refusal, programs)):
        assert "python migrate.py upgrade" in said


async def test_server_without_its_database(houses: list[House]) -> None:
    url = "postgresql+asyncpg://postgres@127.0.0.1:1/paywatch"
    house = House(DEAD_NODE, redis_url=NOWHERE, database_url=url)
    houses.append(house)
    assert "127.0.0.1:1" in await refusal(house.run("server.py"))


async def test_server_whose_database_cannot_be_made(houses: list[House], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    house = House(DEAD_NODE, database_url=f"sqlite+aiosqlite:///{tmp_path}/file/paywatch.db")
    houses.append(house)
    assert f"{tmp_path}/file" in await refusal(house.run("server.py"))


async def test_server_with_an_xpub_of_the_wrong_level(houses: list[House]) -> None:
    house = House(DEAD_NODE, MNEMONIC="", XPUB=BRANCH_XPUB)
    houses.append(house)
    said = await refusal(house.run("server.py"))
    assert "PAYWATCH_XPUB" in said
    assert "m/44'/60'/0'" in said


async def test_a_broken_chains_yaml(houses: list[House]) -> None:
    house = House(chains_yaml(chain_yaml("http://127.0.0.1:1")) + "    confirmation: 3\n")
    houses.append(house)
    production = House((house.folder / "chains.yaml").read_text(), redis_url=NOWHERE)
    houses.append(production)
    programs = [house.run("server.py"), production.run("-m", "app.workers")]
    for said in await asyncio.gather(*map(refusal, programs)):
        for part in ("chains.yaml", "'devnet'", "confirmation"):
            assert part in said


async def test_a_port_in_use(houses: list[House]) -> None:
    house = House(DEAD_NODE, forked=False)
    houses.append(house)
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", house.port)
    async with taken:
        said = await refusal(house.run("server.py"))
    assert "PAYWATCH_PORT" in said
    assert str(house.port) in said


async def test_a_chain_that_contradicts_its_node_stops_alone(houses: list[House], devnet: Devnet) -> None:
    async with Anvil(chain_id=31338) as other:
        wrong = chain_yaml(other.url, name="other", chain_id=31339)
        house = House(chains_yaml(chain_yaml(devnet.anvil.url, devnet.token), wrong))
        houses.append(house)
        await house.start()
        payment = await house.create("USDC", "25")
        await devnet.pay(payment)
        await devnet.anvil.mine(2)
        await house.reaches(payment["id"], "confirmed")
        states = {chain["name"]: chain["state"] for chain in (await house.get("/v1/chains"))["data"]}
        assert states == {"devnet": "ok", "other": "halted"}
        refused = await house.client.post("/v1/payments", json={"chain": "other", "token": "ETH", "amount": "1"})
        assert (refused.status_code, refused.json()["code"]) == (503, "chain_unavailable")
        assert house.server is not None
        stopped = [line for line in house.server.output.splitlines() if "chain stopped" in line]
        assert stopped
        reason = json.loads(stopped[0])["reason"]
        assert "31338" in reason
        assert "31339" in reason


@pytest.mark.slow
async def test_a_node_that_hangs_is_left_for_the_next(houses: list[House], devnet: Devnet) -> None:
    """It takes every connection and answers nothing, so each question to it costs the whole time that a step has."""
    async with Receiver() as hanging:
        hanging.answer(then=HANG)
        both = f'rpc_urls: ["{with_key(hanging.url_for(""))}", "{with_key(devnet.anvil.url)}"]'
        house = House(devnet.chains_yaml().replace(f'rpc_url: "{with_key(devnet.anvil.url)}"', both))
        houses.append(house)
        await house.start()
        await house.cursor_reaches(1)
        payment = await house.create("ETH", "1")
        await devnet.pay(payment)
        await devnet.anvil.mine(2)
        await house.reaches(payment["id"], "confirmed")
        assert hanging.requests


async def test_no_log_holds_a_secret(houses: list[House], devnet: Devnet, receiver: Receiver) -> None:
    """At its most talkative, with everything going wrong; and the key that is made at the first start is shown once."""
    dead = chain_yaml("http://127.0.0.1:1", name="dead", chain_id=5)
    yaml = chains_yaml(chain_yaml(devnet.anvil.url, devnet.token), dead)
    house = House(yaml, API_KEY="", LOG_LEVEL="DEBUG", SECRET_KEY=SECRET_KEY, forked=False)
    houses.append(house)
    await house.start()
    assert house.server is not None
    [shown] = [line for line in spoken(house.server.output.splitlines()) if "API key" in line]
    house.shown_key = key = shown.split()[-1]
    house.client.headers["Authorization"] = f"Bearer {key}"

    receiver.answer(500, then=200)
    receiver.secret = WEBHOOK_SECRET
    url = receiver.url
    endpoint = (await house.client.post("/v1/webhook_endpoints", json={"url": f"{url}?token={RPC_KEY}"})).json()
    payment = await house.create("USDC", "25", webhook_url=url)
    await devnet.pay(payment)
    await devnet.anvil.mine(2)
    await house.reaches(payment["id"], "confirmed")
    await receiver.wait_for_count(3)
    for path in (f"/v1/payments/{payment['id']}?api_key={key}", "/v1/nothing", "/health"):
        await house.client.get(path)
    await house.client.get("/v1/payments", headers={"Authorization": f"Bearer wrong-{API_KEY}"})
    await until(lambda: _talks_of(house.server, "node not reachable"), "a node that failed", START_S)
    house.server.kill()
    assert house.server.output.count(key) == 1
    first, house.server = house.server, None
    await house.start()
    house.kill()

    secrets = [endpoint["secret"], endpoint["secret"].removeprefix("whsec_"), WEBHOOK_SECRET.removeprefix("whsec_")]
    assert_no_secrets([first, house.server], *secrets, DATABASE_PASSWORD, XPUB, shown=key)
    assert key not in house.server.output


async def _talks_of(program: Program, text: str) -> bool:
    return text in program.output

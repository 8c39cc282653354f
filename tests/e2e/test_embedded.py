"""`python server.py` alone: SQLite, a Redis of its own, the workers inside."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.e2e.conftest import Devnet, deploy
from tests.e2e.harness import API_KEY, DEADLINE_S, STOP_S, WEBHOOK_SECRET, House, children, gone, soon, until
from tests.e2e.story import SlowReceiver, assert_credited_once, assert_told, survive_kills
from tests.support.anvil import Anvil
from tests.support.receiver import HANG, Receiver

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


async def test_native_and_token_payments_are_confirmed_and_told(
    house: House, devnet: Devnet, receiver: Receiver
) -> None:
    await house.start()
    endpoint = await house.client.post("/v1/webhook_endpoints", json={"url": receiver.url})
    receiver.secret = endpoint.json()["secret"]
    payments = [await house.create("ETH", "0.5"), await house.create("USDC", "25")]
    hashes = [await devnet.pay(payment) for payment in payments]
    await devnet.anvil.mine()
    for payment in payments:
        detected = await house.reaches(payment["id"], "detected")
        assert detected["transactions"][0]["confirmations"] == 1
        assert detected["confirmed_at"] is None
    await devnet.anvil.mine()
    for payment, tx_hash in zip(payments, hashes, strict=True):
        assert_credited_once(await house.reaches(payment["id"], "confirmed"), tx_hash)
        await assert_told(house, receiver, payment["id"], "created", "detected", "confirmed")


async def test_a_payment_made_while_the_gateway_was_down_is_found(
    house: House, devnet: Devnet, receiver: Receiver
) -> None:
    await house.start()
    receiver.secret = WEBHOOK_SECRET
    early = await house.create("ETH", "1", webhook_url=receiver.url)
    late = await house.create("USDC", "25", webhook_url=receiver.url)
    await house.has_told()
    house.kill()
    hashes = [await devnet.pay(early)]
    await devnet.anvil.mine(100)  # finalized when the gateway comes back
    hashes.append(await devnet.pay(late))
    await devnet.anvil.mine(2)
    await house.start()
    assert_credited_once(await house.reaches(early["id"], "settled"), hashes[0])
    assert_credited_once(await house.reaches(late["id"], "confirmed"), hashes[1])
    await assert_told(house, receiver, early["id"], "created", "detected", "confirmed", "settled")
    await assert_told(house, receiver, late["id"], "created", "detected", "confirmed")


async def test_a_reorg_takes_a_payment_back_and_its_replacement_gains_another(
    house: House, devnet: Devnet, receiver: Receiver
) -> None:
    anvil = devnet.anvil
    await house.start()
    receiver.secret = WEBHOOK_SECRET
    lost = await house.create("USDC", "25", webhook_url=receiver.url)
    gained = await house.create("ETH", "1", webhook_url=receiver.url)
    orphan = await devnet.pay(lost)
    await anvil.mine()
    await house.reaches(lost["id"], "detected")

    value = hex(int(gained["amount_units"]))
    await anvil.reorg(1, [({"from": anvil.accounts[2], "to": gained["address"], "value": value, "gas": "0x186a0"}, 0)])

    reverted = await house.reaches(lost["id"], "pending")
    assert reverted["flags"] == ["reorged"]
    assert reverted["amount_received_units"] == "0"
    assert reverted["detected_at"] is None
    assert [(it["tx_hash"], it["status"], it["confirmations"]) for it in reverted["transactions"]] == [
        (orphan, "orphaned", 0)
    ]
    await house.reaches(gained["id"], "detected")

    again = await devnet.pay(lost)
    await anvil.mine(2)
    recovered = await house.reaches(lost["id"], "confirmed")
    assert recovered["flags"] == ["reorged"]
    assert recovered["amount_received_units"] == lost["amount_units"]
    assert {it["tx_hash"]: it["status"] for it in recovered["transactions"]} == {orphan: "orphaned", again: "canonical"}
    await house.reaches(gained["id"], "confirmed")
    await assert_told(house, receiver, lost["id"], "created", "detected", "reverted", "detected", "confirmed")
    await assert_told(house, receiver, gained["id"], "created", "detected", "confirmed")


async def test_a_reorg_while_the_gateway_was_down_is_noticed(house: House, devnet: Devnet, receiver: Receiver) -> None:
    await house.start()
    receiver.secret = WEBHOOK_SECRET
    payment = await house.create("ETH", "1", webhook_url=receiver.url)
    await devnet.pay(payment)
    await devnet.anvil.mine(2)
    await house.reaches(payment["id"], "confirmed")
    await house.has_told()
    house.kill()
    await devnet.anvil.reorg(2)
    await devnet.anvil.mine(3)
    await house.start()
    reverted = await house.reaches(payment["id"], "pending")
    assert reverted["flags"] == ["reorged"]
    await devnet.pay(payment)
    await devnet.anvil.mine(2)
    await house.reaches(payment["id"], "confirmed")
    types = ("created", "detected", "confirmed", "reverted", "detected", "confirmed")
    await assert_told(house, receiver, payment["id"], *types)


@linux_only
async def test_open_streams_end_with_the_server(house: House) -> None:
    await house.start()
    assert house.server is not None
    payment = await house.create("ETH", "1")
    path = f"/v1/payments/{payment['id']}/stream"
    async with AsyncExitStack() as stack:
        streams = [(await stack.enter_async_context(house.client.stream("GET", path))).aiter_lines() for _ in range(5)]
        for lines in streams:
            while not (await anext(lines)).startswith("event: payment.created"):
                pass
        house.server.send(signal.SIGTERM)
        rest = await asyncio.gather(*(_all(lines) for lines in streams))
        assert await house.server.ended(STOP_S) == 0
    assert "Cancel" not in house.server.output  # they were ended, not cut off
    assert {lines[-1] for lines in rest} == {""}


async def _all(lines: AsyncIterator[str]) -> list[str]:
    return [line async for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_time_whatever_is_under_way(
    house: House, devnet: Devnet, receiver: Receiver, number: signal.Signals
) -> None:
    """A receiver that never answers, a client that never ends its request, a node that does not answer any more."""
    await house.start()
    assert house.server is not None
    redis = children(house.server.pid)
    assert redis, "the embedded Redis is a child of the server"
    receiver.answer(then=HANG)
    await house.create("ETH", "1", webhook_url=receiver.url)
    await receiver.wait_for_count(1, DEADLINE_S)
    _, client = await asyncio.open_connection("127.0.0.1", house.port)
    head = f"POST /v1/payments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Length: 99\r\n\r\n{{"
    client.write(head.encode())
    await client.drain()
    devnet.anvil.pause()
    try:
        await _a_step_waits()
        house.server.send(number)
        assert await house.server.ended(STOP_S) == 0
    finally:
        devnet.anvil.resume()
        client.close()
    await gone(redis)
    assert not list(house.folder.glob("paywatch-*")), "the socket's folder stayed"


@linux_only
async def test_a_killed_server_takes_its_redis_along(house: House) -> None:
    await house.start()
    assert house.server is not None
    redis = children(house.server.pid)
    assert redis
    house.server.kill()
    await gone(redis)


@linux_only
async def test_a_killed_redis_is_started_again(house: House, devnet: Devnet) -> None:
    await house.start()
    assert house.server is not None
    [redis] = children(house.server.pid)
    payment = await house.create("ETH", "1")
    os.kill(redis, signal.SIGKILL)
    await gone([redis])
    await devnet.pay(payment)
    await devnet.anvil.mine(2)
    await house.reaches(payment["id"], "confirmed")
    pid = house.server.pid
    await until(lambda: soon(len(children(pid)) == 1), "one Redis that runs", DEADLINE_S)
    await house.ready()


async def _a_step_waits() -> None:
    """Long enough for several polls of the chain, so that one of them is waiting for the node."""
    await asyncio.sleep(0.5)


@pytest.fixture
async def mining() -> AsyncIterator[Devnet]:
    """A chain that has a new block every quarter of a second."""
    async with Anvil(block_time=0.25) as anvil:
        yield await deploy(anvil)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_kills_lose_nothing(mining: Devnet) -> None:
    house = House(mining.chains_yaml(depth=8))
    try:
        async with SlowReceiver(WEBHOOK_SECRET) as receiver:
            await survive_kills(house, mining, receiver)
    finally:
        await house.close()

"""What a merchant is told of a payment, compared with the audit trail."""

import asyncio
import os
import random
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import h11

from tests.e2e.conftest import Devnet
from tests.e2e.harness import START_S, TAKEOVER_S, House, soon, until
from tests.support.receiver import Received, Receiver, Reply
from tests.support.redis import RedisServer

KILLS: Final = 10
# A killed sender's deliveries are leased to it for half a minute; what piled up behind them is sent after that.
ALL_TOLD_S: Final = TAKEOVER_S


async def assert_told(
    house: House, receiver: Receiver, payment_id: str, *types: str, timeout_s: float = ALL_TOLD_S
) -> None:
    """The payment's events are of these types, and each arrives, signed, at first in the order of versions 1, 2, 3…"""
    events = await house.events(payment_id)
    assert [event["type"].removeprefix("payment.") for event in events] == list(types)
    assert [event["version"] for event in events] == list(range(1, len(events) + 1))
    ids = [event["id"] for event in events]

    def first_arrivals(requests: Sequence[Received]) -> list[str]:
        return list(dict.fromkeys(it.webhook_id for it in requests if it.payload["data"]["id"] == payment_id))

    def all_arrived(requests: Sequence[Received]) -> bool:
        return len(first_arrivals(requests)) >= len(ids)

    requests = await receiver.wait_for(all_arrived, timeout_s)
    assert first_arrivals(requests) == ids
    versions = {event["id"]: (event["type"], event["version"]) for event in events}
    for request in requests:
        if request.payload["data"]["id"] == payment_id:
            assert request.verified, request.problem
            assert (request.type, request.payload["data"]["version"]) == versions[request.webhook_id]


def assert_credited_once(payment: dict[str, Any], tx_hash: str) -> None:
    """The payment holds exactly the one transfer that was made to it."""
    assert payment["amount_received_units"] == payment["amount_units"], payment
    assert payment["amount_due"] == "0"
    assert payment["flags"] == []
    [transfer] = payment["transactions"]
    assert (transfer["tx_hash"], transfer["status"]) == (tx_hash, "canonical")
    assert transfer["amount_units"] == payment["amount_units"]


class SlowReceiver(Receiver):
    """Takes a moment over each event, and never saw those whose sender was gone by then."""

    _connection: ContextVar[asyncio.StreamReader] = ContextVar("connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection.set(reader)
        await super()._serve(reader, writer)

    async def _record(self, head: h11.Request, body: bytes) -> Reply:
        await asyncio.sleep(random.uniform(0, 0.3))
        if self._connection.get().at_eof():
            raise ConnectionResetError("the sender was killed")
        return await super()._record(head, body)


@dataclass
class Storefront:
    """Sells one thing after the other, whatever becomes of the gateway meanwhile, and pays as its customers would."""

    house: House
    devnet: Devnet
    receiver: Receiver
    rng: random.Random
    paid: dict[str, str] = field(default_factory=dict)  # payment's id: hash of its transaction
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def sell(self) -> None:
        while not self.closed.is_set():
            payment = await self._order(len(self.paid) + 1)
            self.paid[payment["id"]] = await self.devnet.pay(payment, sender_index=len(self.paid) % 8)
            await asyncio.sleep(self.rng.uniform(0.1, 0.6))

    async def sells_one_more(self) -> None:
        """Wait for an order that is paid after now."""
        sold = len(self.paid)
        await until(lambda: soon(len(self.paid) > sold), "the next order", START_S)

    async def _order(self, number: int) -> dict[str, Any]:
        """A new order's payment. A request that was not answered is made again under its idempotency key."""
        token = "ETH" if number % 2 else "USDC"
        # All are one receiver, being one host; its turn comes again when a killed sender's leases have ended.
        path = "/shared" if number % 4 > 1 else f"/own/{number}"

        async def ask() -> dict[str, Any]:
            url = self.receiver.url_for(path)
            order = {"chain": "devnet", "token": token, "amount": f"0.{number:04}", "webhook_url": url}
            answer = await self.house.client.post(
                "/v1/payments", json=order, headers={"Idempotency-Key": f"key-{number}"}
            )
            assert answer.status_code in (201, 503), answer.text
            return answer.json() if answer.status_code == 201 else {}

        return await until(ask, f"order {number}", START_S)


async def survive_kills(
    house: House, devnet: Devnet, receiver: Receiver, *, workers: int = 0, redis: RedisServer | None = None
) -> list[dict[str, Any]]:
    """Kill -9 of everything, ten times, in a stream of payments: each is credited once, and everything is told.

    Returns the payments, settled.
    """
    seed = int(os.environ.get("PAYWATCH_E2E_SEED") or random.randrange(1_000_000))
    print(f"PAYWATCH_E2E_SEED={seed}")  # noqa: T201 (shown on failure)
    rng = random.Random(seed)
    shop = Storefront(house, devnet, receiver, rng)
    await house.start(workers)
    async with asyncio.TaskGroup() as group:
        group.create_task(shop.sell())
        for kill in range(1, KILLS + 1):
            if kill % 4:  # else it hits the start
                await shop.sells_one_more()
            await asyncio.sleep(rng.uniform(0, 1.5))  # the random moment
            house.kill()
            if redis is not None and kill < KILLS:  # after the last kill, a dead worker's claims are still in it
                redis.process.kill()
                await redis.start()
            house.launch(workers)
        await house.start(workers)
        shop.closed.set()
    payments = [await house.reaches(payment_id, "settled") for payment_id in shop.paid]
    for payment in payments:
        assert_credited_once(payment, shop.paid[payment["id"]])
    assert await _listed(house) == set(shop.paid)  # a repeated request made no second payment
    for payment_id in shop.paid:
        await assert_told(house, receiver, payment_id, "created", "detected", "confirmed", "settled")
    return payments


async def _listed(house: House) -> set[str]:
    """The ids of all payments."""
    found: set[str] = set()
    params: dict[str, Any] = {"limit": 100}
    while True:
        page = await house.get("/v1/payments", **params)
        found.update(payment["id"] for payment in page["data"])
        if page["next_cursor"] is None:
            return found
        params["cursor"] = page["next_cursor"]

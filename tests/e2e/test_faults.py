"""Goal: each fault of docs/troubleshooting.md, made for real in a running installation, is named by `paywatch doctor`
and shown by `/health` or `/metrics` within a minute, and is gone from the doctor's table when it is mended.

All run on one installation, which each leaves well. What shows only after a time has its stored timestamps moved by
that minute, and no more: so no limit may be longer.
"""

import asyncio
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import httpx
import pytest
import redis.asyncio as redis_client
from aiohttp import web
from sqlalchemy import text

from app.blockchain.wallet import new_mnemonic
from app.core import limits
from app.core.queue import WakeUps, connect
from app.db import schema
from app.db.engine import Database
from devnet.ports import free_port
from tests.e2e.conftest import Devnet
from tests.e2e.harness import (
    DEADLINE_S,
    START_S,
    STOP_S,
    House,
    Program,
    chain_yaml,
    chains_yaml,
    freeze,
    soon,
    until,
)
from tests.e2e.test_sweeper import GAS_ACCOUNT, POLICY
from tests.support.anvil import Anvil
from tests.support.exposition import Exposition, read_exposition
from tests.support.node import Call, ProxyNode, result
from tests.support.operator import command
from tests.support.postgres import Postgres
from tests.support.receiver import Receiver
from tests.support.redis import RedisServer
from tests.support.secrets import E2E_WEBHOOK_SECRET as WEBHOOK_SECRET
from tests.support.secrets import MNEMONIC

pytestmark = pytest.mark.timeout(900)

PROMISED_S: Final = 60.0  # named and shown within this: no limit is longer, and a busy machine takes its time besides
SHOWN_S: Final = PROMISED_S + DEADLINE_S
MINUTE: Final = "interval '60 seconds'"
OTHER_SECRET: Final = "whsec_b3RoZXItc2lnbmluZy1zZWNyZXQtb2YtdGVzdHMhIQ=="
OTHER_KEY: Final = "another-key-9aB3xK7qWm2ZtYp5vLc8-Jr6"
DEPTH: Final = 6  # blocks under the tip are final
LISTENER: Final = "listener"
SENDERS: Final = "webhook,sweeper"

Settings = Mapping[str, str]
Finding = dict[str, str]


class Node(ProxyNode):
    """The URL in chains.yaml. What stands behind it, and what it makes of answers, is the test's to choose."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.limits_calls = False

    async def respond(self, payload: Any) -> web.Response:
        if self.limits_calls:
            return web.Response(status=429)
        return await super().respond(payload)


@dataclass
class Installation:
    """A server and a worker for each role, on PostgreSQL and Redis, watching a chain of four blocks a second."""

    house: House
    devnet: Devnet
    node: Node
    redis: RedisServer
    receiver: Receiver
    db: Database
    ports: dict[str, int]
    mines: asyncio.Event = field(default_factory=asyncio.Event)
    mining: asyncio.Lock = field(default_factory=asyncio.Lock)
    miner: asyncio.Task[None] | None = None
    workers: dict[str, Program] = field(default_factory=dict)

    # --- what it says

    async def doctor(self, settings: Settings) -> dict[str, Finding]:
        mine = {f"PAYWATCH_{name}": value for name, value in settings.items()}
        told = await command("doctor", "--json", **self.house.settings | mine)
        report = json.loads(told.out)
        assert told.code == (1 if report["status"] == "failed" else 0)
        return {finding["check"]: finding for finding in report["findings"]}

    async def health(self) -> dict[str, str]:
        """The status of each check; none while nobody answers."""
        checks = (await self.house.client.get("/health")).json()["checks"]
        return {check["name"]: check["status"] for check in checks}

    async def metrics(self, of: str) -> Exposition:
        """Of `server` or a worker's role."""
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as http:
            return read_exposition((await http.get(f"http://127.0.0.1:{self.ports[of]}/metrics")).text)

    # --- what is done to it

    async def start_worker(self, roles: str, **settings: str) -> None:
        """Start one in the place of whoever had these roles."""
        key = {"MNEMONIC": MNEMONIC} if "sweeper" in roles else {}
        mine = key | {"METRICS_PORT": str(self.ports.get(roles))} | settings
        worker = self.workers[roles] = self.house.run("-m", "app.workers", "--roles", roles, **mine)
        await until(lambda: soon("workers started" in worker.output), f"the start of {roles}", START_S)

    @asynccontextmanager
    async def hung(self, roles: str) -> AsyncIterator[None]:
        """A worker that is there and does nothing, and holds no lock."""
        await self.stops_mining()
        await self.catches_up()
        await freeze(self.workers[roles], self.house.database_url)
        try:
            yield
        finally:
            self.workers[roles].resume()
            self.mines.set()

    @asynccontextmanager
    async def another(self, role: str, **settings: str) -> AsyncIterator[None]:
        """One more worker, with other settings."""
        others = dict(self.workers)
        self.ports[f"another {role}"] = port = free_port()
        async with redis_client.Redis.from_url(self.redis.url) as redis:  # what arq lets go of after 25 s
            for key in await redis.keys("arq:in-progress:*"):
                await redis.delete(key)
        try:
            await self.start_worker(role, METRICS_PORT=str(port), **settings)
            yield
        finally:
            if self.workers.get(role) is not others.get(role):
                self.workers[role].kill()
            self.workers = others

    async def execute(self, *statements: str) -> None:
        async with self.db.write() as session:
            for statement in statements:
                await session.execute(text(statement))

    async def ask(self, query: str) -> Any:
        async with self.db.read() as session:
            return (await session.execute(text(query))).scalar()

    async def a_minute_passes(self) -> None:
        """For the cursor, which stands still: its times are those of a minute ago."""
        seen: list[Any] = [None, await self.ask("SELECT head_seen_at FROM chain_states")]
        while seen[-2] != seen[-1]:  # what was under way has ended
            await asyncio.sleep(0.5)
            seen.append(await self.ask("SELECT head_seen_at FROM chain_states"))
        await self.execute(
            f"UPDATE chain_states SET head_seen_at = head_seen_at - {MINUTE}, "
            f"last_scanned_time = last_scanned_time - {MINUTE}"
        )

    async def operate(self, *arguments: str) -> None:
        """One of the commands that the page names."""
        told = await command(*arguments, **self.house.settings)
        assert told.code == 0, told

    async def catches_up(self) -> None:
        await self.house.cursor_reaches(await self.devnet.anvil.block_number())

    async def confirmed(self, token: str = "ETH", amount: str = "1") -> str:
        """A paid payment's id."""
        payment = await self.house.create(token, amount)
        await self.devnet.pay(payment)
        await self.house.reaches(payment["id"], "confirmed", "settled")
        return str(payment["id"])

    async def blacklist(self, address: str, blacklisted: bool) -> None:
        await self.devnet.anvil.transact(self.devnet.token, "setBlacklisted(address,bool)", address, blacklisted)
        await self.devnet.anvil.mine()

    async def was_swept_in_vain(self, payment_id: str, times: int) -> bool:
        ended = "s.status IN ('confirmed', 'failed') AND s.kind <> 'topup' AND NOT i.live"
        query = f"SELECT count(*) FROM sweep_items i JOIN sweeps s ON s.id = i.sweep_id WHERE {ended}"
        return bool(await self.ask(f"{query} AND i.payment_id = '{payment_id}'") >= times)

    async def mine(self) -> None:
        while True:
            await self.mines.wait()
            async with self.mining:
                if self.mines.is_set():
                    await self.devnet.anvil.mine()
            await asyncio.sleep(0.25)

    async def stops_mining(self) -> None:
        """No block that was asked for before comes afterwards."""
        self.mines.clear()
        async with self.mining:
            pass


@pytest.fixture(scope="module")
async def installation(postgres: Postgres) -> AsyncIterator[Installation]:
    postgres.start()
    url = await postgres.create_database()
    async with Anvil() as anvil, RedisServer() as redis, Receiver(WEBHOOK_SECRET) as receiver, Node(anvil.url) as node:
        devnet = Devnet(anvil, await anvil.deploy("BlacklistToken", "USD Coin", "USDC", 6))
        yaml = devnet.chains_yaml(depth=DEPTH, sweep=POLICY).replace(anvil.url, node.url)
        house = House(yaml, database_url=url, redis_url=redis.url)
        ports = {"server": house.port, LISTENER: free_port(), SENDERS: free_port()}
        it = Installation(house, devnet, node, redis, receiver, Database(url), ports)
        it.miner = asyncio.create_task(it.mine())
        try:
            await anvil.set_balance(GAS_ACCOUNT, 10**18)
            await anvil.mine(3 * DEPTH)
            await house.migrate()
            await house.start()  # one after the other: a busy machine starts all at once too slowly for any
            await it.start_worker(LISTENER)
            await it.start_worker(SENDERS)
            it.mines.set()
            yield it
        finally:
            it.miner.cancel()
            await asyncio.gather(it.miner, return_exceptions=True)
            await it.db.close()
            await house.close()
    await postgres.drop_database(url)


@pytest.fixture
async def house(installation: Installation) -> House:
    """By its name, the logs are shown on failure. What a test that failed may have left is put right."""
    it = installation
    assert it.miner is not None
    assert not it.miner.done(), it.miner
    it.node.change, it.node.limits_calls = None, False
    it.node.target = it.devnet.anvil.url
    it.receiver.secret = WEBHOOK_SECRET
    it.receiver.answer(then=200)
    await it.redis.start()
    await it.node.start()
    it.mines.set()
    return it.house


# --- the faults

Shown = Callable[[Installation], Awaitable[bool]]
Made = Callable[[Installation], AbstractAsyncContextManager[Settings | None]]


@dataclass(frozen=True)
class Fault:
    """`symptom`: its row on the page. `check` is the doctor's, which says `said`; `shown`: where else it is seen.

    While `make` lasts the fault is there; the settings that it yields are the doctor's, where they are the fault.
    """

    symptom: str
    make: Made
    check: str
    said: str
    shown: Shown
    result: str


FAULTS: list[Fault] = []


def fault(symptom: str, check: str, said: str, shown: Shown, result: str = "failed") -> Callable[[Any], Made]:
    def add(make: Callable[[Installation], AsyncIterator[Settings | None]]) -> Made:
        made = asynccontextmanager(make)
        FAULTS.append(Fault(symptom, made, check, said, shown, result))
        return made

    return add


def health_of(check: str, status: str = "degraded") -> Shown:
    async def shown(it: Installation) -> bool:
        return (await it.health()).get(check) == status

    return shown


def metric(of: str, holds: Callable[[Exposition], bool]) -> Shown:
    async def shown(it: Installation) -> bool:
        return holds(await it.metrics(of))

    return shown


def both(*each: Shown) -> Shown:
    async def shown(it: Installation) -> bool:
        return all([await one(it) for one in each])

    return shown


LAGS: Final = metric("server", lambda found: found.value("paywatch_chain_lag_seconds") > limits.LAGGING_AFTER_S)


@fault("a payment stays `pending` although it was paid", "chain:devnet", "it does not advance", LAGS)
async def nobody_listens(it: Installation) -> AsyncIterator[None]:
    payment = await it.house.create("ETH", "1")
    async with it.hung(LISTENER):
        await it.devnet.pay(payment)
        await it.devnet.anvil.mine(2 * DEPTH)
        await it.a_minute_passes()
        assert (await it.house.payment(payment["id"]))["status"] == "pending"
        yield
    await it.house.reaches(payment["id"], "confirmed", "settled")


@fault("the cursor does not advance", "chain:devnet", "it does not advance", both(LAGS, health_of("chain:devnet")))
async def the_node_hangs(it: Installation) -> AsyncIterator[None]:
    await it.stops_mining()
    await it.catches_up()
    it.devnet.anvil.pause()
    try:
        await it.a_minute_passes()
        yield
    finally:
        it.devnet.anvil.resume()
        it.mines.set()


@fault(
    "a chain is halted",
    "chain:devnet",
    "halted (reorg)",
    both(
        health_of("chain:devnet"),
        metric("server", lambda found: found.value("paywatch_chain_state", state="halted") == 1),
    ),
)
async def a_fork_below_finality(it: Installation) -> AsyncIterator[None]:
    await it.stops_mining()
    await it.devnet.anvil.mine(3 * DEPTH)
    await it.catches_up()
    await it.devnet.anvil.reorg(2 * DEPTH)
    await it.devnet.anvil.mine()
    yield
    await it.operate("chain", "resume", "devnet", "--yes")
    it.mines.set()


@fault(
    "money and records differ",
    "balances:devnet",
    "1 differed from what was recorded",
    both(
        health_of("balances:devnet"),
        metric("server", lambda found: found.value("paywatch_reconcile_differences", chain="devnet") == 1),
    ),
)
async def coin_from_nowhere(it: Installation) -> AsyncIterator[None]:
    """The hourly comparison is asked for at once."""
    payment = await it.house.create("ETH", "1")
    wake_ups = WakeUps(connect(it.redis.url))
    try:
        await it.devnet.anvil.set_balance(payment["address"], 5)
        await it.catches_up()
        await wake_ups.reconcile("devnet")
        yield
        await it.devnet.anvil.set_balance(payment["address"], 0)
        await it.devnet.anvil.mine(2 * DEPTH)
        await it.catches_up()
        await wake_ups.reconcile("devnet")
    finally:
        await wake_ups.close()


@fault(
    "new payments on a chain answer 503 `chain_unavailable`",
    "chain:devnet",
    "it has no cursor (ChainState)",
    health_of("chain:devnet"),
)
async def no_chain_state(it: Installation) -> AsyncIterator[None]:
    async with it.hung(LISTENER):  # a listener makes it again at once
        await it.execute("DELETE FROM chain_states")
        wanted = {"chain": "devnet", "token": "ETH", "amount": "1"}

        async def refused() -> bool:
            answer = await it.house.client.post("/v1/payments", json=wanted)
            return (answer.status_code, answer.json().get("code")) == (503, "chain_unavailable")

        await until(refused, "a payment to be refused", DEADLINE_S)
        yield


@fault(
    "confirmations come late",
    "rpc:devnet#0",
    "has no receipts",
    metric("server", lambda found: found.value("paywatch_payments_oldest_seconds", status="detected") > 1),
)
async def receipts_cannot_be_read(it: Installation) -> AsyncIterator[None]:
    def without(call: Call, answer: Call) -> Call:
        return result(call, None) if call["method"] == "eth_getTransactionReceipt" else answer

    await it.stops_mining()
    payment = await it.house.create("ETH", "1")
    await it.devnet.pay(payment)
    await it.devnet.anvil.mine()
    await it.house.reaches(payment["id"], "detected")
    it.node.change = without
    await it.devnet.anvil.mine(DEPTH)
    await it.devnet.anvil.send_ether(2, it.devnet.anvil.accounts[3], 1)  # the doctor asks for one of the newest
    await it.devnet.anvil.mine()
    yield
    it.node.change = None
    it.mines.set()
    await it.house.reaches(payment["id"], "confirmed", "settled")


@fault(
    "a node is unreachable",
    "rpc:devnet#0",
    "http://127.0.0.1:",
    both(
        health_of("rpc:devnet"),
        metric(LISTENER, lambda found: found.value("paywatch_rpc_breaker_state", state="closed") == 0),
    ),
)
async def the_node_is_away(it: Installation) -> AsyncIterator[None]:
    await it.node.stop()
    yield
    await it.node.start()
    await until(lambda: is_shown(it, health_of("rpc:devnet", "ok")), "the node's return in /health", SHOWN_S)


@fault(
    "a node limits our requests",
    "rpc:devnet#0",
    "limits our calls",
    both(
        metric(LISTENER, lambda found: found.value("paywatch_rpc_request_seconds_count", outcome="rate_limited") > 0),
        metric(LISTENER, lambda found: found.value("paywatch_rpc_breaker_state", state="open") > 0),
    ),
)
async def the_node_limits_calls(it: Installation) -> AsyncIterator[None]:
    it.node.limits_calls = True
    yield
    it.node.limits_calls = False


@fault(
    "a chain is halted at once after a change of nodes",
    "rpc:devnet#0",
    "of chain id 31338, chains.yaml says 31337",
    both(
        health_of("chain:devnet"),
        metric("server", lambda found: found.value("paywatch_chain_state", state="halted") == 1),
    ),
)
async def another_chain_behind_the_url(it: Installation) -> AsyncIterator[None]:
    async with Anvil(chain_id=31338) as other, it.hung(LISTENER):
        it.node.target = other.url
        try:
            async with it.another(LISTENER):
                yield
        finally:
            it.node.target = it.devnet.anvil.url


@fault(
    "a merchant got no webhook",
    "webhooks dead",
    "1 of them made within a week",
    metric("server", lambda found: found.value("paywatch_webhooks_dead") == 1),
)
async def the_receiver_fails_for_days(it: Installation) -> AsyncIterator[None]:
    """The days are skipped: after the first failure only the last attempt is left."""
    it.receiver.answer(then=500)
    count = len(it.receiver.requests)
    await it.house.create("ETH", "1", webhook_url=it.receiver.url)
    await it.receiver.wait_for_count(count + 1, DEADLINE_S)
    spent = len(limits.WEBHOOK_RETRY_DELAYS_S)
    pending = "status = 'pending' AND failure_count > 0 AND leased_until IS NULL"

    async def is_dead() -> bool:
        await it.execute(
            f"UPDATE webhook_deliveries SET failure_count = {spent}, next_attempt_at = now() WHERE {pending}"
        )
        return bool(await it.ask("SELECT count(*) FROM webhook_deliveries WHERE status = 'dead'"))

    await until(is_dead, "the last attempt to fail", DEADLINE_S)
    yield
    it.receiver.answer(then=200)
    await it.operate("webhooks", "replay", "--since", "2020-01-01", "--yes")
    await it.house.has_told()


@fault(
    "a merchant says that signatures are wrong",
    "webhook receivers",
    "http_401",
    metric(SENDERS, lambda found: found.value("paywatch_webhook_attempt_seconds_count", outcome="http_4xx") > 0),
    result="warning",
)
async def the_receiver_has_another_secret(it: Installation) -> AsyncIterator[None]:
    it.receiver.secret = OTHER_SECRET
    it.receiver.answer(then=401)
    count = len(it.receiver.requests)
    await it.house.create("ETH", "1", webhook_url=it.receiver.url)
    refused = (await it.receiver.wait_for_count(count + 1, DEADLINE_S))[-1]
    assert refused.problem == "No matching signature found"
    yield
    it.receiver.secret = WEBHOOK_SECRET
    it.receiver.answer(then=200)
    count = len(it.receiver.requests)

    async def sent_again() -> bool:
        due = "status = 'pending' AND leased_until IS NULL"
        await it.execute(f"UPDATE webhook_deliveries SET next_attempt_at = now() WHERE {due}")
        return len(it.receiver.requests) > count

    await until(sent_again, "another attempt", DEADLINE_S)
    assert it.receiver.requests[-1].verified


@fault(
    "`/health/ready` is 503 and names redis",
    "redis",
    "redis://127.0.0.1:",
    both(
        health_of("redis", "down"),
        metric("server", lambda found: found.value("paywatch_redis_up") == 0),
    ),
)
async def redis_is_away(it: Installation) -> AsyncIterator[None]:
    it.redis.stop()

    async def is_not_ready() -> bool:
        return (await it.house.client.get("/health/ready")).status_code == 503

    await until(is_not_ready, "a 503 of /health/ready", DEADLINE_S)
    count = len(it.receiver.requests)
    await it.house.create("ETH", "1", webhook_url=it.receiver.url)
    await it.receiver.wait_for_count(count + 1, DEADLINE_S)  # what is due is sent all the same
    yield
    await it.redis.start()


@fault(
    "requests answer 503 after ten seconds",
    "locks",
    "and others wait for it",
    metric("server", lambda found: found.value("paywatch_db_pool_use_ratio") == 1),
)
async def a_lock_that_everybody_waits_for(it: Installation) -> AsyncIterator[None]:
    wanted = {"chain": "devnet", "token": "ETH", "amount": "1"}

    async def buy() -> None:
        while True:
            answer = await client.post("/v1/payments", json=wanted)
            assert answer.status_code in (201, 503)

    buyers: list[asyncio.Task[None]] = []
    client = httpx.AsyncClient(
        base_url=it.house.url, headers=it.house.client.headers, timeout=2 * DEADLINE_S, trust_env=False
    )
    try:
        async with client, it.db.write() as session:
            await session.execute(text("LOCK TABLE payments IN SHARE MODE"))  # nobody writes there; all can read
            buyers += [asyncio.create_task(buy()) for _ in range(limits.DB_POOL_SIZE + 5)]
            yield
    finally:
        for buyer in buyers:
            buyer.cancel()
        await asyncio.gather(*buyers, return_exceptions=True)


@fault(
    "no worker of a role",
    "worker:webhook",
    "no worker of this role has a heartbeat",
    both(
        health_of("worker:webhook"),
        metric("server", lambda found: found.value("paywatch_worker_alive", role="webhook") == 0),
    ),
)
async def a_worker_is_killed(it: Installation) -> AsyncIterator[None]:
    it.workers[SENDERS].kill()
    yield
    await it.start_worker(SENDERS)


@fault(
    "a task stands still in a worker that lives",
    "tasks:devnet",
    "sweep_funds",
    both(
        health_of("tasks:devnet"),
        metric("server", lambda found: found.value("paywatch_task_late", task="sweep_funds") == 1),
    ),
)
async def every_step_fails(it: Installation) -> AsyncIterator[None]:
    it.node.limits_calls = True
    async with redis_client.Redis.from_url(it.redis.url) as redis:
        await redis.zincrby("paywatch:runs", -PROMISED_S, "sweep_funds:devnet")
    yield
    it.node.limits_calls = False


def stood_still(found: Exposition) -> bool:
    """A wake-up of the event loop was later than a second."""
    on_time = found.value("paywatch_event_loop_lag_seconds_bucket", le="1.0")
    return found.value("paywatch_event_loop_lag_seconds_count") > on_time


@fault("answers come in bursts", "process:server", "the loop is blocked", metric("server", stood_still), "warning")
async def the_event_loop_stands_still(it: Installation) -> AsyncIterator[None]:
    assert it.house.server is not None
    it.house.server.pause()
    await asyncio.sleep(limits.DOCTOR_LOOP_LAG_S + limits.VITALS_TICK_S)  # its tick is late by more than it may be
    it.house.server.resume()
    yield


@fault(
    "memory grows",
    "process:server",
    "that is much",
    metric("server", lambda found: found.value("process_resident_memory_bytes") > limits.DOCTOR_RSS_BYTES),
    result="warning",
)
async def the_server_uses_more_than_it_may(it: Installation) -> AsyncIterator[None]:
    """The limit is lowered to below what it uses: a server of 1.5 GiB is not made on a machine that others share."""
    with pytest.MonkeyPatch.context() as patch:
        used = (await it.metrics("server")).value("process_resident_memory_bytes")
        patch.setattr(limits, "DOCTOR_RSS_BYTES", int(used) - 2**24)
        yield


@fault(
    "nothing is swept: no key",
    "worker:sweeper",
    "no worker of this role has a heartbeat",
    both(
        health_of("worker:sweeper"),
        metric("server", lambda found: found.value("paywatch_worker_alive", role="sweeper") == 0),
    ),
)
async def the_sweeper_has_no_key(it: Installation) -> AsyncIterator[None]:
    it.workers[SENDERS].send(signal.SIGTERM)
    assert await it.workers[SENDERS].ended(STOP_S) == 0
    await it.start_worker(SENDERS, MNEMONIC="")
    yield
    it.workers[SENDERS].send(signal.SIGTERM)
    assert await it.workers[SENDERS].ended(STOP_S) == 0
    await it.start_worker(SENDERS)


@fault(
    "a sweep is frozen, the nonce does not move",
    "sweeps:devnet",
    "1 frozen: ",
    both(
        health_of("sweeps:devnet"),
        metric("server", lambda found: found.value("paywatch_sweeps_frozen", chain="devnet") == 1),
    ),
)
async def somebody_else_uses_the_account(it: Installation) -> AsyncIterator[None]:
    anvil = it.devnet.anvil
    payment = await it.house.create("ETH", "1")
    await it.operate("sweep", "pause", "--reason", "a test", "--yes")
    await it.devnet.pay(payment)
    await it.house.reaches(payment["id"], "confirmed")
    await it.stops_mining()
    await it.operate("sweep", "resume", "--yes")

    async def signed() -> Any:
        return (await it.house.get("/v1/sweeps", payment_id=payment["id"]))["data"]

    [sweep] = await until(signed, "the sweep", DEADLINE_S)
    await until(lambda: anvil.rpc("eth_getTransactionByHash", sweep["tx_hash"]), "its broadcast", DEADLINE_S)
    address = payment["address"]
    async with it.hung(SENDERS):  # else it may broadcast the sweep once more in between
        await anvil.rpc("anvil_dropAllTransactions")
        await anvil.rpc("anvil_impersonateAccount", address)
        price = (await anvil.block())["baseFeePerGas"]
        call = {"from": address, "to": address, "value": "0x0", "gas": hex(21_000), "gasPrice": price}
        await anvil.rpc("eth_sendTransaction", call)
        await anvil.mine()
        await anvil.rpc("anvil_stopImpersonatingAccount", address)
    yield
    await it.operate("sweep", "release", sweep["id"], "--yes")
    await it.house.reaches(payment["id"], "settled")


@fault(
    "nothing is swept: gas",
    "gas:devnet",
    "a round needs ",
    both(
        health_of("gas:devnet"),
        metric("server", lambda found: found.value("paywatch_gas_account_short_wei", chain="devnet") > 0),
    ),
)
async def the_gas_account_is_empty(it: Installation) -> AsyncIterator[None]:
    await it.devnet.anvil.set_balance(GAS_ACCOUNT, 0)
    payment = await it.confirmed("USDC", "25")
    yield
    await it.devnet.anvil.set_balance(GAS_ACCOUNT, 10**18)
    await it.house.reaches(payment, "settled")


@fault(
    "an address keeps its money: its transfers are refused",
    "sweeps:devnet",
    "failed 2 times",
    metric("server", lambda found: found.value("paywatch_payments_oldest_seconds", status="confirmed") > 1),
)
async def the_token_refuses(it: Installation) -> AsyncIterator[None]:
    """The minutes between one try and the next are skipped."""
    payment = await it.house.create("USDC", "25")
    await it.operate("sweep", "pause", "--reason", "a test", "--yes")
    await it.devnet.pay(payment)
    await it.house.reaches(payment["id"], "confirmed")
    await it.blacklist(payment["address"], True)
    await it.operate("sweep", "resume", "--yes")
    await until(partial(it.was_swept_in_vain, payment["id"], 1), "a try to fail", DEADLINE_S)
    await it.execute("UPDATE sweeps SET ended_at = ended_at - interval '2 days'")
    await until(partial(it.was_swept_in_vain, payment["id"], 2), "another to fail", DEADLINE_S)
    yield
    await it.blacklist(payment["address"], False)
    await it.execute("UPDATE sweeps SET ended_at = ended_at - interval '2 days'")
    await it.house.reaches(payment["id"], "settled")


@fault(
    "stored webhook secrets cannot be read",
    "stored secrets",
    "cannot be decrypted",
    metric(
        "another webhook",
        lambda found: found.value("paywatch_webhook_attempt_seconds_count", outcome="signing_failed") > 0,
    ),
)
async def another_secret_key(it: Installation) -> AsyncIterator[Settings]:
    async with it.hung(SENDERS), it.another("webhook", SECRET_KEY=OTHER_KEY):
        it.mines.set()
        await it.house.create("ETH", "1", webhook_url=it.receiver.url)
        yield {"SECRET_KEY": OTHER_KEY}


@fault(
    "the server refuses the wallet, new addresses are another wallet's, or nothing is swept",
    "wallet",
    "PAYWATCH_XPUB is not the account",
    metric("another sweeper", lambda found: found.value("paywatch_job_seconds_count", outcome="failed") > 0),
)
async def another_wallets_words(it: Installation) -> AsyncIterator[Settings]:
    words = new_mnemonic()
    async with it.hung(SENDERS), it.another("sweeper", MNEMONIC=words):
        it.mines.set()
        payment = await it.confirmed()
        yield {"MNEMONIC": words}
    await it.house.reaches(payment, "settled")


# --- the tests


async def is_shown(it: Installation, shown: Shown) -> bool:
    return await shown(it)


async def finding(it: Installation, check: str, settings: Settings) -> Finding:
    return (await it.doctor(settings)).get(check) or {"result": "not looked at", "found": "", "remedy": ""}


async def all_is_well(it: Installation) -> None:
    """Wait until the doctor has nothing to say: what the last fault left, a halted chain perhaps, ails the next too."""
    ailing: dict[str, str] = {}

    async def well() -> bool:
        findings = (await it.doctor({})).values()
        ailing.clear()
        ailing.update({each["check"]: each["found"] for each in findings if each["result"] != "ok"})
        return not ailing

    try:
        await until(well, "all to be well", SHOWN_S)
    except TimeoutError:
        pytest.fail(f"not well before the fault is made: {ailing}")


@pytest.mark.parametrize("fault", [pytest.param(each, id=each.make.__name__) for each in FAULTS])
async def test_a_fault_is_named_and_shown_within_a_minute(
    installation: Installation, house: House, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DOCTOR_NODE_S", 4.0)  # in the doctor alone: how long it waits for a node that hangs
    it = installation

    async def well() -> bool:
        return (await finding(it, fault.check, {}))["result"] == "ok"

    await all_is_well(it)
    async with fault.make(it) as settings:
        seen: Finding = {}

        async def named() -> bool:
            seen.update(await finding(it, fault.check, settings or {}))
            return seen["result"] == fault.result and fault.said in seen["found"] and bool(seen["remedy"])

        try:
            await until(named, f"the doctor's {fault.check}", SHOWN_S)
        except TimeoutError:
            pytest.fail(f"the doctor says of {fault.check} not {fault.said!r}, but {seen}")
        await until(lambda: is_shown(it, fault.shown), f"{fault.check} in health and metrics", SHOWN_S)
    await until(well, f"{fault.check} to be well again", SHOWN_S)


# --- what fails before anything runs


@dataclass(frozen=True)
class Refusal:
    """`command` ends with code 1 and says `told`, and the doctor's `check` says `said`; `mend` is a command too."""

    symptom: str
    make: Callable[[str], AbstractAsyncContextManager[None]]
    command: Sequence[str]
    told: str
    check: str
    said: str
    mend: Sequence[str]
    sqlite_alone: bool = False


@asynccontextmanager
async def an_older_schema(url: str) -> AsyncIterator[None]:
    await schema.downgrade(url, "0001")
    yield


@asynccontextmanager
async def tables_without_their_record(url: str) -> AsyncIterator[None]:
    db = Database(url)
    async with db.write() as session:
        await session.execute(text("DROP TABLE alembic_version"))
    await db.close()
    yield


@asynccontextmanager
async def a_writer(url: str) -> AsyncIterator[None]:
    await schema.downgrade(url, "0001")
    writer = sqlite3.connect(url.partition("///")[2], isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        yield
    finally:
        writer.close()


UPGRADE: Final = ("migrate.py", "upgrade")
# The same, but it waits a second for whoever writes, and not a minute.
_HASTE: Final = (
    "import sys, migrate; from app.db import schema_connection; schema_connection.LOCK_WAIT_S = 1.0; "
    "sys.argv[1:] = ['upgrade']; sys.exit(migrate.main())"
)
REFUSALS: Final = [
    Refusal(
        symptom="the server refuses to start: schema",
        make=an_older_schema,
        command=("server.py",),
        told="python migrate.py upgrade",
        check="schema",
        said="0001",
        mend=UPGRADE,
    ),
    Refusal(
        symptom='a migration fails: "already exists", or an unknown revision',
        make=tables_without_their_record,
        command=UPGRADE,
        told="already",
        check="schema",
        said="no schema",
        mend=("migrate.py", "stamp", "head"),
    ),
    Refusal(
        symptom="a migration on SQLite loses AUTOINCREMENT, or finds the file locked",
        make=a_writer,
        command=("-c", _HASTE),
        told="another process still wrote to it",
        check="locks",
        said="another process has held the writer's place",
        mend=UPGRADE,
        sqlite_alone=True,
    ),
]


@pytest.mark.parametrize("refusal", [pytest.param(each, id=each.make.__name__) for each in REFUSALS])
async def test_what_does_not_start_says_why_and_so_does_the_doctor(
    db_url: str, database_backend: Postgres | None, refusal: Refusal
) -> None:
    if refusal.sqlite_alone and database_backend is not None:
        pytest.skip("PostgreSQL has writers beside each other")
    nowhere = chains_yaml(chain_yaml("http://127.0.0.1:1"))
    house = House(nowhere, database_url=db_url, redis_url="redis://127.0.0.1:1/0")

    async def checked() -> Finding:
        report = json.loads((await command("doctor", "--json", **house.settings)).out)
        return next(found for found in report["findings"] if found["check"] == refusal.check)

    try:
        async with refusal.make(db_url):
            program = house.run(*refusal.command)
            assert await program.ended(START_S) == 1
            assert refusal.told in program.output
            found = await checked()
            assert (found["result"], refusal.said in found["found"]) == ("failed", True), found
            with pytest.raises(httpx.ConnectError):
                await house.client.get("/health")
        mended = house.run(*refusal.mend)
        assert await mended.ended(START_S) == 0, mended.output
        assert (await checked())["result"] == "ok"
    finally:
        await house.close()


def test_no_limit_is_as_long_as_what_is_promised() -> None:
    """What the faults above cannot show: they wait longer on a busy machine."""
    patience = (limits.LAGGING_AFTER_S, limits.DOCTOR_TRANSACTION_S, limits.DOCTOR_QUEUE_S, limits.DOCTOR_DUE_S)
    expiring = (limits.VITALS_EXPIRE_S, limits.DOCTOR_SWEEP_ROUND_S, limits.HEARTBEAT_S)
    assert max(*patience, *expiring) < PROMISED_S

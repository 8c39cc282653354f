"""A whole installation that a test breaks somewhere: a chain, a paid payment, a database, Redis, workers on call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.core.chains import Chain, ChainsFile
from app.core.config import Settings
from app.core.secrets import SecretBox
from app.services.doctor import Finding, examine, make_patient
from app.services.gateway import running_gateway
from app.services.views import PaymentView
from app.workers.runner import run_workers
from tests.services.blockchain.watch import CONFIRMATIONS, Watch, open_watch
from tests.support.anvil import Anvil
from tests.support.gateway import chains_of
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer

WAIT_S = 60.0
SECRET_KEY = "kept-well-3xq9-ZTRpWn7vLb2cYdHs-Qm4"


@dataclass
class System:
    """`paid` is confirmed, `unpaid` is pending. `settings` and `chain` are what the doctor is given: replace them."""

    watch: Watch
    redis: RedisServer
    postgres: Postgres | None
    settings: Settings
    chain: Chain
    paid: PaymentView
    unpaid: PaymentView

    @property
    def chains(self) -> ChainsFile:
        return chains_of(self.chain)

    def configure(self, **changed: Any) -> None:
        """Other settings, checked as they are when they are loaded."""
        self.settings = Settings(_env_file=None, **(self.settings.model_dump() | changed))

    async def examine(self) -> dict[str, Finding]:
        patient = make_patient(self.settings, self.chains)
        try:
            return {finding.check: finding for finding in await examine(patient)}
        finally:
            await patient.context.close()

    async def execute(self, *statements: str, **values: Any) -> None:
        async with self.watch.context.db.write() as session:
            for statement in statements:
                await session.execute(text(statement), values)

    async def add_node(self, url: str, *, first: bool = False) -> None:
        """Another endpoint; alone when it is the `first`."""
        self.chain = replace(self.chain, rpc_urls=(url,) if first else (*self.chain.rpc_urls, url))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A server and workers beside each other, and the doctor finds them."""
        stop = asyncio.Event()
        async with running_gateway(self.settings, self.chains, self.settings.redis_url):
            roles = ["listener", "webhook"]
            workers = asyncio.create_task(run_workers(self.settings, self.chains, self.settings.redis_url, roles, stop))
            try:
                await self.until(
                    lambda found: found["worker:listener"].result == found["worker:webhook"].result == "ok"
                )
                yield
            finally:
                stop.set()
                await workers

    async def until(self, holds: Any) -> dict[str, Finding]:
        """What the doctor finds, once it finds that."""
        async with asyncio.timeout(WAIT_S):
            while not holds(found := await self.examine()):
                await asyncio.sleep(0.1)
        return found


@pytest.fixture
async def system(
    db_url: str,
    database_backend: Postgres | None,
    redis_url: str,
    redis_server: RedisServer,
    anvil: Anvil,
    tmp_path: Path,
) -> AsyncIterator[System]:
    usdc = await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    async with open_watch(db_url, tmp_path, anvil, tokens={"USDC": usdc}) as watch:
        paid, unpaid = await watch.create(), await watch.create("ETH", "1")
        await anvil.set_balance(unpaid.address, 0)  # one of Anvil's own words, and rich
        await watch.pay(paid)
        await watch.mine_and_scan(CONFIRMATIONS)
        assert (await watch.get(paid)).status == "confirmed"
        settings = Settings(
            _env_file=None,
            **watch.context.settings.model_dump() | {"redis_url": redis_url, "secret_key": SECRET_KEY},
        )
        it = System(watch, redis_server, database_backend, settings, watch.chain, paid, unpaid)
        sealed = SecretBox(SECRET_KEY).encrypt("whsec_" + "QUFB" * 8)
        await it.execute("UPDATE merchants SET webhook_secret = :sealed", sealed=sealed)
        await it.execute("DELETE FROM webhook_deliveries")  # nobody listens at the payments' URL
        yield it

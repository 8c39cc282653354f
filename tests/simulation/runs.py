"""Runs of many seeds in one process: one loop, one HTTP server, one migrated database that each run gets a copy of."""

import asyncio
import contextlib
import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import structlog
from sqlalchemy import select

from app.blockchain.wallet import AddressDeriver, account_xpub
from app.core.chains import ChainsFile, load_chains
from app.core.config import Settings
from app.core.ids import new_id
from app.db import schema
from app.db.models import Merchant, WebhookEndpoint
from app.services.context import open_context
from app.services.merchants import ensure_first_merchant
from tests.simulation.chain import CHAIN_ID, DAI, USDC
from tests.simulation.node import NodeServer
from tests.simulation.virtual import SimulatedLoop, sqlite_on_the_loop
from tests.simulation.world import Installation, Report, Weather, World
from tests.support.postgres import Postgres

MNEMONIC = "test test test test test test test test test test test junk"
SECRET_KEY = "simulated" * 4
RUN_LIMIT_S = 60  # real seconds; a run takes half of one
CHAINS = """
chains:
  - name: simulated
    chain_id: {chain_id}
    rpc_urls: ["http://127.0.0.1:1"]
    confirmations_required: {confirmations}
    finality: {finality}
    block_batch_size: {batch_blocks}
    native: {{symbol: ETH, decimals: 18, detect: {detect}}}
    tokens:
      - {{symbol: USDC, address: "0x{usdc}", decimals: 6}}
      - {{symbol: DAI, address: "0x{dai}", decimals: 18}}
"""


class Stuck(Exception):  # noqa: N818
    """A run that came to no end."""


class Runs:
    """A context manager that runs seeds. `postgres`: a server to make the databases in, else they are SQLite files."""

    def __init__(self, postgres: Postgres | None = None) -> None:
        self._postgres = postgres
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Runs":
        shared_memory = Path("/dev/shm")
        parent = shared_memory if shared_memory.is_dir() else None  # a run commits often, and its disk is no matter
        self._folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="paywatch-", dir=parent)))
        self._deriver = AddressDeriver(account_xpub(MNEMONIC))
        with _quiet():
            asyncio.run(self._make_template())
        self._open_loop()
        self._exits.callback(self._close_loop)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._exits.close()

    def run(self, seed: int, resets: bool = False) -> Report:
        """One run; with `resets` an operator sets the cursor back now and then.

        It is given up after RUN_LIMIT_S, which the report then tells.
        """
        with contextlib.ExitStack() as exits:
            if self._postgres is None:
                exits.enter_context(sqlite_on_the_loop())
            exits.enter_context(_alarm(RUN_LIMIT_S))
            exits.enter_context(_quiet())
            report = Report(seed)
            try:
                report = self._loop.run_until_complete(self._run(seed, resets))
            except Stuck as stuck:
                report.problems.append(str(stuck))
                self._open_loop()  # what hangs in the old one is left there
        return report

    async def _run(self, seed: int, resets: bool) -> Report:
        before = asyncio.all_tasks()
        async with contextlib.AsyncExitStack() as exits:
            url = await self._copy(exits)
            installation = Installation(
                self._settings(url), self._chains, self._deriver, self._merchant_id, self._server
            )
            report = await World(seed, installation, self._loop, resets).run()
        for task in asyncio.all_tasks() - before:
            if "RequestHandler" not in repr(task):  # a connection of the server's, which ends with its client's
                task.cancel()
        return report

    async def _make_template(self) -> None:
        self._template = await self._postgres.create_database() if self._postgres else self._sqlite("template")
        await schema.upgrade(self._template)
        context = open_context(self._settings(self._template), self._chains(None))
        await ensure_first_merchant(context)
        async with context.db.write() as session:
            self._merchant_id = (await session.scalars(select(Merchant.id))).one()
            created = (await session.scalars(select(Merchant.created_at))).one()
            for types in (None, ["payment.confirmed", "payment.reverted", "payment.settled"]):
                session.add(
                    WebhookEndpoint(
                        id=new_id("whe"),
                        merchant_id=self._merchant_id,
                        url=f"https://erp.example/{len(types or ())}",
                        event_types=types,
                        secret=b"unused",
                        created_at=created,
                    )
                )
        await context.close()

    async def _copy(self, exits: contextlib.AsyncExitStack) -> str:
        if self._postgres is not None:
            url = await self._postgres.create_database(template=self._template.rpartition("/")[2].partition("?")[0])
            exits.push_async_callback(self._postgres.drop_database, url)
            return url
        for suffix in ("", "-wal", "-shm"):
            (self._folder / f"run.db{suffix}").unlink(missing_ok=True)
        shutil.copyfile(self._folder / "template.db", self._folder / "run.db")
        return self._sqlite("run")

    def _sqlite(self, name: str) -> str:
        return f"sqlite+aiosqlite:///{self._folder / name}.db?check_same_thread=false"

    def _settings(self, url: str) -> Settings:
        return Settings(
            _env_file=None, database_url=url, secret_key=SECRET_KEY, redis_url="", public_url="https://pay.example"
        )

    def _chains(self, weather: Weather | None) -> ChainsFile:
        finality = "{depth: 64}"
        if weather is not None:
            finality = "{tag: finalized}" if weather.by_tag else f"{{depth: {weather.finality_depth}}}"
        text = CHAINS.format(
            chain_id=CHAIN_ID,
            confirmations=weather.confirmations if weather else 1,
            finality=finality,
            batch_blocks=weather.batch_blocks if weather else 1,
            detect=weather.detect if weather else "blocks",
            usdc=USDC.hex(),
            dai=DAI.hex(),
        )
        path = self._folder / "chains.yaml"
        path.write_text(text)
        return load_chains(path, {})

    def _open_loop(self) -> None:
        self._loop = SimulatedLoop()
        self._server = NodeServer()
        self._loop.run_until_complete(self._server.start())

    def _close_loop(self) -> None:
        self._loop.run_until_complete(self._server.stop())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise Stuck(f"no end after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    other = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *other)  # pytest-timeout's own


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No log of the gateway's: it complains, as it should, thousands of times."""
    level, configuration = logging.root.manager.disable, structlog.get_config()
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        logging.disable(level)
        structlog.configure(**configuration)

"""A gateway on real parts for tests of the API and the services: one devnet chain, one merchant, an HTTP client."""

import asyncio
import copy
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import uvicorn
from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.datastructures import State

from app.core.chains import Chain, ChainsFile, Finality, Native, Rates, Sweep, Token
from app.core.clock import utc_now
from app.core.config import Settings
from app.core.evm import to_bytes20
from app.core.ids import new_id
from app.core.secrets import hash_api_key
from app.db.base import Base
from app.db.engine import Database
from app.db.models import ApiKey, Merchant
from app.services.gateway import Gateway, running_gateway
from devnet.ports import free_port, give_back
from server import create_app
from tests.support.anvil import MNEMONIC, Anvil
from tests.support.secrets import API_KEY, SECRET_KEY, WEBHOOK_SECRET

PUBLIC_URL = "https://pay.example.com"
CHAIN_ID = 31337


@dataclass(frozen=True)
class Devnet:
    """A node and the token on it."""

    anvil: Anvil
    usdc: str

    def chain(self, **changed: Any) -> Chain:
        """The chain as chains.yaml would describe it."""
        values: dict[str, Any] = {
            "name": "devnet",
            "enabled": True,
            "chain_id": CHAIN_ID,
            "rpc_urls": (self.anvil.url,),
            "ws_url": None,
            "confirmations_required": 3,
            "finality": Finality(depth=64),
            "block_batch_size": 200,
            "poll_interval_s": 0.1,
            "start_block": None,
            "native": Native(),
            "tokens": (Token("USDC", to_bytes20(self.usdc), 6),),
            "sweep": Sweep(),
        }
        return Chain(**(values | changed))


@asynccontextmanager
async def running_devnet() -> AsyncIterator[Devnet]:
    async with Anvil() as anvil:
        yield Devnet(anvil, await anvil.deploy("TestToken", "USD Coin", "USDC", 6))


def settings_for(db_url: str, redis_url: str, **changed: Any) -> Settings:
    values: dict[str, Any] = {
        "database_url": db_url,
        "redis_url": redis_url,
        "public_url": PUBLIC_URL,
        "mnemonic": MNEMONIC,
        "api_key": API_KEY,
        "webhook_secret": WEBHOOK_SECRET,
        "secret_key": SECRET_KEY,
        "webhook_allow_networks": "127.0.0.0/8",
        "rate_limit": "1000000/second",  # counted as ever, and out of the way of a test that asks often
    }
    return Settings(_env_file=None, **(values | changed))


def chains_of(*chains: Chain, rates: Rates | None = None) -> ChainsFile:
    return ChainsFile(path=Path("chains.yaml"), chains=chains, rates=rates)


@asynccontextmanager
async def open_gateway(
    db_url: str, redis_url: str, *chains: Chain, rates: Rates | None = None, **changed: Any
) -> AsyncIterator[Gateway]:
    """A gateway over a migrated database; `changed` are settings."""
    settings = settings_for(db_url, redis_url, **changed)
    async with running_gateway(settings, chains_of(*chains, rates=rates), redis_url) as gateway:
        for told in (gateway.readiness, gateway.health, gateway.metrics):
            told.keep_s = 0.0  # a test asks for what it has just changed
        yield gateway


@cache
def _template() -> FastAPI:
    return create_app()


def app_of(gateway: Gateway) -> FastAPI:
    """The application over a gateway. Its routes are made once: a tenth of a second for each of a thousand tests."""
    app = copy.copy(_template())
    app.state = State({"gateway": gateway})
    app.middleware_stack = None
    return app


def client_of(gateway: Gateway, api_key: str = API_KEY) -> httpx.AsyncClient:
    """Talks to the real application in this process. An error that escapes it is a 500, as behind uvicorn.

    Every answer must be one that the OpenAPI document knows.
    """
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app_of(gateway), raise_app_exceptions=False),
        base_url="http://paywatch.test",
        headers={"Authorization": f"Bearer {api_key}"},
        event_hooks={"response": [_assert_documented]},
    )


async def _assert_documented(response: httpx.Response) -> None:
    """The status, and a problem's code, are named by the operation that was asked, if there is one."""
    operation = _operation(response.request.method, response.request.url.path)
    if operation is None:
        return
    assert str(response.status_code) in operation["responses"], response.status_code
    if response.headers.get("content-type") == "application/problem+json":
        code = json.loads(await response.aread())["code"]
        [examples] = [
            content["examples"] for content in operation["responses"][str(response.status_code)]["content"].values()
        ]
        assert code in examples, f"{response.status_code} {code} is not documented"


@cache
def _operations() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    paths = _template().openapi()["paths"]
    return [(re.compile(re.sub(r"\{[^}]*\}", "[^/]+", path)), methods) for path, methods in paths.items()]


def _operation(method: str, path: str) -> dict[str, Any] | None:
    """What the OpenAPI document says of a request; None where no operation was asked."""
    for pattern, methods in _operations():
        if pattern.fullmatch(path) and method.lower() in methods:
            operation: dict[str, Any] = methods[method.lower()]
            return operation
    return None


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[str]:
    """The application behind a real HTTP server, for what does not end by itself; its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app_of(gateway), port=port, log_config=None, lifespan="off"))
    with patch.object(server, "capture_signals", nullcontext):
        task = asyncio.create_task(server.serve())
        while not server.started:
            assert not task.done()
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            gateway.streams.close()
            server.should_exit = True
            await task
            give_back(port)


async def add_merchant(gateway: Gateway, api_key: str, *scopes: str) -> str:
    """Another merchant with a key of its own, by default with every scope; its id."""
    async with gateway.context.db.write() as session:
        secret = gateway.context.box.encrypt(WEBHOOK_SECRET)
        now = utc_now()
        merchant = Merchant(id=new_id("mer"), name="another", webhook_secret=secret, created_at=now)
        session.add(merchant)
        await session.flush()
        session.add(
            ApiKey(
                id=new_id("key"),
                merchant_id=merchant.id,
                name="test",
                key_hash=hash_api_key(api_key),
                scopes=sorted(scopes) or ["admin"],
                created_at=now,
            )
        )
    return merchant.id


async def create_payment(client: httpx.AsyncClient, **changed: Any) -> dict[str, Any]:
    """A payment of 25 USDC unless `changed`; fails unless it is answered 201."""
    body = {"chain": "devnet", "token": "USDC", "amount": "25"} | changed
    response = await client.post("/v1/payments", json=body)
    assert response.status_code == 201, response.text
    payment: dict[str, Any] = response.json()
    return payment


async def row_counts(db: Database) -> dict[str, int]:
    """How many rows each table has."""
    counts = [
        select(func.count()).select_from(table).scalar_subquery().label(table.name)
        for table in Base.metadata.sorted_tables
    ]
    async with db.read() as session:
        return dict((await session.execute(select(*counts))).mappings().one())

"""Goal: the first merchant and its key are what the settings say, from whichever start and however many at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from sqlalchemy import select

from app.core.errors import ConfigError
from app.db.models import ApiKey, Merchant
from app.services.context import Context, open_context
from app.services.gateway import Gateway
from app.services.merchants import ensure_first_merchant
from tests.support.gateway import API_KEY, Devnet, add_merchant, chains_of, client_of, open_gateway, settings_for


@asynccontextmanager
async def started(db_url: str, api_key: str | None, redis_url: str = "redis://never-asked") -> AsyncIterator[Context]:
    """The context of a server; without a Redis an embedded one."""
    context = open_context(settings_for(db_url, redis_url, api_key=api_key), chains_of())
    try:
        yield context
    finally:
        await context.close()


async def start(db_url: str, api_key: str | None, redis_url: str = "redis://never-asked") -> str | None:
    async with started(db_url, api_key, redis_url) as context:
        return await ensure_first_merchant(context)


async def status_of(gateway: Gateway, key: str) -> int:
    async with client_of(gateway, key) as client:
        return (await client.get("/v1/keys")).status_code


async def test_another_key_in_the_settings_revokes_its_predecessor_and_no_other(db_url: str, gateway: Gateway) -> None:
    async with client_of(gateway) as client:
        shop = (await client.post("/v1/keys", json={"name": "shop", "scopes": ["admin"]})).json()["key"]
    for now, before in (("second", API_KEY), ("third", "second"), ("second", "third")):
        for _ in range(2):  # a second start changes nothing
            assert await start(db_url, now) is None
        assert [await status_of(gateway, key) for key in (now, before, shop)] == [200, 401, 200]
    async with gateway.context.db.read() as session:
        assert len(list(await session.scalars(select(ApiKey)))) == 4
        assert len(list(await session.scalars(select(Merchant)))) == 1


async def test_a_key_that_left_the_settings_works_until_it_is_revoked(db_url: str, gateway: Gateway) -> None:
    assert await start(db_url, None) is None
    assert await status_of(gateway, API_KEY) == 200
    async with open_gateway(db_url, "redis://127.0.0.1:9", api_key=None) as without, client_of(without) as client:
        [key] = (await client.get("/v1/keys")).json()["data"]
        assert (await client.delete(f"/v1/keys/{key['id']}")).status_code == 204
        assert (await client.get("/v1/keys")).status_code == 401


async def test_embedded_mode_makes_a_key_once(db_url: str, redis_url: str, devnet: Devnet) -> None:
    made = await start(db_url, None, redis_url="")
    assert made is not None
    assert await start(db_url, None, redis_url="") is None
    async with open_gateway(db_url, redis_url, devnet.chain(), api_key=None) as gateway:
        assert await status_of(gateway, made) == 200
    assert await start(db_url, "mine", redis_url="") is None
    async with open_gateway(db_url, redis_url, devnet.chain(), api_key="mine") as gateway:
        assert [await status_of(gateway, key) for key in (made, "mine")] == [401, 200]


@pytest.mark.parametrize("whose", ["own", "revoked", "another's"])
async def test_a_key_that_is_there_already_is_not_taken_for_the_settings(
    db_url: str, gateway: Gateway, whose: str
) -> None:
    if whose == "another's":
        await add_merchant(gateway, taken := "pwk_of_another")
    else:
        async with client_of(gateway) as client:
            made = (await client.post("/v1/keys", json={"name": "shop", "scopes": ["payments:read"]})).json()
            taken = made["key"]
            if whose == "revoked":
                await client.delete(f"/v1/keys/{made['id']}")
    with pytest.raises(ConfigError, match="PAYWATCH_API_KEY: is the API key key_"):
        await start(db_url, taken)
    assert await status_of(gateway, API_KEY) == 200


async def test_servers_that_start_at_once_make_one_merchant(db_url: str) -> None:
    async with AsyncExitStack() as stack:
        contexts = [await stack.enter_async_context(started(db_url, API_KEY)) for _ in range(5)]
        for context in contexts:  # connected, so that none is a connection's time ahead
            async with context.db.read() as session:
                assert list(await session.scalars(select(Merchant))) == []
        assert await asyncio.gather(*map(ensure_first_merchant, contexts)) == [None] * 5
        async with contexts[0].db.read() as session:
            assert len(list(await session.scalars(select(Merchant)))) == 1
            assert len(list(await session.scalars(select(ApiKey)))) == 1


@pytest.mark.parametrize("key", ["schlüssel ☕ mit  lücken", "  blanks around  "])
async def test_any_string_is_a_key(db_url: str, redis_url: str, devnet: Devnet, key: str) -> None:
    async with open_gateway(db_url, redis_url, devnet.chain(), api_key=key) as gateway, client_of(gateway) as client:
        response = await client.get("/v1/keys", headers=[(b"Authorization", b"Bearer " + key.encode())])
        assert response.status_code == 200

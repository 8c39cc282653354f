"""Goal: a Redis that hangs holds up one request shortly, and those after it not at all."""

import asyncio
from typing import Any

import pytest

from app.core import limits
from tests.support.gateway import Devnet, client_of, create_payment, open_gateway
from tests.support.redis import RedisServer

HOOK = "http://127.0.0.1:9/hooks"
SHORTLY_S = 60.0  # a test's end, and no time that anything takes


async def test_a_redis_that_hangs_is_asked_once_and_then_left_alone(
    db_url: str, devnet: Devnet, redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command on its own would wait longer than this test: what ends it is the wake-up's own time."""
    monkeypatch.setattr(limits, "REDIS_TIMEOUT_S", 100 * SHORTLY_S)
    asked = 0
    async with (
        open_gateway(db_url, redis_url, devnet.chain(), rate_limit="") as gateway,
        client_of(gateway) as client,
    ):
        enqueue_job = gateway.wake_ups.redis.enqueue_job

        async def counted(*args: Any, **options: Any) -> Any:
            nonlocal asked
            asked += 1
            return await enqueue_job(*args, **options)

        monkeypatch.setattr(gateway.wake_ups.redis, "enqueue_job", counted)
        redis_server.process.pause()
        try:
            async with asyncio.timeout(SHORTLY_S):
                monkeypatch.setattr(limits, "WAKE_UP_REST_S", 0.0)
                for number in (1, 2):
                    await create_payment(client, webhook_url=HOOK)
                    assert asked == number, "a rest that is over"
                monkeypatch.setattr(limits, "WAKE_UP_REST_S", 3_600.0)
                payments = [await create_payment(client, webhook_url=HOOK) for _ in range(5)]
        finally:
            redis_server.process.resume()
        assert asked == 3
        await client.post(f"/v1/payments/{payments[0]['id']}/cancel")
        assert asked == 3


async def test_a_redis_that_is_back_is_asked_again(
    db_url: str, devnet: Devnet, redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WAKE_UP_REST_S", 0.0)
    async with (
        open_gateway(db_url, redis_url, devnet.chain(), rate_limit="") as gateway,
        client_of(gateway) as client,
    ):
        redis_server.stop()
        await create_payment(client, webhook_url=HOOK)
        await redis_server.start()
        await create_payment(client, webhook_url=HOOK)
        assert await gateway.wake_ups.redis.zcard("paywatch:webhook") == 1

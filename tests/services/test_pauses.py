"""Goal: paused webhooks wait without losing a try, and every pause is seen where an operator looks."""

from datetime import timedelta

import httpx
import pytest
from sqlalchemy import select, update

from app.core.chains import Sweep
from app.core.clock import utc_now
from app.db.models import Pause, WebhookReceiver
from app.services import pauses
from app.services.blockchain import control
from app.services.context import Context, open_context
from app.services.gateway import Gateway
from app.services.metrics import exposition
from app.services.status import health, overview
from tests.support.gateway import Devnet, create_payment, open_gateway
from tests.support.outbox import attempts, make_due, rows, send_all
from tests.support.receiver import Receiver


async def pause(context: Context, what: str = pauses.WEBHOOKS) -> None:
    assert await pauses.pause(context, what, "receivers move", "op")


async def resume(context: Context, what: str = pauses.WEBHOOKS) -> None:
    assert await pauses.resume(context, what, "op")


async def test_paused_webhooks_are_written_and_all_sent_afterwards(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    await pause(gateway.context)
    for _ in range(3):
        await create_payment(client, webhook_url=receiver.url)
    assert await send_all(gateway.context, sender) == 0
    again = open_context(gateway.context.settings, gateway.context.chains)  # a worker that was restarted
    assert await send_all(again, sender) == 0
    await again.close()
    assert [(row.status, row.attempt_count, row.failure_count) for row in await rows(gateway)] == [
        ("pending", 0, 0)
    ] * 3
    assert receiver.requests == []
    await resume(gateway.context)
    assert await send_all(gateway.context, sender) == 3
    assert [row.status for row in await rows(gateway)] == ["delivered"] * 3


async def test_a_retry_that_comes_due_in_a_pause_keeps_its_place_in_the_schedule(
    gateway: Gateway, client: httpx.AsyncClient, sender: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answer(500, then=200)
    await create_payment(client, webhook_url=receiver.url)
    await send_all(gateway.context, sender)
    await pause(gateway.context)
    await make_due(gateway)
    assert await send_all(gateway.context, sender) == 0
    [row] = await rows(gateway)
    assert (row.status, row.attempt_count, row.failure_count) == ("pending", 1, 1)
    await resume(gateway.context)
    await send_all(gateway.context, sender)
    assert len(await attempts(gateway)) == 2


@pytest.mark.parametrize(
    ("failing_before", "expected"), [(timedelta(days=4), "pending"), (timedelta(days=5, minutes=30), "dead")]
)
async def test_the_time_of_a_pause_does_not_disable_a_receiver(
    gateway: Gateway,
    client: httpx.AsyncClient,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    failing_before: timedelta,
    expected: str,
) -> None:
    """Failing for four days, then a pause of thirty hours: not five days without a success, for nobody asked it."""
    receiver.answer(then=400)
    await create_payment(client, webhook_url=receiver.url)
    await send_all(gateway.context, sender)
    await pause(gateway.context)
    now, lasted = utc_now(), timedelta(hours=30)
    async with gateway.context.db.write() as session:
        await session.execute(update(Pause).values(since=now - lasted))
        failing = {"failing_since": now - lasted - failing_before, "last_failed_at": now - lasted - timedelta(hours=1)}
        await session.execute(update(WebhookReceiver).values(**failing))
    await resume(gateway.context)
    async with gateway.context.db.read() as session:
        [state] = await session.scalars(select(WebhookReceiver))
    assert timedelta(0) <= state.failing_since - (now - failing_before) < timedelta(minutes=5)
    await make_due(gateway)
    await send_all(gateway.context, sender)
    assert [row.status for row in await rows(gateway)] == [expected]


async def test_pausing_and_resuming_twice_changes_nothing(gateway: Gateway) -> None:
    context = gateway.context
    await pause(context)
    before = await pauses.active(context)
    assert not await pauses.pause(context, pauses.WEBHOOKS, "another reason", "somebody")
    assert await pauses.active(context) == before
    await resume(context)
    assert not await pauses.resume(context, pauses.WEBHOOKS, "op")


async def test_pauses_are_seen_in_health_status_chains_and_metrics(
    db_url: str, redis_url: str, devnet: Devnet, client: httpx.AsyncClient
) -> None:
    chain = devnet.chain(sweep=Sweep(mode="auto", treasury=b"\x7e" * 20))
    async with open_gateway(db_url, redis_url, chain) as gateway:
        context = gateway.context
        quiet = (await exposition(context, gateway.wake_ups)).decode()
        for what in ("webhooks", "sweep:devnet", "chain:devnet"):
            assert f'paywatch_paused{{what="{what}"}} 0.0' in quiet
        assert not [check for check in (await health(context, gateway.wake_ups)).checks if "pause" in check.name]

        await pause(context)
        await pause(context, pauses.SWEEPING)
        await control.halt(context, chain, "a node moves", "op")
        told = (await exposition(context, gateway.wake_ups)).decode()
        for what in ("webhooks", "sweep:devnet", "chain:devnet"):
            assert f'paywatch_paused{{what="{what}"}} 1.0' in told
        report = await health(context, gateway.wake_ups)
        checks = {check.name: check for check in report.checks}
        assert report.status == "degraded"
        for name, command in [
            ("pause:webhooks", "paywatch webhooks resume"),
            ("pause:sweep", "paywatch sweep resume"),
            ("chain:devnet", "paywatch chain resume devnet"),
        ]:
            assert checks[name].status == "degraded"
            assert " by op since 20" in checks[name].detail
            assert f"`{command}`" in checks[name].detail
        assert "receivers move" in checks["pause:webhooks"].detail
        seen = await overview(context)
        assert [(each.what, each.reason, each.paused_by) for each in seen.pauses] == [
            ("sweep", "receivers move", "op"),
            ("webhooks", "receivers move", "op"),
        ]
        [shown] = (await client.get("/v1/chains")).json()["data"]
        assert (shown["state"], "a node moves" in shown["reason"]) == ("halted", True)
        refused = await client.post("/v1/payments", json={"chain": "devnet", "token": "USDC", "amount": "1"})
        assert (refused.status_code, refused.json()["code"]) == (503, "chain_unavailable")

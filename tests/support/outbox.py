"""The outbox as tests look at it, move its times, and send from it."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import httpx
from sqlalchemy import select, update

from app.core import limits
from app.core.clock import utc_now
from app.db.models import WebhookAttempt, WebhookDelivery
from app.db.repositories import chains, payments
from app.services.context import Context
from app.services.decide import Change
from app.services.gateway import Gateway
from app.services.ledger import Cause, Story, payment_state, store
from app.services.webhook import DueDelivery, Outcome, claim, record, send
from tests.support.receiver import Received

PAST = timedelta(days=2)


async def rows(gateway: Gateway) -> list[WebhookDelivery]:
    """All deliveries, oldest event first."""
    async with gateway.context.db.read() as session:
        query = select(WebhookDelivery).order_by(WebhookDelivery.event_version, WebhookDelivery.id)
        return list(await session.scalars(query))


async def attempts(gateway: Gateway) -> list[WebhookAttempt]:
    async with gateway.context.db.read() as session:
        return list(await session.scalars(select(WebhookAttempt).order_by(WebhookAttempt.id)))


async def make_due(gateway: Gateway) -> None:
    """As if the time of every retry had come."""
    async with gateway.context.db.write() as session:
        await session.execute(
            update(WebhookDelivery).where(WebhookDelivery.status == "pending").values(next_attempt_at=utc_now() - PAST)
        )


async def end_leases(gateway: Gateway) -> None:
    """As if every sender's lease had run out."""
    async with gateway.context.db.write() as session:
        await session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.leased_until.is_not(None))
            .values(leased_until=utc_now() - timedelta(seconds=1))
        )


async def add_events(gateway: Gateway, payment_id: str, count: int) -> None:
    """`count` further events of a payment with their deliveries, as the watcher writes them."""
    async with gateway.context.db.write() as session:
        [record] = await payments.load(session, [payment_id])
        state = payment_state(gateway.context, record)
        changes = [
            Change("payment.underpaid", replace(state, version=state.version + number))
            for number in range(1, count + 1)
        ]
        cursors = await chains.list_states(session)
        await store(gateway.context, session, [Story(record, changes)], Cause("operator", {}), cursors, utc_now())


async def send_due(context: Context, http: httpx.AsyncClient) -> int:
    """One claim's worth; returns how many were sent, successfully or not. Cancelled, it is as good as killed: nothing
    is recorded or given back."""

    async def send_one(delivery: DueDelivery) -> None:
        await record(context, [Outcome(delivery, await send(context, http, delivery))])

    due = await claim(context, limits.WEBHOOK_CLAIM_ROWS)
    await asyncio.gather(*(send_one(delivery) for delivery in due))
    return len(due)


async def killed(task: asyncio.Task[int]) -> None:
    """End a `send_due` as a kill would."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def send_all(context: Context, http: httpx.AsyncClient) -> int:
    """Like the webhook's task: until nothing is due."""
    total = 0
    while sent := await send_due(context, http):
        total += sent
    return total


def version(request: Received) -> int:
    number: int = request.payload["data"]["version"]
    return number

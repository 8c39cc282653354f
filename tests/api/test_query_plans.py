"""Goal: requests and webhooks read rows by an index, however many payments there are."""

import httpx
import pytest

from app.services.gateway import Gateway
from tests.support.gateway import create_payment
from tests.support.outbox import send_due
from tests.support.plans import watched_statements
from tests.support.receiver import Receiver

LISTS = [
    "payments",
    "payments?status=expired",
    "payments?order_id=A-1",
    "payments?chain=devnet",
    "payments?token=USDC",
    "payments?address={address}",
    "payments?created_after=2026-01-01T00:00:00Z",
    "payments/{id}",
    "payments/{id}/events",
    "events",
    "events?type=payment.created",
    "events?payment_id={id}",
    "webhook_deliveries",
    "webhook_deliveries?status=pending",
    "webhook_deliveries?status=dead",
    "webhook_deliveries?payment_id={id}",
    "sweeps",
    "sweeps?status=confirmed",
    "sweeps?payment_id={id}",
    "chains",
    "keys",
    "webhook_endpoints",
    "merchant",
]


async def test_no_request_and_no_webhook_reads_a_whole_table(
    client: httpx.AsyncClient,
    gateway: Gateway,
    sender: httpx.AsyncClient,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with watched_statements(monkeypatch) as statements:
        await client.post("/v1/webhook_endpoints", json={"url": receiver.url})
        receiver.answer(500, then=200)
        payment = await create_payment(client, order_id="A-1", webhook_url=receiver.url_for("/own"))
        body = {"chain": "devnet", "token": "ETH", "amount": "1"}
        for _ in range(2):
            await client.post("/v1/payments", json=body, headers={"Idempotency-Key": "once"})
        for _ in range(2):
            await send_due(gateway.context, sender)
        await client.post(f"/v1/payments/{payment['id']}/cancel")
        await client.post("/v1/webhook_deliveries/replay", json={"since": payment["created_at"]})
        for path in LISTS:
            found = await client.get("/v1/" + path.format(**payment))
            assert found.status_code == 200, found.text
    assert await statements.reading_whole_tables(gateway.context.db) == []

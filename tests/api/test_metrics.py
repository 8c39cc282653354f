"""Goal: what health and `/v1/chains` say stands in the metrics too, without a key."""

import httpx
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from app.db.models import ChainState
from app.services.gateway import Gateway
from tests.support.gateway import create_payment


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Values by (name, label values…)."""
    response = await client.get("/metrics", headers={"Authorization": ""})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_the_chain_and_its_payments_are_counted(client: httpx.AsyncClient) -> None:
    await create_payment(client)
    found = await scrape(client)
    [chain] = (await client.get("/v1/chains")).json()["data"]
    assert found["paywatch_chain_cursor_block", "devnet"] == chain["cursor"]
    assert found["paywatch_chain_head_block", "devnet"] == chain["head"]
    assert found["paywatch_chain_state", "devnet", "ok"] == 1
    assert found["paywatch_payments", "pending"] == 1
    assert (found["paywatch_webhooks_dead",], found["paywatch_webhook_endpoints_disabled",]) == (0, 0)


async def test_a_halted_chain_shows(client: httpx.AsyncClient, gateway: Gateway) -> None:
    async with gateway.context.db.write() as session:
        await session.execute(update(ChainState).values(halt_code="reorg", halt_detail="a reorg below finality"))
    found = await scrape(client)
    assert [found["paywatch_chain_state", "devnet", state] for state in ("ok", "lagging", "halted")] == [0, 0, 1]

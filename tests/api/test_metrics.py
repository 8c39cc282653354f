"""Goal: what health and `/v1/chains` say stands in the metrics too, without a key, and whatever is away."""

import asyncio
import gc
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy import event, select, update

from app.blockchain.errors import TransientError
from app.core import limits, pulse
from app.core.clock import utc_now
from app.core.ids import new_id
from app.db.models import ChainState, NonceLane, Payment, Sweep, WebhookDelivery, WebhookReceiver
from app.services.gateway import Gateway
from tests.support.exposition import Exposition, counted, read_exposition
from tests.support.gateway import CHAIN_ID, Devnet, client_of, create_payment, open_gateway
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer


async def scrape(client: httpx.AsyncClient) -> Exposition:
    response = await client.get("/metrics", headers={"Authorization": ""})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read_exposition(response.text)


# --- what the database knows


async def test_the_chain_and_its_payments_are_counted(client: httpx.AsyncClient) -> None:
    await create_payment(client)
    found = await scrape(client)
    [chain] = (await client.get("/v1/chains")).json()["data"]
    assert found.value("paywatch_chain_cursor_block", chain="devnet") == chain["cursor"]
    assert found.value("paywatch_chain_head_block", chain="devnet") == chain["head"]
    assert found.value("paywatch_chain_state", chain="devnet", state="ok") == 1
    assert found.value("paywatch_payments", status="pending") == found.value("paywatch_payments") == 1
    assert found.value("paywatch_webhooks_dead") == found.value("paywatch_webhook_endpoints_disabled") == 0
    assert found.value("paywatch_database_up") == found.value("paywatch_redis_up") == 1


async def test_a_halted_chain_shows(client: httpx.AsyncClient, gateway: Gateway) -> None:
    async with gateway.context.db.write() as session:
        await session.execute(update(ChainState).values(halt_code="reorg", halt_detail="a reorg below finality"))
    found = await scrape(client)
    states = [found.value("paywatch_chain_state", chain="devnet", state=each) for each in ("ok", "lagging", "halted")]
    assert states == [0, 0, 1]


async def test_flags_and_waits_are_told(client: httpx.AsyncClient, gateway: Gateway) -> None:
    ids = [(await create_payment(client))["id"] for _ in range(4)]
    hour = timedelta(hours=1)
    changes: list[dict[str, Any]] = [
        {"flags": ["late", "overpaid"], "status": "detected", "detected_at": utc_now() - 2 * hour},
        {"flags": ["late"], "status": "confirmed", "confirmed_at": utc_now() - 3 * hour},
        {"status": "pending", "expires_at": utc_now() - hour},
    ]
    async with gateway.context.db.write() as session:
        for payment_id, values in zip(ids, changes, strict=False):
            await session.execute(update(Payment).where(Payment.id == payment_id).values(**values))
    found = await scrape(client)
    flags = {flag: found.value("paywatch_payments_flagged", flag=flag) for flag in ("late", "overpaid", "reorged")}
    assert flags == {"late": 2, "overpaid": 1, "reorged": 0}
    for status, hours in (("pending", 1), ("detected", 2), ("confirmed", 3)):
        waited_s = found.value("paywatch_payments_oldest_seconds", chain="devnet", status=status)
        assert waited_s == pytest.approx(hours * 3600, abs=300), status


async def test_a_receiver_that_is_down_is_not_our_delay(client: httpx.AsyncClient, gateway: Gateway) -> None:
    payments = [await create_payment(client, webhook_url=f"http://127.0.0.1:{port}/hook") for port in (9, 10)]
    async with gateway.context.db.write() as session:
        for payment, minutes in zip(payments, (60, 10), strict=True):
            due = utc_now() - timedelta(minutes=minutes)
            mine = WebhookDelivery.payment_id == payment["id"]
            await session.execute(update(WebhookDelivery).where(mine).values(next_attempt_at=due))
    found = await scrape(client)
    assert found.value("paywatch_webhooks_due") == found.value("paywatch_webhooks_pending") == 2
    assert found.value("paywatch_webhooks_oldest_due_seconds") == pytest.approx(3600, abs=300)
    async with gateway.context.db.write() as session:
        row = await session.get_one(WebhookDelivery, (await _first_delivery(gateway, payments[0]["id"])))
        now = utc_now()
        session.add(WebhookReceiver(receiver=row.receiver, failure_count=10, failing_since=now, last_failed_at=now))
    found = await scrape(client)
    assert found.value("paywatch_webhooks_oldest_due_seconds") == pytest.approx(600, abs=300)
    assert found.value("paywatch_webhook_receivers_probed") == 1


async def _first_delivery(gateway: Gateway, payment_id: str) -> str:
    async with gateway.context.db.read() as session:
        query = select(WebhookDelivery.id).where(WebhookDelivery.payment_id == payment_id)
        return (await session.scalars(query)).one()


async def test_sweeps_and_what_they_cost_are_told(client: httpx.AsyncClient, gateway: Gateway) -> None:
    async with gateway.context.db.write() as session:
        for nonce, (status, fee) in enumerate(
            [("confirmed", 10**18), ("failed", 5), ("frozen", None), ("signed", None)]
        ):
            session.add(
                Sweep(
                    id=new_id("swp"),
                    chain_id=CHAIN_ID,
                    kind="native",
                    asset=bytes(20),
                    account=bytes(20),
                    nonce=nonce,
                    status=status,
                    created_at=utc_now(),
                    gas_used=None if fee is None else 21_000,
                    fee_units=fee,
                )
            )
        session.add(NonceLane(chain_id=CHAIN_ID, account=bytes(20), is_deposit=False, next_nonce=4))
    found = await scrape(client)
    statuses = ("signed", "mined", "confirmed", "failed", "frozen", "released")
    assert [found.value("paywatch_sweeps", chain="devnet", status=each) for each in statuses] == [1, 0, 1, 1, 1, 0]
    assert found.value("paywatch_sweeps_frozen", chain="devnet") == 1
    assert found.value("paywatch_sweep_gas_total", chain="devnet", kind="native") == 42_000
    assert found.value("paywatch_sweep_fees_wei_total", chain="devnet", kind="native") == pytest.approx(1e18)


async def test_a_worker_without_a_heartbeat_and_what_waits_for_it_show(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    redis = gateway.wake_ups.redis
    await pulse.beat(redis, "webhook", "the one")
    await gateway.wake_ups.listener("devnet")
    found = await scrape(client)
    assert [found.value("paywatch_worker_alive", role=role) for role in ("listener", "webhook")] == [0, 1]
    assert [found.value("paywatch_queue_jobs", role=role) for role in ("listener", "webhook")] == [1, 0]
    assert found.value("paywatch_queue_oldest_job_seconds", role="webhook") == 0
    assert 0 < found.value("paywatch_queue_oldest_job_seconds", role="listener") < 300


# --- whatever is away


async def test_while_postgres_is_away_everything_else_is_told(
    postgres: Postgres, postgres_template: str, redis_url: str, devnet: Devnet
) -> None:
    if postgres.is_external:
        pytest.skip("not ours to stop")
    postgres.start()
    url = await postgres.create_database(template=postgres_template)
    async with open_gateway(url, redis_url, devnet.chain()) as gateway, client_of(gateway) as client:
        assert (await scrape(client)).value("paywatch_database_up") == 1
        postgres.interrupt()
        try:
            found = await scrape(client)
        finally:
            postgres.start()
        assert found.samples["paywatch_database_up"] == [({}, 0)]
        assert found.value("paywatch_redis_up") == 1
        assert "paywatch_worker_alive" in found.samples
        assert found.value("paywatch_http_request_seconds_count", route="/metrics", status="200") > 0
        assert not found.samples.get("paywatch_payments")
        again = await scrape(client)
        assert (again.value("paywatch_database_up"), again.samples["paywatch_payments"] != []) == (1, True)


async def test_while_redis_is_away_everything_else_is_told(
    client: httpx.AsyncClient, redis_server: RedisServer
) -> None:
    redis_server.stop()
    try:
        found = await scrape(client)
    finally:
        await redis_server.start()
    assert (found.value("paywatch_redis_up"), found.value("paywatch_database_up")) == (0, 1)
    assert not found.samples.get("paywatch_worker_alive")  # nobody knows
    assert found.value("paywatch_chain_state", chain="devnet", state="ok") == 1


# --- what the process counts


async def test_requests_are_counted_by_their_route(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)

    def requests(method: str, route: str, status: int) -> float:
        labels = {"method": method, "route": route, "status": str(status)}
        return counted("paywatch_http_request_seconds_count", **labels)

    wanted = [
        ("GET", f"/v1/payments/{payment['id']}", "/v1/payments/{payment_id}", 200),
        ("GET", "/v1/payments/pay_unknown", "/v1/payments/{payment_id}", 404),
        ("GET", "/v1/payments?limit=0", "/v1/payments", 422),
        ("GET", "/wp-login.php", "none", 404),
        ("POST", "/v1/payments", "/v1/payments", 413),
    ]
    for method, path, route, status in wanted:
        route = "none" if status == 413 else route  # refused before anybody looked where it goes
        before = requests(method, route, status)
        content = b"x" * 70_000 if status == 413 else None
        assert (await client.request(method, path, content=content)).status_code == status
        assert requests(method, route, status) == before + 1, path
    before = requests("other", "none", 404)
    await client.request("BREW", "/pot")
    assert requests("other", "none", 404) == before + 1


async def test_an_unforeseen_error_is_counted_logged_once_with_its_report_and_its_request(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_args: Any) -> None:
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr("app.services.payments.create", broken)
    errors = counted("paywatch_unhandled_errors_total")
    labels = {"method": "POST", "route": "/v1/payments", "status": "500"}
    requests = counted("paywatch_http_request_seconds_count", **labels)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        response = await client.post("/v1/payments", json={"chain": "devnet", "token": "USDC", "amount": "25"})
    [report] = [line for line in lines if line["event"] == "unhandled error"]
    [request] = [line for line in lines if line["event"] == "request"]
    assert report["report"] in response.json()["detail"]
    assert report["request_id"] == request["request_id"] == response.headers["x-request-id"]
    assert (request["status"], request["method"]) == (500, "POST")
    assert counted("paywatch_unhandled_errors_total") == errors + 1
    assert counted("paywatch_http_request_seconds_count", **labels) == requests + 1


async def test_an_endpoint_that_failed_shows_until_it_answers(client: httpx.AsyncClient, gateway: Gateway) -> None:
    [chain] = gateway.context.chains.enabled
    nodes = gateway.context.nodes.nodes(chain)
    [endpoint] = nodes.endpoints
    gc.collect()  # pools of other tests, which would go in the middle of this one

    async def pools(state: str) -> float:
        labels = {"chain": "devnet", "endpoint": endpoint.label, "state": state}
        return (await scrape(client)).value("paywatch_rpc_breaker_state", **labels)

    closed, open_ = await pools("closed"), await pools("open")
    nodes.failed(endpoint, TransientError("no answer"))
    assert (await pools("closed"), await pools("open")) == (closed - 1, open_ + 1)
    nodes.succeeded(endpoint)
    assert (await pools("closed"), await pools("open")) == (closed, open_)


async def test_connections_in_use_are_told(client: httpx.AsyncClient, gateway: Gateway) -> None:
    before = (await scrape(client)).value("paywatch_db_pool_connections", state="in_use")
    async with gateway.context.db.read() as session:
        await session.connection()
        assert counted("paywatch_db_pool_connections", state="in_use") >= before + 1
    assert counted("paywatch_db_pool_limit_connections") >= 20


@pytest.mark.parametrize("path", ["/metrics", "/health", "/health/ready"])
async def test_however_many_ask_without_a_key_the_database_is_read_once(
    client: httpx.AsyncClient, gateway: Gateway, path: str
) -> None:
    """Neither holds up requests: nobody counts how often a stranger asks for them."""
    read = 0

    def count(*_: Any) -> None:
        nonlocal read
        read += 1

    event.listen(gateway.context.db._aside.sync_engine, "before_cursor_execute", count)
    told = {"/metrics": gateway.metrics, "/health": gateway.health, "/health/ready": gateway.readiness}[path]
    told.keep_s = 3_600.0
    answers = await asyncio.gather(*(client.get(path) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    by_many, read = read, 0
    told.keep_s = 0.0
    assert (await client.get(path)).status_code == 200
    assert 0 < by_many == read


async def test_a_pool_that_is_used_up_is_told_as_that_and_not_as_a_database_that_is_away(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    db = gateway.context.db
    async with AsyncExitStack() as held:
        for _ in range(limits.DB_POOL_SIZE + limits.DB_POOL_OVERFLOW):
            session = await held.enter_async_context(db.read())
            await session.connection()
        found = await scrape(client)
        assert found.value("paywatch_database_up") == 1
        assert found.value("paywatch_chain_state", chain="devnet", state="ok") == 1
        assert found.value("paywatch_db_pool_connections", state="in_use") >= limits.DB_POOL_SIZE
        checks = {check["name"]: check for check in (await client.get("/health")).json()["checks"]}
        assert checks["database"]["status"] == "ok"
        assert checks["database pool"]["status"] == "degraded"
        assert f"all of {limits.DB_POOL_SIZE} connections" in checks["database pool"]["detail"]
        assert (await client.get("/health/ready")).status_code == 200
    assert "database pool" not in (await client.get("/health")).text


async def test_a_database_that_counts_too_slowly_is_not_away(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def for_ever(_: Any) -> dict[str, int]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(limits, "METRICS_READ_S", 1.0)
    monkeypatch.setattr("app.db.repositories.payments.count_by_flag", for_ever)
    found = await scrape(client)
    assert found.value("paywatch_database_up") == 1
    assert not found.samples.get("paywatch_payments_flagged")
    assert found.samples["paywatch_payments"]
    assert found.samples["paywatch_webhooks_due"]

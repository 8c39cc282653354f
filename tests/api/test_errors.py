"""Goal: every failure, the house's own too, is a problem with a request id, and the service is well again after it."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError
from structlog.processors import format_exc_info

from app.core import limits
from app.core.logger import redact
from app.db.models import ChainState, Payment
from app.services.gateway import Gateway
from app.services.payments import create as create_in_service
from tests.support.gateway import Devnet, client_of, create_payment, open_gateway, row_counts
from tests.support.postgres import Postgres
from tests.support.problems import read_problem

GOOD = {"chain": "devnet", "token": "USDC", "amount": "25"}


@pytest.fixture
def sqlite_copy(sqlite_template: str, tmp_path: Path) -> str:
    """The URL of a migrated SQLite database."""
    shutil.copyfile(sqlite_template, tmp_path / "copy.db")
    return f"sqlite+aiosqlite:///{tmp_path / 'copy.db'}"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v2/payments"),
        ("GET", "/v1/payments/"),
        ("POST", "/v1/payments/pay_01J00000000000000000000000/refund"),
        ("GET", "/v1/payments/pay_01J00000000000000000000000/events/1"),
        ("DELETE", "/v1/nothing"),
        ("GET", "/%00"),
        ("GET", "/v1//payments"),
    ],
)
async def test_an_unknown_path_is_a_problem(shared_client: httpx.AsyncClient, method: str, path: str) -> None:
    read_problem(await shared_client.request(method, path), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/v1/payments/pay_01J00000000000000000000000", {"GET"}),
        ("GET", "/v1/payments/pay_01J00000000000000000000000/cancel", {"POST"}),
        ("POST", "/v1/chains", {"GET"}),
        ("PUT", "/v1/payments", {"GET", "POST"}),
        ("POST", "/v1/webhook_endpoints/whe_01J00000000000000000000000", {"GET", "PATCH", "DELETE"}),
        ("POST", "/health/live", {"GET", "HEAD"}),
        ("POST", "/docs/files/swagger-ui.css", {"GET", "HEAD"}),
    ],
)
async def test_a_wrong_method_is_a_problem_that_names_the_right_one(
    shared_client: httpx.AsyncClient, method: str, path: str, allowed: set[str]
) -> None:
    response = await shared_client.request(method, path)
    read_problem(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/health", "/metrics"])
async def test_a_monitor_may_ask_by_head(shared_client: httpx.AsyncClient, path: str) -> None:
    assert (await shared_client.head(path)).status_code == 200


async def test_a_callers_request_id_comes_back(shared_client: httpx.AsyncClient) -> None:
    for path, status in (("/v1/payments", 200), ("/v1/nothing", 404)):
        response = await shared_client.get(path, headers={"X-Request-ID": "order-7.retry_2"})
        assert response.status_code == status
        assert response.headers.get_list("x-request-id") == ["order-7.retry_2"]
    assert response.json()["request_id"] == "order-7.retry_2"


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", "<script>", "ключ".encode()], ids=repr)
async def test_a_request_id_that_is_not_fit_to_be_logged_is_replaced(
    shared_client: httpx.AsyncClient, given: Any
) -> None:
    response = await shared_client.get("/v1/payments", headers=[("X-Request-ID", given)])
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", ["/v1/payments", "/v1/webhook_endpoints", "/v1/nothing"])
async def test_a_body_above_64_kib_is_refused_however_it_is_sent(shared_client: httpx.AsyncClient, path: str) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield b" " * 1024

    for content in (b" " * 65_537, in_chunks()):
        response = await shared_client.post(path, content=content, headers={"content-type": "application/json"})
        read_problem(response, 413, "payload_too_large")


async def test_a_body_of_just_64_kib_is_read(client: httpx.AsyncClient) -> None:
    body = b'{"chain": "devnet", "token": "USDC", "amount": "25"' + b" " * 65_536
    content = body[:65_535] + b"}"
    response = await client.post("/v1/payments", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 201


async def test_a_chain_whose_node_was_never_reached_is_unavailable(
    db_url: str, redis_url: str, devnet: Devnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RPC_ATTEMPTS", 1)
    nowhere = devnet.chain(name="nowhere", chain_id=1, rpc_urls=("http://127.0.0.1:9",))
    async with open_gateway(db_url, redis_url, devnet.chain(), nowhere) as gateway, client_of(gateway) as client:
        before = await row_counts(gateway.context.db)
        response = await client.post("/v1/payments", json=GOOD | {"chain": "nowhere"})
        assert "nowhere" in read_problem(response, 503, "chain_unavailable")["detail"]
        assert response.headers["retry-after"]
        assert await row_counts(gateway.context.db) == before
        await create_payment(client)  # the other chain is not held up by it
        states = {chain["name"]: chain["state"] for chain in (await client.get("/v1/chains")).json()["data"]}
        assert states == {"devnet": "ok", "nowhere": "lagging"}


async def test_a_chain_that_contradicts_its_node_is_unavailable(db_url: str, redis_url: str, devnet: Devnet) -> None:
    wrong = devnet.chain(chain_id=5)
    async with open_gateway(db_url, redis_url, wrong) as gateway, client_of(gateway) as client:
        read_problem(await client.post("/v1/payments", json=GOOD), 503, "chain_unavailable")


async def test_a_halted_chain_is_unavailable_and_says_why(client: httpx.AsyncClient, gateway: Gateway) -> None:
    async with gateway.context.db.write() as session:
        await session.execute(update(ChainState).values(halt_code="reorg", halt_detail="a reorg below finality"))
    before = await row_counts(gateway.context.db)
    problem = read_problem(await client.post("/v1/payments", json=GOOD), 503, "chain_unavailable")
    assert "a reorg below finality" in problem["detail"]
    assert await row_counts(gateway.context.db) == before


async def test_an_unforeseen_error_is_a_problem_that_tells_no_details(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_args: Any) -> None:
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr("app.services.payments.create", broken)
    before = await row_counts(gateway.context.db)
    response = await client.post("/v1/payments", json=GOOD, headers={"Idempotency-Key": "k"})
    problem = read_problem(response, 500, "internal_error")
    assert "the secret" not in response.text
    assert "rep_" in problem["detail"]
    assert await row_counts(gateway.context.db) == before
    monkeypatch.setattr("app.services.payments.create", create_in_service)
    again = await client.post("/v1/payments", json=GOOD, headers={"Idempotency-Key": "k"})
    assert again.status_code == 201


async def test_while_postgres_is_away_the_answer_is_503_and_then_all_is_well(
    postgres: Postgres, postgres_template: str, redis_url: str, devnet: Devnet
) -> None:
    if postgres.is_external:
        pytest.skip("not ours to stop")
    postgres.start()
    url = await postgres.create_database(template=postgres_template)
    async with open_gateway(url, redis_url, devnet.chain()) as gateway, client_of(gateway) as client:
        payment = await create_payment(client)
        postgres.interrupt()
        try:
            for method, path, body in [
                ("POST", "/v1/payments", GOOD),
                ("GET", "/v1/payments", None),
                ("GET", f"/v1/payments/{payment['id']}", None),
                ("GET", "/v1/chains", None),
            ]:
                response = await client.request(method, path, json=body)
                read_problem(response, 503, "service_unavailable")
                assert response.headers["retry-after"]
            ready = await client.get("/health/ready")
            assert ready.status_code == 503
            assert [check["name"] for check in ready.json()["checks"] if check["status"] == "down"] == ["database"]
            assert (await client.get("/health/live")).status_code == 200
        finally:
            postgres.start()
        assert (await client.get(f"/v1/payments/{payment['id']}")).json() == payment
        await create_payment(client)
        assert (await client.get("/health/ready")).status_code == 200


async def test_while_sqlite_is_locked_the_answer_is_503_and_then_all_is_well(
    sqlite_copy: str, redis_url: str, devnet: Devnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_gateway(sqlite_copy, redis_url, devnet.chain()) as other:
        monkeypatch.setattr(limits, "SQLITE_BUSY_TIMEOUT_S", 0.05)
        async with open_gateway(sqlite_copy, redis_url, devnet.chain()) as gateway, client_of(gateway) as client:
            async with other.context.db.write() as session:
                await session.execute(text("SELECT 'the first statement begins it'"))
                read_problem(await client.post("/v1/payments", json=GOOD), 503, "service_unavailable")
                assert (await client.get("/v1/payments")).status_code == 200  # readers are not held up by a writer
            # One that waited for its turn, the note of a key's use perhaps, may have it for a moment yet.
            async with asyncio.timeout(60):
                while (await client.post("/v1/payments", json=GOOD)).status_code != 201:
                    pass


async def test_more_requests_than_connections_all_get_an_answer(shared_client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(shared_client.get("/v1/payments") for _ in range(60)))
    assert {answer.status_code for answer in answers} == {200}


async def test_redis_may_be_away_while_payments_are_made(db_url: str, devnet: Devnet) -> None:
    nobody = "redis://127.0.0.1:9/0"
    async with open_gateway(db_url, nobody, devnet.chain()) as gateway, client_of(gateway) as client:
        await create_payment(client)
        ready = await client.get("/health/ready")
        assert ready.status_code == 503
        assert [check["name"] for check in ready.json()["checks"] if check["status"] == "down"] == ["redis"]


async def test_a_row_that_the_database_refuses_is_not_logged(gateway: Gateway, client: httpx.AsyncClient) -> None:
    """PostgreSQL's own words hold the whole row."""
    payment = await create_payment(client, metadata={"card": "4242\n4242"}, description="for Jane Doe")

    async def refused() -> None:
        async with gateway.context.db.write() as session:
            await session.execute(update(Payment).where(Payment.id == payment["id"]).values(status=None))

    with pytest.raises(IntegrityError) as caught:
        await refused()
    event = redact(None, "error", format_exc_info(None, "error", {"exc_info": caught.value}))
    assert "IntegrityError" in event["exception"]
    assert "UPDATE payments" in event["exception"]
    assert not re.search("4242|Jane", event["exception"])
    assert not re.search("4242|Jane", str(redact(None, "error", {"reason": str(caught.value)})))

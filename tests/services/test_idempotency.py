"""Goal: a storefront that asks again after a lost answer gets the first answer, and never a second payment."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import utc_now
from app.db.base import Base
from app.db.driver import QuickSession
from app.db.models import ChainState, IdempotencyKey
from app.db.repositories import merchants
from app.db.repositories.together import insert_together
from app.services import idempotency, payments
from app.services.gateway import Gateway
from app.services.idempotency import Claim, StoredAnswer
from tests.support.gateway import add_merchant, client_of, create_payment, row_counts
from tests.support.problems import read_problem

BODY: dict[str, Any] = {"chain": "devnet", "token": "USDC", "amount": "25", "metadata": {"z": 1, "a": 2}}


async def post(client: httpx.AsyncClient, key: str, **changed: Any) -> httpx.Response:
    return await client.post("/v1/payments", json=BODY | changed, headers={"Idempotency-Key": key})


async def test_the_same_request_again_gets_the_first_answer(client: httpx.AsyncClient, gateway: Gateway) -> None:
    first = await post(client, "k")
    before = await row_counts(gateway.context.db)
    second = await post(client, "k")
    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert await row_counts(gateway.context.db) == before


async def test_the_first_answer_stays_although_the_payment_moved_on(client: httpx.AsyncClient) -> None:
    first = (await post(client, "k")).json()
    await client.post(f"/v1/payments/{first['id']}/cancel")
    assert (await post(client, "k")).json() == first


async def test_the_order_of_a_bodys_fields_does_not_matter(client: httpx.AsyncClient) -> None:
    first = await post(client, "k")
    reordered = dict(reversed(BODY.items()))
    second = await client.post("/v1/payments", json=reordered, headers={"Idempotency-Key": "k"})
    assert second.json() == first.json()


@pytest.mark.parametrize("changed", [{"amount": "26"}, {"order_id": "A-1"}, {"metadata": {"z": 1, "a": 3}}])
async def test_another_body_under_the_same_key_is_refused(
    client: httpx.AsyncClient, gateway: Gateway, changed: dict[str, Any]
) -> None:
    await post(client, "k")
    before = await row_counts(gateway.context.db)
    read_problem(await post(client, "k", **changed), 422, "idempotency_key_reused")
    assert await row_counts(gateway.context.db) == before


async def test_nor_does_the_order_within_metadata(client: httpx.AsyncClient) -> None:
    """Some languages write an object's members in another order each time."""
    first = await post(client, "k", metadata={"z": {"b": 1, "a": [2, 3]}, "a": 2})
    assert (await post(client, "k", metadata={"a": 2, "z": {"a": [2, 3], "b": 1}})).json() == first.json()
    read_problem(await post(client, "k", metadata={"z": {"b": 1, "a": [3, 2]}, "a": 2}), 422, "idempotency_key_reused")


async def test_a_retried_cancellation_is_answered_as_the_first(client: httpx.AsyncClient) -> None:
    payment = await create_payment(client)
    path, headers = f"/v1/payments/{payment['id']}/cancel", {"Idempotency-Key": "k"}
    first, second = [await client.post(path, headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    read_problem(await client.post(path), 409, "not_cancellable")


async def test_a_retried_key_is_made_once_and_kept_encrypted(client: httpx.AsyncClient, gateway: Gateway) -> None:
    body, headers = {"name": "shop", "scopes": ["payments:read"]}, {"Idempotency-Key": "k"}
    first, second = [await client.post("/v1/keys", json=body, headers=headers) for _ in range(2)]
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert [key["name"] for key in (await client.get("/v1/keys")).json()["data"]] == ["shop", "PAYWATCH_API_KEY"]
    async with gateway.context.db.read() as session:
        stored = await (await session.connection()).exec_driver_sql("SELECT * FROM idempotency_keys")
        assert first.json()["key"] not in repr(stored.all())


async def test_other_keys_and_none_make_other_payments(client: httpx.AsyncClient) -> None:
    ids = {(await post(client, key)).json()["id"] for key in ("k", "K", "k ", "x" * 255)}
    ids |= {(await create_payment(client))["id"] for _ in range(2)}
    # HTTP cuts blanks around a header's value, so "k " is "k"
    assert len(ids) in (5, 6)


async def test_a_key_belongs_to_its_merchant(client: httpx.AsyncClient, gateway: Gateway) -> None:
    mine = (await post(client, "k")).json()
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as another:
        theirs = await post(another, "k")
    assert theirs.status_code == 201
    assert "idempotent-replayed" not in theirs.headers
    assert theirs.json()["id"] != mine["id"]


async def test_fifty_at_once_with_one_key_make_one_payment(client: httpx.AsyncClient, gateway: Gateway) -> None:
    answers = await asyncio.gather(*(post(client, "k", order_id="A-1") for _ in range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" in answer.headers for answer in answers) == 49
    counts = await row_counts(gateway.context.db)
    assert [counts[name] for name in ("payments", "deposit_addresses", "events", "idempotency_keys")] == [1, 1, 1, 1]


async def test_two_at_once_with_other_bodies_make_one_payment(client: httpx.AsyncClient, gateway: Gateway) -> None:
    answers = await asyncio.gather(*(post(client, "k", amount=str(amount)) for amount in range(1, 11)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [201] + [422] * 9
    assert (await row_counts(gateway.context.db))["payments"] == 1


async def test_a_refused_request_does_not_use_up_its_key(client: httpx.AsyncClient, gateway: Gateway) -> None:
    taken = await create_payment(client, order_id="A-1")
    read_problem(await post(client, "k", chain="nowhere"), 422, "unknown_chain")
    read_problem(await post(client, "k", order_id="A-1"), 409, "duplicate_order_id")
    assert (await row_counts(gateway.context.db))["idempotency_keys"] == 0
    await client.post(f"/v1/payments/{taken['id']}/cancel")
    assert (await post(client, "k", order_id="A-1")).status_code == 201


async def test_an_outage_does_not_use_up_a_key(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WATCHED_AGE_S", 0.0)
    for halt_code, status in (("reorg", 503), (None, 201)):
        async with gateway.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code=halt_code, halt_detail="why"))
        assert (await post(client, "k")).status_code == status


@pytest.mark.parametrize("away", ["chain", "webhook's name"])
async def test_a_retry_gets_its_answer_although_it_would_be_refused_by_now(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    wanted = {"webhook_url": "http://localhost:9/hooks"}
    first = await post(client, "k", **wanted)
    if away == "chain":
        monkeypatch.setattr(limits, "WATCHED_AGE_S", 0.0)
        async with gateway.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code="reorg", halt_detail="why"))
    else:
        monkeypatch.setattr(gateway.context.guard, "_allowed", ())
    again = await post(client, "k", **wanted)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert (await post(client, "other", **wanted)).status_code == (503 if away == "chain" else 422)


@pytest.mark.parametrize("has_endpoint", [False, True])
@pytest.mark.parametrize("written", [False, True])
async def test_a_request_that_died_half_way_leaves_all_or_nothing(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, has_endpoint: bool, written: bool
) -> None:
    if has_endpoint:
        await client.post("/v1/webhook_endpoints", json={"url": "https://93.184.216.34/hook"})

    async def killed(session: QuickSession, rows: Sequence[Base]) -> None:
        if written:
            await insert_together(session, rows)
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(payments, "insert_together", killed)
        with pytest.raises(asyncio.CancelledError):
            await post(client, "k")
    counts = await row_counts(gateway.context.db)
    names = ("payments", "deposit_addresses", "events", "idempotency_keys")
    left = {counts[name] for name in names}
    assert left == {0} or (written and not has_endpoint and left == {1})  # its one statement had committed itself
    again = await post(client, "k")
    assert again.status_code == 201
    assert ("idempotent-replayed" in again.headers) == (left == {1})
    counts = await row_counts(gateway.context.db)
    assert [counts[name] for name in names] == [1, 1, 1, 1]


async def test_a_key_and_an_order_that_two_share(client: httpx.AsyncClient, gateway: Gateway) -> None:
    """Goal: the order of another request is refused, that of the same request is its answer."""
    first = await post(client, "k", order_id="A-1")
    again = await post(client, "k", order_id="A-1")
    assert again.content == first.content
    problem = read_problem(await post(client, "other", order_id="A-1"), 409, "duplicate_order_id")
    assert first.json()["id"] in problem["detail"]
    assert (await row_counts(gateway.context.db))["idempotency_keys"] == 1


async def test_old_keys_are_forgotten(client: httpx.AsyncClient, gateway: Gateway) -> None:
    assert limits.IDEMPOTENCY_KEEP_S >= 24 * 3_600
    await post(client, "new")
    await post(client, "old")
    long_ago = utc_now().timestamp() - limits.IDEMPOTENCY_KEEP_S - 1
    async with gateway.context.db.write() as session:
        await session.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.key == "old")
            .values(created_at=utc_now().fromtimestamp(long_ago, utc_now().tzinfo))
        )
        assert await idempotency.forget_old(session) == 1
    assert (await row_counts(gateway.context.db))["idempotency_keys"] == 1
    assert "idempotent-replayed" in (await post(client, "new")).headers


async def forget_all(gateway: Gateway) -> None:
    async with gateway.context.db.write() as session:
        await session.execute(delete(IdempotencyKey))


async def test_a_key_that_is_forgotten_while_it_comes_again_is_a_new_one(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, find = await post(client, "k"), idempotency.find

    async def forgotten(session: QuickSession, wanted: Claim) -> StoredAnswer | None:
        await forget_all(gateway)
        return await find(session, wanted)

    monkeypatch.setattr(idempotency, "find", forgotten)
    second = await post(client, "k")
    assert second.status_code == 201, second.text
    assert "idempotent-replayed" not in second.headers
    assert second.json()["id"] != first.json()["id"]
    monkeypatch.undo()
    assert (await post(client, "k")).content == second.content


async def test_so_is_a_key_of_another_call(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment, claim_key = await create_payment(client), merchants.claim_idempotency_key
    path, headers = f"/v1/payments/{payment['id']}/cancel", {"Idempotency-Key": "k"}
    await client.post(path, headers=headers)

    async def forgotten(session: AsyncSession, row: dict[str, object]) -> bool:
        claimed = await claim_key(session, row)
        if not claimed:  # here in the same transaction, for SQLite has one writer at a time
            await session.execute(delete(IdempotencyKey))
        return claimed

    monkeypatch.setattr(merchants, "claim_idempotency_key", forgotten)
    read_problem(await client.post(path, headers=headers), 409, "not_cancellable")  # it was done, not replayed


async def test_a_key_that_is_there_and_is_not_there_is_given_up(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    payment = await create_payment(client)
    path, headers = f"/v1/payments/{payment['id']}/cancel", {"Idempotency-Key": "k"}
    await post(client, "k")
    await client.post(path, headers=headers)

    async def never_there(*_: Any) -> None:
        return None

    monkeypatch.setattr(idempotency, "find", never_there)
    before = await row_counts(gateway.context.db)
    for answer in (await post(client, "k"), await client.post(path, headers=headers)):
        assert "try again" in read_problem(answer, 503, "service_unavailable")["detail"]
    assert await row_counts(gateway.context.db) == before


async def test_one_transaction_forgets_so_many_old_keys_and_no_more_the_oldest_first(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOUSEKEEPING_ROWS", 2)
    for number in range(5):
        await post(client, str(number))
        age = timedelta(seconds=limits.IDEMPOTENCY_KEEP_S, minutes=number)
        async with gateway.context.db.write() as session:
            old = update(IdempotencyKey).where(IdempotencyKey.key == str(number))
            await session.execute(old.values(created_at=utc_now() - age))
    for left in (["0", "1", "2"], ["0"], [], []):
        async with gateway.context.db.write() as session:
            await idempotency.forget_old(session)
        async with gateway.context.db.read() as session:
            assert sorted(await session.scalars(select(IdempotencyKey.key))) == left

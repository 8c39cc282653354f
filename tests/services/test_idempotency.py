"""Goal: a storefront that asks again after a lost answer gets the first answer, and never a second payment."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.core import limits
from app.core.clock import utc_now
from app.db.models import ChainState, IdempotencyKey
from app.services import idempotency
from app.services.gateway import Gateway
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


async def test_an_outage_does_not_use_up_a_key(client: httpx.AsyncClient, gateway: Gateway) -> None:
    for halt_code, status in (("reorg", 503), (None, 201)):
        async with gateway.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code=halt_code, halt_detail="why"))
        assert (await post(client, "k")).status_code == status


async def test_a_request_that_died_half_way_does_not_use_up_its_key(
    client: httpx.AsyncClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_args: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(idempotency, "keep", killed)
        with pytest.raises(asyncio.CancelledError):
            await post(client, "k")
    counts = await row_counts(gateway.context.db)
    assert [counts[name] for name in ("payments", "deposit_addresses", "events", "idempotency_keys")] == [0, 0, 0, 0]
    again = await post(client, "k")
    assert again.status_code == 201
    assert "idempotent-replayed" not in again.headers


async def test_old_keys_are_forgotten(client: httpx.AsyncClient, gateway: Gateway) -> None:
    await post(client, "new")
    await post(client, "old")
    long_ago = utc_now().timestamp() - limits.IDEMPOTENCY_KEEP_S - 1
    async with gateway.context.db.write() as session:
        await session.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.key == "old")
            .values(created_at=utc_now().fromtimestamp(long_ago, utc_now().tzinfo))
        )
        await idempotency.forget_old(session)
    assert (await row_counts(gateway.context.db))["idempotency_keys"] == 1
    assert "idempotent-replayed" in (await post(client, "new")).headers

"""Goal: a merchant sees what was done with the money of its own payments, and nothing of anybody else's."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.core.clock import utc_now
from app.core.evm import NATIVE_ASSET, checksum, to_bytes20
from app.core.ids import new_id
from app.db.models import Outflow, Sweep, SweepAttempt, SweepItem
from app.services.gateway import Gateway
from tests.support.gateway import CHAIN_ID, Devnet, add_merchant, client_of, create_payment
from tests.support.problems import read_problem

PATH = "/v1/sweeps"
GWEI = 10**9
GAS_ACCOUNT, TREASURY = b"\x6a" * 20, b"\x7e" * 20


@pytest.fixture
async def another(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """A second merchant's client."""
    await add_merchant(gateway, "pwk_of_another")
    async with client_of(gateway, "pwk_of_another") as http:
        yield http


async def add_sweep(
    gateway: Gateway, nonce: int, asset: bytes, *payments: dict[str, Any], mined: bool = True, **changed: Any
) -> str:
    """A sweep of payments with two attempts, the second of which was mined; its id."""
    sweep_id = new_id("swp")
    values = {
        "id": sweep_id,
        "chain_id": CHAIN_ID,
        "kind": "collect",
        "asset": asset,
        "treasury": TREASURY,
        "account": GAS_ACCOUNT,
        "nonce": nonce,
        "status": "confirmed" if mined else "signed",
        "created_at": utc_now(),
    }
    of_the_receipt = {
        "tx_hash": bytes([nonce, 1]) * 16,
        "block_number": 19,
        "block_hash": b"\xbb" * 32,
        "gas_used": 60_022,
        "gas_price_units": 2 * GWEI,
        "fee_units": 60_022 * 2 * GWEI,
        "ended_at": utc_now(),
    }
    async with gateway.context.db.write() as session:
        session.add(Sweep(**(values | (of_the_receipt if mined else {}) | changed)))
        await session.flush()
        for payment in payments:
            session.add(
                SweepItem(
                    sweep_id=sweep_id,
                    payment_id=payment["id"],
                    chain_id=CHAIN_ID,
                    address=to_bytes20(payment["address"]),
                    asset=asset,
                    amount_units=25_500_000,
                    moved_units=25_500_000 if mined else None,
                    live=not mined,
                )
            )
        for attempt in range(2):
            session.add(
                SweepAttempt(
                    tx_hash=bytes([nonce, attempt]) * 16,
                    sweep_id=sweep_id,
                    raw=b"\x02",
                    gas_limit=100_000,
                    max_fee_units=(attempt + 2) * GWEI,
                    max_priority_fee_units=GWEI,
                    value_units=0,
                    cancels=False,
                    created_at=utc_now() + timedelta(seconds=attempt),
                )
            )
    return sweep_id


async def test_a_sweep_has_every_field_of_the_contract(
    client: httpx.AsyncClient, gateway: Gateway, devnet: Devnet
) -> None:
    payment = await create_payment(client)
    sweep_id = await add_sweep(gateway, 7, to_bytes20(devnet.usdc), payment)
    response = await client.get(f"{PATH}/{sweep_id}")
    assert response.status_code == 200, response.text
    sweep = response.json()
    first, second = [attempt.pop("created_at") for attempt in sweep["attempts"]]
    assert sweep.pop("created_at") <= sweep.pop("ended_at")
    assert first < second
    assert sweep == {
        "id": sweep_id,
        "object": "sweep",
        "kind": "collect",
        "chain": "devnet",
        "chain_id": CHAIN_ID,
        "token": "USDC",
        "status": "confirmed",
        "tx_hash": "0x" + "0701" * 16,
        "nonce": 7,
        "account": checksum(GAS_ACCOUNT),
        "treasury": checksum(TREASURY),
        "gas_used": 60_022,
        "gas_price": "2000000000",
        "fee": "0.000120044",
        "fee_units": "120044000000000",
        "error": None,
        "block_number": 19,
        "items": [
            {
                "payment_id": payment["id"],
                "address": payment["address"],
                "amount": "25.5",
                "amount_units": "25500000",
                "moved_units": "25500000",
            }
        ],
        "attempts": [
            {"tx_hash": "0x" + "0700" * 16, "max_fee": "2000000000"},
            {"tx_hash": "0x" + "0701" * 16, "max_fee": "3000000000"},
        ],
    }


async def test_money_survives_at_78_digits(client: httpx.AsyncClient, gateway: Gateway) -> None:
    largest = 2**256 - 1
    ether = f"{largest // 10**18}.{largest % 10**18:018}".rstrip("0")
    payment = await create_payment(client, token="ETH", amount="1")
    sweep_id = await add_sweep(
        gateway, 1, NATIVE_ASSET, payment, kind="native", gas_price_units=largest, fee_units=largest
    )
    async with gateway.context.db.write() as session:
        await session.execute(update(SweepItem).values(amount_units=largest, moved_units=largest))
        await session.execute(update(SweepAttempt).values(max_fee_units=largest))
        session.add(
            Outflow(
                payment_id=payment["id"],
                chain_id=CHAIN_ID,
                block_number=19,
                block_hash=b"\xbb" * 32,
                block_time=utc_now(),
                tx_index=0,
                position="tx",
                sender=to_bytes20(payment["address"]),
                treasury=TREASURY,
                asset=NATIVE_ASSET,
                amount_units=largest,
                fee_units=largest,
                covers_units=largest,
                tx_hash=bytes([1, 1]) * 16,
                canonical=True,
                verified=True,
            )
        )
    sweep = (await client.get(f"{PATH}/{sweep_id}")).json()
    [item], [at_treasury] = sweep["items"], (await client.get(f"/v1/payments/{payment['id']}")).json()["sweeps"]
    assert [sweep["gas_price"], sweep["fee_units"], item["amount_units"], item["moved_units"]] == [str(largest)] * 4
    assert {attempt["max_fee"] for attempt in sweep["attempts"]} == {str(largest)}
    assert [at_treasury["amount_units"], at_treasury["fee_units"]] == [str(largest)] * 2
    assert [sweep["fee"], item["amount"], at_treasury["amount"]] == [ether] * 3
    assert at_treasury["sweep_id"] == sweep_id


async def test_what_is_not_mined_yet_has_its_last_attempts_hash_and_no_receipt(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    payment = await create_payment(client, token="ETH", amount="1")
    topup = await add_sweep(gateway, 0, NATIVE_ASSET, payment, mined=False, kind="topup", treasury=None)
    sweep = (await client.get(f"{PATH}/{topup}")).json()
    absent = ("treasury", "gas_used", "gas_price", "fee", "fee_units", "block_number", "ended_at")
    assert [sweep[name] for name in absent] == [None] * len(absent)
    assert sweep["tx_hash"] == sweep["attempts"][-1]["tx_hash"] == "0x" + "0001" * 16
    assert (sweep["status"], sweep["token"], sweep["items"][0]["moved_units"]) == ("signed", "ETH", None)


async def test_two_merchants_share_a_sweep_and_see_their_own_items_alone(
    client: httpx.AsyncClient, another: httpx.AsyncClient, gateway: Gateway, devnet: Devnet
) -> None:
    mine, theirs = await create_payment(client), await create_payment(another)
    usdc = to_bytes20(devnet.usdc)
    shared = await add_sweep(gateway, 0, usdc, mine, theirs)
    own = await add_sweep(gateway, 1, usdc, theirs)
    await add_sweep(gateway, 2, NATIVE_ASSET, kind="deploy", treasury=None)
    for http, payment, seen in ((client, mine, [shared]), (another, theirs, [own, shared])):
        page = (await http.get(PATH)).json()
        assert [sweep["id"] for sweep in page["data"]] == seen
        assert page["next_cursor"] is None
        for sweep in page["data"]:
            assert [item["payment_id"] for item in sweep["items"]] == [payment["id"]]
        assert (await http.get(f"{PATH}/{shared}")).json() == page["data"][-1]
    read_problem(await client.get(f"{PATH}/{own}"), 404, "not_found")
    assert (await client.get(PATH, params={"payment_id": theirs["id"]})).json()["data"] == []


async def test_the_list_is_walked_page_by_page_and_narrowed(client: httpx.AsyncClient, gateway: Gateway) -> None:
    payments = [await create_payment(client, token="ETH", amount="1") for _ in range(2)]
    made = [
        await add_sweep(gateway, nonce, NATIVE_ASSET, payments[nonce % 2], mined=nonce < 3, kind="native")
        for nonce in range(4)
    ]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    for expected in (2, 2):
        page = (await client.get(PATH, params=query)).json()
        assert len(page["data"]) == expected
        seen += [sweep["id"] for sweep in page["data"]]
        query["cursor"] = page["next_cursor"]
    assert (seen, query["cursor"]) == (made[::-1], None)
    for narrowed, found in (
        ({"status": "signed"}, [made[3]]),
        ({"payment_id": payments[0]["id"]}, [made[2], made[0]]),
        ({"payment_id": "pay_nobody"}, []),
    ):
        page = (await client.get(PATH, params=narrowed)).json()
        assert [sweep["id"] for sweep in page["data"]] == found
    read_problem(await client.get(PATH, params={"status": "lost"}), 422, "validation_error")


async def test_a_key_is_needed(gateway: Gateway) -> None:
    async with client_of(gateway, "pwk_wrong") as http:
        read_problem(await http.get(PATH), 401)

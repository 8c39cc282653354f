"""Goal: what a merchant sets holds for its own later payments that say nothing, and a wrong setting is named."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from app.core.chains import FixedRates, Rates
from app.db.repositories import payments
from app.services.gateway import Gateway
from tests.support.gateway import Devnet, add_merchant, client_of, create_payment, open_gateway
from tests.support.problems import read_problem

USDC, ETH = {"chain": "devnet", "token": "USDC"}, {"chain": "devnet", "token": "ETH"}
RATES = Rates(120.0, (FixedRates({"USDC/USD": Decimal(1), "ETH/USD": Decimal(2500), "ETH/EUR": Decimal(2000)}),))
ORIGINAL = {"confirmations_required": None, "confirmation_tiers": [], "expires_in": 3600, "tolerance": "0"}
TIERS = [
    {"up_to": "100", "currency": "USD", "confirmations": 1},
    {"up_to": "1000", "currency": "USD", "confirmations": 5},
]


@pytest.fixture
async def gateway(db_url: str, redis_url: str, devnet: Devnet) -> AsyncIterator[Gateway]:
    """Three confirmations by the chain; rates in USD, and in EUR for ether alone."""
    async with open_gateway(db_url, redis_url, devnet.chain(), rates=RATES) as opened:
        yield opened


async def change(client: httpx.AsyncClient, **changed: Any) -> dict[str, Any]:
    response = await client.patch("/v1/merchant", json=changed)
    assert response.status_code == 200, response.text
    merchant: dict[str, Any] = response.json()
    assert (await client.get("/v1/merchant")).json() == merchant
    return merchant


async def priced(client: httpx.AsyncClient, amount: str, *accept: dict[str, str], **changed: Any) -> dict[str, Any]:
    body = {"price": {"amount": amount, "currency": "USD"}, "accept": list(accept)} | changed
    response = await client.post("/v1/payments", json=body)
    assert response.status_code == 201, response.text
    payment: dict[str, Any] = response.json()
    return payment


async def tolerated(gateway: Gateway, payment: dict[str, Any]) -> list[int]:
    async with gateway.context.db.read() as session:
        [record] = await payments.load(session, [payment["id"]])
    return [option.tolerance_units for option in record.options]


async def test_a_merchant_reads_and_changes_its_defaults_one_by_one(client: httpx.AsyncClient) -> None:
    merchant = (await client.get("/v1/merchant")).json()
    fields = {"id", "object", "name", "confirmations_required", "confirmation_tiers", "expires_in", "tolerance"}
    assert set(merchant) == fields | {"created_at"}
    assert merchant == merchant | {"object": "merchant", "name": "default", **ORIGINAL}
    expected = merchant
    for changed, told in [
        ({"confirmations_required": 9}, {"confirmations_required": 9}),
        ({"expires_in": 600}, {"expires_in": 600}),
        ({"tolerance": "0.5%"}, {"tolerance": "0.5%"}),
        (
            {"confirmation_tiers": [{"up_to": "0100.50", "currency": "usd", "confirmations": 1}]},
            {"confirmation_tiers": [{"up_to": "100.5", "currency": "USD", "confirmations": 1}]},
        ),
        ({}, {}),
    ]:
        expected = expected | told
        assert await change(client, **changed) == expected
    assert await change(client, **dict.fromkeys(ORIGINAL)) == merchant


async def test_defaults_hold_where_a_payment_says_nothing_and_for_it_alone(client: httpx.AsyncClient) -> None:
    before = await create_payment(client)
    await change(client, confirmations_required=9, expires_in=600)
    payment = await create_payment(client)
    lasts = datetime.fromisoformat(payment["expires_at"]) - datetime.fromisoformat(payment["created_at"])
    assert (payment["confirmations_required"], lasts) == (9, timedelta(seconds=600))
    assert (await client.get(f"/v1/payments/{before['id']}")).json() == before

    own = await create_payment(client, confirmations_required=2, expires_in=3600)
    lasts = datetime.fromisoformat(own["expires_at"]) - datetime.fromisoformat(own["created_at"])
    assert (own["confirmations_required"], lasts) == (2, timedelta(seconds=3600))


async def test_one_merchants_defaults_are_not_anothers(client: httpx.AsyncClient, gateway: Gateway) -> None:
    await add_merchant(gateway, "pwk_of_another")
    await change(client, confirmations_required=9)
    async with client_of(gateway, "pwk_of_another") as another:
        assert (await another.get("/v1/merchant")).json()["confirmations_required"] is None
        await change(another, expires_in=61)
        assert (await create_payment(another))["confirmations_required"] == 3
    assert (await client.get("/v1/merchant")).json()["expires_in"] == 3600


async def test_a_key_that_may_only_create_payments_cannot_change_defaults(gateway: Gateway) -> None:
    await add_merchant(gateway, "pwk_of_a_shop", "payments:read", "payments:write")
    async with client_of(gateway, "pwk_of_a_shop") as shop:
        assert (await shop.get("/v1/merchant")).status_code == 200
        read_problem(await shop.patch("/v1/merchant", json={"tolerance": "99%"}), 403, "forbidden")


async def test_the_default_tolerance_is_relative_or_of_what_is_asked(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    await change(client, tolerance="1%")
    assert await tolerated(gateway, await create_payment(client)) == [250_000]
    assert await tolerated(gateway, await create_payment(client, tolerance="0")) == [0]
    await change(client, tolerance="0.10")
    assert await tolerated(gateway, await create_payment(client)) == [100_000]
    assert await tolerated(gateway, await priced(client, "25", USDC, ETH)) == [100_000, 40_000_000_000_000]
    # What would be the whole amount tolerates nothing, rather than everything.
    assert await tolerated(gateway, await create_payment(client, amount="0.1")) == [0]
    assert await tolerated(gateway, await create_payment(client, amount="0.100001")) == [100_000]
    await change(client, tolerance="0.00000019")
    assert await tolerated(gateway, await create_payment(client)) == [0]


async def test_tiers_give_small_payments_fewer_confirmations(client: httpx.AsyncClient) -> None:
    await change(client, confirmation_tiers=TIERS, confirmations_required=12)
    for amount, expected in [("0.01", 1), ("100", 1), ("100.000001", 5), ("1000", 5), ("1000.01", 12)]:
        payment = await priced(client, amount, USDC, ETH)
        assert [each["confirmations_required"] for each in payment["options"]] == [expected] * 2, amount
        assert payment["confirmations_required"] == expected
    assert (await priced(client, "5000", USDC, confirmations_required=2))["confirmations_required"] == 2
    assert (await priced(client, "1", USDC, confirmations_required=2))["confirmations_required"] == 2


async def test_tiers_measure_an_amount_of_an_asset_by_its_rate(client: httpx.AsyncClient) -> None:
    await change(client, confirmation_tiers=TIERS[::-1])  # in any order
    for token, amount, expected in [
        ("USDC", "100", 1),
        ("USDC", "100.000001", 5),
        ("ETH", "0.04", 1),
        ("ETH", "0.040000000000000001", 5),
        ("ETH", "0.4", 5),
        ("ETH", "1", 5),  # above all tiers: the chain asks for 3, and no tier is undercut
    ]:
        payment = await create_payment(client, token=token, amount=amount)
        assert payment["confirmations_required"] == expected, (token, amount)


async def test_what_cannot_be_measured_gets_the_most_confirmations(client: httpx.AsyncClient, gateway: Gateway) -> None:
    await change(client, confirmation_tiers=[{"up_to": "100", "currency": "EUR", "confirmations": 1}])
    assert (await create_payment(client, token="ETH", amount="0.05"))["confirmations_required"] == 1
    assert (await create_payment(client, amount="1"))["confirmations_required"] == 3  # no rate of USDC in EUR
    # A price in a currency without tiers is measured like an amount, option by option.
    payment = await priced(client, "100", USDC, ETH)
    assert [each["confirmations_required"] for each in payment["options"]] == [3, 1]
    await change(client, confirmation_tiers=TIERS)
    context = gateway.context
    blind = replace(gateway, context=replace(context, chains=replace(context.chains, rates=None)))
    async with client_of(blind) as without_rates:
        assert (await create_payment(without_rates, amount="1"))["confirmations_required"] == 5


async def test_a_tiers_currency_that_is_the_prices_own_comes_first(client: httpx.AsyncClient) -> None:
    euros = {"up_to": "1000", "currency": "EUR", "confirmations": 8}
    await change(client, confirmation_tiers=[euros, *TIERS])
    assert (await priced(client, "50", ETH))["confirmations_required"] == 1
    assert (await create_payment(client, token="ETH", amount="0.02"))["confirmations_required"] == 8


async def test_money_survives_at_78_digits(client: httpx.AsyncClient, gateway: Gateway) -> None:
    digits = "9" * 77 + "." + "9" * 77
    merchant = await change(
        client,
        tolerance=digits,
        confirmation_tiers=[{"up_to": digits, "currency": "USD", "confirmations": 1}],
        confirmations_required=12,
    )
    assert (merchant["tolerance"], merchant["confirmation_tiers"][0]["up_to"]) == (digits, digits)
    assert (await priced(client, digits[:70], USDC))["confirmations_required"] == 1
    assert await tolerated(gateway, await create_payment(client)) == [0]  # more than all: nothing


def tier(**changed: Any) -> dict[str, Any]:
    return {"confirmation_tiers": [TIERS[0], {"up_to": "200", "currency": "USD", "confirmations": 2} | changed]}


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"confirmations_required": 0}, "confirmations_required"),
        ({"confirmations_required": 10_001}, "confirmations_required"),
        ({"confirmations_required": "3"}, "confirmations_required"),
        ({"expires_in": 59}, "expires_in"),
        ({"expires_in": 2_592_001}, "expires_in"),
        ({"expires_in": "600"}, "expires_in"),
        ({"tolerance": "100%"}, "tolerance"),
        ({"tolerance": "-1"}, "tolerance"),
        ({"tolerance": 0.5}, "tolerance"),
        ({"tolerance": "0.00001%"}, "tolerance"),
        ({"confirmation_tiers": "none"}, "confirmation_tiers"),
        ({"confirmation_tiers": [TIERS[0]] * 21}, "confirmation_tiers"),
        (tier(up_to="0"), "confirmation_tiers.1.up_to"),
        (tier(up_to="1e3"), "confirmation_tiers.1.up_to"),
        (tier(up_to=200), "confirmation_tiers.1.up_to"),
        (tier(up_to="100.0"), "confirmation_tiers.1.up_to"),
        (tier(currency="US$"), "confirmation_tiers.1.currency"),
        (tier(confirmations=0), "confirmation_tiers.1.confirmations"),
        (tier(up_to="50", confirmations=2), "confirmation_tiers.1.confirmations"),
        ({"treasury": "0x" + "11" * 20}, "treasury"),
        ({"name": "Mallory"}, "name"),
    ],
    ids=str,
)
async def test_a_wrong_default_is_named_and_nothing_changes(
    shared_client: httpx.AsyncClient, body: dict[str, Any], path: str
) -> None:
    before = (await shared_client.get("/v1/merchant")).json()
    problem = read_problem(await shared_client.patch("/v1/merchant", json=body), 422, "validation_error")
    assert [error["path"] for error in problem["errors"]] == [path]
    assert (await shared_client.get("/v1/merchant")).json() == before

"""Goal: a price becomes amounts at fresh rates, never too little and never at a made-up one, and stays as quoted."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app.core.chains import Chain, FixedRates, HttpRates, Rates, Token
from app.core.clock import utc_now
from app.core.evm import to_bytes20
from app.db.engine import Database
from app.db.models import ChainState, Transaction
from app.db.repositories import payments
from app.services.gateway import Gateway
from app.services.ledger import Cause, decide_again
from tests.support.anvil import Anvil
from tests.support.gateway import Devnet, client_of, open_gateway, row_counts
from tests.support.pages import RatePage
from tests.support.problems import read_problem

USDC, ETH = {"chain": "devnet", "token": "USDC"}, {"chain": "devnet", "token": "ETH"}
OTHER_USDC, OTHER_ETH = {"chain": "other", "token": "USDC"}, {"chain": "other", "token": "ETH"}
RATES = Rates(
    120.0, (FixedRates({"USDC/USD": Decimal("0.999"), "ETH/USD": Decimal("2512.34"), "BIG/USD": Decimal(1)}),)
)
UINT256_MAX = 2**256 - 1


def priced(*accept: dict[str, str], amount: str = "25", currency: str = "USD", **changed: Any) -> dict[str, Any]:
    return {"price": {"amount": amount, "currency": currency}, "accept": list(accept), **changed}


async def create(client: httpx.AsyncClient, *accept: dict[str, str], **changed: Any) -> dict[str, Any]:
    response = await client.post("/v1/payments", json=priced(*accept, **changed))
    assert response.status_code == 201, response.text
    payment: dict[str, Any] = response.json()
    return payment


@pytest.fixture(scope="module")
async def other() -> AsyncIterator[Devnet]:
    """A second chain."""
    async with Anvil(chain_id=31338) as anvil:
        yield Devnet(anvil, await anvil.deploy("TestToken", "USD Coin", "USDC", 18))


def two_chains(devnet: Devnet, other: Devnet) -> tuple[Chain, Chain]:
    token = Token("USDC", to_bytes20(other.usdc), 18)
    return devnet.chain(), other.chain(name="other", chain_id=31338, tokens=(token,), confirmations_required=7)


@pytest.fixture
async def gateway(db_url: str, redis_url: str, devnet: Devnet, other: Devnet) -> AsyncIterator[Gateway]:
    """Two chains, with fixed rates."""
    async with open_gateway(db_url, redis_url, *two_chains(devnet, other), rates=RATES) as opened:
        yield opened


def with_rates(gateway: Gateway, *pairs: str) -> Gateway:
    """The gateway with the fixed rates of these pairs alone."""
    [fixed] = RATES.sources
    assert isinstance(fixed, FixedRates)
    rates = Rates(120.0, (FixedRates({pair: fixed.pairs[pair] for pair in pairs}),))
    return of_rates(gateway, rates)


def of_rates(gateway: Gateway, rates: Rates | None) -> Gateway:
    context = gateway.context
    return replace(gateway, context=replace(context, chains=replace(context.chains, rates=rates)))


# --- what is quoted


async def test_each_option_is_quoted_rounded_up_and_keeps_its_rate(client: httpx.AsyncClient, devnet: Devnet) -> None:
    before = utc_now()
    payment = await create(client, ETH, USDC, OTHER_USDC, amount="25.00", currency="usd", expires_in=600)
    assert payment["price"] == {"amount": "25", "currency": "USD"}
    told = [(each["chain"], each["token"], each["amount"], each["rate"]) for each in payment["options"]]
    assert told == [
        ("devnet", "ETH", "0.009950882444255157", "2512.34"),  # 25 / 2512.34 = 0.0099508824442551565…
        ("devnet", "USDC", "25.025026", "0.999"),  # 25.025025025…
        ("other", "USDC", "25.025025025025025026", "0.999"),
    ]
    for option in payment["options"]:
        assert option["rate_source"] == "fixed"
        assert before <= datetime.fromisoformat(option["rate_at"]) <= utc_now()
        assert (option["amount_received"], option["amount_due"]) == ("0", option["amount"])
        assert Decimal(option["amount"]) * Decimal(option["rate"]) >= 25
        assert payment["address"] in option["payment_uri"]
    assert [each["confirmations_required"] for each in payment["options"]] == [3, 3, 7]
    first = payment["options"][0]
    shown = ("chain", "chain_id", "token", "amount", "amount_units", "amount_due", "payment_uri", "decimals")
    assert {name: payment[name] for name in shown} == {name: first[name] for name in shown}
    lasts = datetime.fromisoformat(payment["expires_at"]) - datetime.fromisoformat(payment["created_at"])
    assert lasts == timedelta(seconds=600)
    assert (await client.get(f"/v1/payments/{payment['id']}")).json() == payment
    [event] = (await client.get(f"/v1/payments/{payment['id']}/events")).json()["data"]
    assert event["data"] == payment


async def test_a_quote_is_locked_whatever_rates_do_later(client: httpx.AsyncClient, gateway: Gateway) -> None:
    payment = await create(client, ETH)
    dearer = Rates(120.0, (FixedRates({"ETH/USD": Decimal(1)}),))
    async with client_of(of_rates(gateway, dearer)) as later:
        assert (await later.get(f"/v1/payments/{payment['id']}")).json() == payment


@pytest.mark.parametrize(
    ("accept", "branch"),
    [([USDC], 1), ([USDC, OTHER_USDC], 1), ([USDC, ETH], 0), ([USDC, OTHER_ETH], 0), ([ETH, OTHER_ETH], 0)],
    ids=["token", "tokens", "token and coin", "coin elsewhere", "coins"],
)
async def test_one_address_serves_all_options_and_any_coin_puts_it_on_the_native_branch(
    client: httpx.AsyncClient, gateway: Gateway, accept: list[dict[str, str]], branch: int
) -> None:
    payment = await create(client, *accept)
    assert len(payment["options"]) == len(accept)
    addresses = {branch: gateway.deriver.address(branch, 1) for branch in (0, 1)}
    assert bytes.fromhex(payment["address"][2:]) == addresses[branch]


async def test_every_option_is_found_by_the_list(client: httpx.AsyncClient) -> None:
    payment = await create(client, USDC, OTHER_ETH)
    for query, found in [({"chain": "other"}, 1), ({"token": "ETH"}, 1), ({"chain": "devnet", "token": "ETH"}, 0)]:
        data = (await client.get("/v1/payments", params=query)).json()["data"]
        assert [each["id"] for each in data] == [payment["id"]] * found, query


async def test_a_tolerance_counts_in_the_price(client: httpx.AsyncClient, gateway: Gateway) -> None:
    """0.10 is ten cents in each option, and not a tenth of an ether."""
    payment = await create(client, ETH, USDC, tolerance="0.10")
    relative = await create(client, ETH, tolerance="1%")
    async with gateway.context.db.read() as session:
        [record, other] = await payments.load(session, [payment["id"], relative["id"]])
    tolerated = [option.tolerance_units for option in record.options]
    assert tolerated == [39803529777020, 100100]  # rounded down: 0.10 / 2512.34 ETH, 0.10 / 0.999 USDC
    assert [option.tolerance_units for option in other.options] == [99508824442551]


# --- what is not offered


async def test_an_option_without_a_fresh_rate_is_not_offered(gateway: Gateway) -> None:
    async with client_of(with_rates(gateway, "USDC/USD")) as client:
        payment = await create(client, ETH, USDC)
        assert [each["token"] for each in payment["options"]] == ["USDC"]
        assert payment["token"] == "USDC"
        before = await row_counts(gateway.context.db)
        problem = read_problem(await client.post("/v1/payments", json=priced(ETH)), 503, "rate_unavailable")
        assert "ETH/USD" in problem["detail"]
        read_problem(await client.post("/v1/payments", json=priced(USDC, currency="EUR")), 503, "rate_unavailable")
        read_problem(await client.post("/v1/payments", json=priced(USDC, currency="USDC")), 503, "rate_unavailable")
        assert await row_counts(gateway.context.db) == before


async def test_without_sources_a_price_is_refused_and_an_amount_is_not(gateway: Gateway) -> None:
    async with client_of(of_rates(gateway, None)) as client:
        response = await client.post("/v1/payments", json=priced(USDC))
        read_problem(response, 503, "rate_unavailable")
        assert response.headers["retry-after"]
        assert (await client.post("/v1/payments", json=USDC | {"amount": "25"})).status_code == 201


async def halt(db: Database, *chain_ids: int) -> None:
    async with db.write() as session:
        halted = update(ChainState).where(ChainState.chain_id.in_(chain_ids))
        await session.execute(halted.values(halt_code="reorg", halt_detail="a reorg below finality"))


async def test_an_option_of_a_halted_chain_is_not_offered(client: httpx.AsyncClient, gateway: Gateway) -> None:
    await halt(gateway.context.db, 31338)
    payment = await create(client, OTHER_USDC, USDC)
    assert [each["chain"] for each in payment["options"]] == ["devnet"]
    problem = read_problem(await client.post("/v1/payments", json=priced(OTHER_USDC)), 503, "chain_unavailable")
    assert "a reorg below finality" in problem["detail"]
    problem = read_problem(await client.post("/v1/payments", json=priced(OTHER_USDC, USDC, currency="EUR")), 503)
    assert problem["code"] == "rate_unavailable"
    await halt(gateway.context.db, 31337)
    read_problem(await client.post("/v1/payments", json=priced(OTHER_USDC, USDC)), 503, "chain_unavailable")


async def test_an_option_of_a_chain_that_nobody_watches_is_not_offered(
    db_url: str, redis_url: str, devnet: Devnet
) -> None:
    away = devnet.chain(name="away", chain_id=5, rpc_urls=("http://127.0.0.1:9",))
    async with (
        open_gateway(db_url, redis_url, devnet.chain(), away, rates=RATES) as gateway,
        client_of(gateway) as client,
    ):
        payment = await create(client, {"chain": "away", "token": "USDC"}, USDC)
        assert [each["chain"] for each in payment["options"]] == ["devnet"]


async def test_a_price_beyond_256_bits_is_refused(client: httpx.AsyncClient) -> None:
    problem = read_problem(await client.post("/v1/payments", json=priced(USDC, amount="9" * 78)), 422, "invalid_amount")
    assert [error["path"] for error in problem["errors"]] == ["price.amount"]


# --- when rates are asked


async def test_rates_are_asked_outside_of_any_transaction_and_once_for_many(
    db_url: str, redis_url: str, devnet: Devnet
) -> None:
    """While the source is silent nothing is locked: on SQLite another writer would wait for a transaction's end."""
    async with RatePage() as page:
        rates = Rates(120.0, (HttpRates(page.url, "data.amount"),))
        page.held = True
        async with (
            open_gateway(db_url, redis_url, devnet.chain(), rates=rates) as gateway,
            client_of(gateway) as client,
        ):
            waiting = [
                asyncio.create_task(
                    client.post("/v1/payments", json=priced(ETH), headers={"Idempotency-Key": f"k{n % 2}"})
                )
                for n in range(10)
            ]
            async with asyncio.timeout(60):
                while not page.asked:
                    await asyncio.sleep(0.01)
            answer = await client.post("/v1/payments", json=USDC | {"amount": "25"})
            assert answer.status_code == 201
            assert not any(task.done() for task in waiting)
            page.release.set()
            answers = await asyncio.gather(*waiting)
        assert [answer.status_code for answer in answers] == [201] * 10
        assert page.asked == ["ETH-USD"]
        assert len({answer.json()["id"] for answer in answers}) == 2


async def test_a_retry_gets_its_first_quote_although_the_rates_are_gone(gateway: Gateway) -> None:
    headers = {"Idempotency-Key": "k"}
    async with client_of(gateway) as client:
        first = await client.post("/v1/payments", json=priced(ETH), headers=headers)
    async with client_of(of_rates(gateway, None)) as client:
        again = await client.post("/v1/payments", json=priced(ETH), headers=headers)
        other_body = await client.post("/v1/payments", json=priced(ETH, amount="26"), headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    read_problem(other_body, 422, "idempotency_key_reused")


# --- paid


async def receive(gateway: Gateway, payment: dict[str, Any], option: int, units: int, nth: int = 0) -> dict[str, Any]:
    """As if the scanner had seen `units` of an option arrive; the payment as it is told then."""
    asked = payment["options"][option]
    asset = to_bytes20(asked["token_address"]) if asked["token_address"] else bytes(20)
    async with gateway.context.db.write() as session:
        session.add(
            Transaction(
                payment_id=payment["id"],
                chain_id=asked["chain_id"],
                block_number=1,
                block_hash=nth.to_bytes(32),
                block_time=utc_now(),
                tx_index=0,
                position="tx",
                recipient=to_bytes20(payment["address"]),
                asset=asset,
                amount_units=units,
                canonical=True,
                verified=False,
                noted=False,
                seen_at=utc_now(),
            )
        )
        await session.flush()
        await decide_again(gateway.context, session, [payment["id"]], Cause("block", {}))
    async with client_of(gateway) as client:
        told: dict[str, Any] = (await client.get(f"/v1/payments/{payment['id']}")).json()
    return told


def money(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(each["amount_received"], each["amount_due"]) for each in (told, *told["options"])]


async def test_options_are_never_added_and_the_first_fully_paid_completes(
    client: httpx.AsyncClient, gateway: Gateway
) -> None:
    payment = await create(client, ETH, USDC, amount="25.025")
    eth, usdc = (int(each["amount_units"]) for each in payment["options"])
    assert money(payment) == [("0", "0.009960833326699412"), ("0", "0.009960833326699412"), ("0", "25.050051")]

    part = await receive(gateway, payment, 0, eth - 1)
    assert (part["status"], part["flags"], part["token"]) == ("pending", ["underpaid"], "ETH")
    assert money(part)[1:] == [("0.009960833326699411", "0.000000000000000001"), ("0", "25.050051")]
    assert money(part)[0] == money(part)[1]
    assert part["payment_uri"].endswith("?value=1")

    more = await receive(gateway, payment, 1, usdc - 1, nth=1)
    assert (more["status"], more["flags"]) == ("pending", ["underpaid"])  # two that are almost paid pay nothing
    assert money(more)[2] == ("25.05005", "0.000001")

    done = await receive(gateway, payment, 1, 1, nth=2)
    assert (done["status"], done["flags"], done["token"]) == ("detected", ["overpaid"], "USDC")
    assert money(done) == [("25.050051", "0"), ("0.009960833326699411", "0"), ("25.050051", "0")]
    assert done["price"] == payment["price"]


async def test_money_survives_at_78_digits(db_url: str, redis_url: str, devnet: Devnet) -> None:
    """In, through the database and out again: asked as an amount, asked as a price, and received."""
    big = await devnet.anvil.deploy("TestToken", "Big", "BIG", 6)
    chain = devnet.chain(tokens=(Token("BIG", to_bytes20(big), 6),))
    largest = f"{UINT256_MAX // 10**6}.{UINT256_MAX % 10**6:06}"
    assert len(largest) == 79
    async with open_gateway(db_url, redis_url, chain, rates=RATES) as gateway, client_of(gateway) as client:
        way = {"chain": "devnet", "token": "BIG"}
        for body in (way | {"amount": largest}, priced(way, amount=largest)):
            payment = (await client.post("/v1/payments", json=body)).json()
            for shown in (payment, payment["options"][0]):
                assert (shown["amount"], shown["amount_units"]) == (largest, str(UINT256_MAX))
                assert shown["amount_due"] == largest
            assert (await client.get(f"/v1/payments/{payment['id']}")).json() == payment
            assert (await client.get("/v1/payments", params={"limit": 1})).json()["data"] == [payment]
            if "price" in body:
                assert payment["price"]["amount"] == largest

            one_less = await receive(gateway, payment, 0, UINT256_MAX - 1)
            assert (one_less["status"], one_less["amount_due"]) == ("pending", "0.000001")
            assert one_less["amount_received_units"] == str(UINT256_MAX - 1)
            paid = await receive(gateway, payment, 0, 1, nth=1)
            assert (paid["status"], paid["amount_received"], paid["amount_due"]) == ("detected", largest, "0")
            assert [each["amount_units"] for each in paid["transactions"]] == [str(UINT256_MAX - 1), "1"]
            events = (await client.get(f"/v1/payments/{payment['id']}/events")).json()["data"]
            assert events[-1]["data"] == paid

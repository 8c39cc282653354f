"""Goal: every payment has an address of its own that follows from the wallet alone, and nothing half-made is left."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from coincurve import PublicKey
from sqlalchemy import delete, select, update

from app.blockchain.wallet import account_xpub
from app.core import limits
from app.core.config import Settings, load_settings
from app.core.errors import (
    ChainUnavailable,
    ConfigError,
    DuplicateOrder,
    InvalidAmount,
    InvalidRequest,
    ServiceUnavailable,
    UnknownChain,
    UnknownToken,
)
from app.db.base import Base
from app.db.driver import QuickSession
from app.db.models import ChainState, DepositAddress, Event, Merchant, Payment, PaymentOption
from app.db.repositories import merchants
from app.db.repositories import payments as repository
from app.db.repositories.together import insert_together
from app.services import payments
from app.services.defaults import defaults_of
from app.services.gateway import Gateway, running_gateway
from app.services.ledger import Cause
from app.services.payments import NewPayment
from app.services.views import PaymentView
from tests.support.anvil import MNEMONIC
from tests.support.gateway import API_KEY, Devnet, chains_of, client_of, create_payment, open_gateway, row_counts
from tests.support.secrets import SECRET_KEY

# m/44'/60'/0'/branch/index of "test test … junk", computed with eth-account, not with the code under test.
NATIVE = {
    1: "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    2: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
    3: "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
}
TOKEN = {
    1: "0x71b4a2d9B91726bdb5849D928967A1654D7F3de7",
    2: "0xCA55aC8514b25C660151a8AE0c90f116DF160daa",
    3: "0x74B5CcD17461cC0a1A5a53Ef2d84f0C54d2BF0B6",
}
CAUSE = Cause("operator", {})


def settings_from_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Settings as a process reads them."""
    for name, value in variables.items():
        monkeypatch.setenv(f"PAYWATCH_{name}", value)
    return load_settings(env_file=None)


async def create(gateway: Gateway, **changed: Any) -> PaymentView:
    values: dict[str, Any] = {"chain": "devnet", "token": "USDC", "amount": "25"}
    merchant = await first_merchant(gateway)
    quoted = await payments.quote(gateway.context, defaults_of(merchant), NewPayment(**(values | changed)))
    created = await payments.create(gateway.context, gateway.deriver, merchant.id, quoted, CAUSE)
    assert isinstance(created, payments.Created)
    return created.view


async def first_merchant(gateway: Gateway) -> Merchant:
    async with gateway.context.db.read() as session:
        merchant = await merchants.first(session)
    assert merchant is not None
    return merchant


@pytest.mark.parametrize("wallet", ["mnemonic", "mnemonic file", "xpub"])
async def test_addresses_are_the_golden_ones_from_the_environment_on(
    db_url: str, redis_url: str, devnet: Devnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wallet: str
) -> None:
    (tmp_path / "mnemonic").write_text(MNEMONIC + "\n")
    secret = {
        "mnemonic": {"MNEMONIC": MNEMONIC},
        "mnemonic file": {"MNEMONIC_FILE": str(tmp_path / "mnemonic")},
        "xpub": {"XPUB": account_xpub(MNEMONIC)},
    }[wallet]
    settings = settings_from_environment(
        monkeypatch, DATABASE_URL=db_url, REDIS_URL=redis_url, API_KEY=API_KEY, SECRET_KEY=SECRET_KEY, **secret
    )
    async with running_gateway(settings, chains_of(devnet.chain()), redis_url) as gateway, client_of(gateway) as client:
        addresses = [(await create_payment(client, token=token))["address"] for token in ("ETH", "USDC", "ETH")]
        # One sequence for both branches: an index is used once.
        assert addresses == [NATIVE[1], TOKEN[2], NATIVE[3]]


async def test_the_first_token_payment_is_on_the_token_branch(client: Any) -> None:
    assert (await create_payment(client, token="USDC"))["address"] == TOKEN[1]
    assert (await create_payment(client, token="ETH"))["address"] == NATIVE[2]


async def test_the_api_works_with_no_private_key_in_its_memory(db_url: str, redis_url: str, devnet: Devnet) -> None:
    xpub = account_xpub(MNEMONIC)
    async with open_gateway(db_url, redis_url, devnet.chain(), mnemonic=None, xpub=xpub) as gateway:
        gateway.context.settings.check_server()
        assert not gateway.context.settings.has_private_key
        assert {type(part) for branch in gateway.deriver._branches.values() for part in branch} == {PublicKey, bytes}
        assert (await create(gateway, token="ETH")).address == NATIVE[1]


async def test_a_wallet_that_contradicts_itself_stops_the_start(db_url: str, redis_url: str, devnet: Devnet) -> None:
    other = account_xpub("abandon " * 11 + "about")
    with pytest.raises(ConfigError, match="PAYWATCH_XPUB is not the account"):
        async with open_gateway(db_url, redis_url, devnet.chain(), xpub=other):
            pass
    with pytest.raises(ConfigError, match="PAYWATCH_XPUB is not set"):
        async with open_gateway(db_url, redis_url, devnet.chain(), mnemonic=None):
            pass


async def test_fifty_at_once_get_fifty_addresses(client: Any, gateway: Gateway) -> None:
    made = await asyncio.gather(*(create_payment(client, token=("ETH", "USDC")[n % 2], amount="1") for n in range(50)))
    assert len({payment["address"] for payment in made}) == 50
    assert len({payment["id"] for payment in made}) == 50
    async with gateway.context.db.read() as session:
        rows = (await session.execute(select(DepositAddress.id, DepositAddress.branch))).all()
    assert len({index for index, _ in rows}) == 50
    assert Counter(branch for _, branch in rows) == {0: 25, 1: 25}


async def test_an_index_is_not_used_again_after_its_payment_is_gone(gateway: Gateway) -> None:
    """As after somebody cleaned up by hand: the address may be known to a customer."""
    first = await create(gateway)
    async with gateway.context.db.write() as session:
        for model in (Event, PaymentOption, Payment, DepositAddress):
            await session.execute(delete(model))
    second = await create(gateway)
    assert second.address != first.address


async def test_a_chain_is_refused_by_what_it_is_now(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: what was read of the chains before refuses no payment, and lets none pass for longer than its age."""

    async def halt(code: str | None) -> None:
        async with gateway.context.db.write() as session:
            await session.execute(update(ChainState).values(halt_code=code, halt_detail="why"))

    monkeypatch.setattr(limits, "WATCHED_AGE_S", 3_600.0)
    await halt("reorg")
    with pytest.raises(ChainUnavailable):
        await create(gateway)
    await halt(None)
    await create(gateway)
    await halt("reorg")
    monkeypatch.setattr(limits, "WATCHED_AGE_S", 0.0)
    with pytest.raises(ChainUnavailable):
        await create(gateway)


async def test_what_is_rolled_back_leaves_nothing(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await row_counts(gateway.context.db)

    async def failing(session: QuickSession, rows: Sequence[Base]) -> None:
        await insert_together(session, rows)
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(payments, "insert_together", failing)
        with pytest.raises(RuntimeError):
            await create(gateway)
    assert await row_counts(gateway.context.db) == before
    await create(gateway)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"chain": "nowhere"}, UnknownChain),
        ({"token": "DOGE"}, UnknownToken),
        ({"amount": "0"}, InvalidAmount),
        ({"amount": "0.0000001"}, InvalidAmount),
        ({"tolerance": "25"}, InvalidRequest),
    ],
    ids=str,
)
async def test_what_cannot_be_paid_is_refused_by_its_own_error(
    gateway: Gateway, changed: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await create(gateway, **changed)


async def test_two_transactions_that_race_for_an_order_end_in_one_payment(gateway: Gateway) -> None:
    outcomes = await asyncio.gather(*(create(gateway, order_id="A-1") for _ in range(10)), return_exceptions=True)
    [made] = [outcome for outcome in outcomes if isinstance(outcome, PaymentView)]
    refused = [outcome for outcome in outcomes if not isinstance(outcome, PaymentView)]
    assert all(isinstance(outcome, DuplicateOrder) and made.id in str(outcome) for outcome in refused), refused


async def test_only_an_order_is_looked_up_before_its_payment_is_written(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []

    async def first_answer(_context: Any, _merchant_id: str, order_id: str | None, _claim: Any) -> None:
        looked_up.append(order_id)

    monkeypatch.setattr(payments, "_first_answer", first_answer)
    await create(gateway)
    await create(gateway, order_id="A-1")
    assert looked_up == ["A-1"]


async def test_the_holder_of_an_order_is_named_before_a_newer_payment(gateway: Gateway) -> None:
    """As when a version that knew no late payments had opened the newer one."""
    holder = await create(gateway, order_id="A-1")
    async with gateway.context.db.write() as session:
        await session.execute(update(Payment).values(status="expired"))
    newer = await create(gateway, order_id="A-1")
    async with gateway.context.db.write() as session:
        await session.execute(update(Payment).where(Payment.id == newer.id).values(holds_order=False))
        await session.execute(update(Payment).values(status="confirmed"))
    with pytest.raises(DuplicateOrder, match=holder.id):
        await create(gateway, order_id="A-1")


async def test_an_order_that_is_given_up_while_it_is_being_refused_is_free(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_by_order, calls = repository.find_by_order, 0
    await create(gateway, order_id="A-1")

    async def racing(session: QuickSession, merchant_id: str, order_id: str) -> str | None:
        nonlocal calls
        calls += 1
        if calls == 1:  # the other payment is not there yet
            return None
        async with gateway.context.db.write() as writing:
            await writing.execute(update(Payment).values(status="cancelled", holds_order=False))
        return await find_by_order(session, merchant_id, order_id)

    monkeypatch.setattr(repository, "find_by_order", racing)
    assert (await create(gateway, order_id="A-1")).status == "pending"
    assert calls == 2


async def test_a_race_that_goes_on_is_given_up(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    await create(gateway, order_id="A-1")

    async def never_there(*_: Any) -> None:
        return None

    monkeypatch.setattr(repository, "find_by_order", never_there)
    before = await row_counts(gateway.context.db)
    with pytest.raises(ServiceUnavailable, match="try again"):
        await create(gateway, order_id="A-1")
    assert await row_counts(gateway.context.db) == before


async def test_a_chain_that_left_the_file_is_unknown_and_its_payments_stay(
    db_url: str, redis_url: str, devnet: Devnet
) -> None:
    async with open_gateway(db_url, redis_url, devnet.chain()) as gateway:
        made = await create(gateway)
    async with open_gateway(db_url, redis_url, devnet.chain(enabled=False)) as gateway:
        with pytest.raises(UnknownChain):
            await create(gateway)
        async with client_of(gateway) as client:
            found = (await client.get(f"/v1/payments/{made.id}")).json()
    assert found["address"] == made.address
    assert found["token"] == "USDC"


async def test_a_chain_without_a_cursor_gives_out_no_address(db_url: str, redis_url: str, devnet: Devnet) -> None:
    """Otherwise the first payment of all could be mined before anybody looks."""
    async with open_gateway(db_url, redis_url, devnet.chain(chain_id=5)) as gateway:
        before = await row_counts(gateway.context.db)
        with pytest.raises(ChainUnavailable):
            await create(gateway)
        assert await row_counts(gateway.context.db) == before

"""Goal: confirmed money reaches the treasury, in the cheapest way that the chain and the address allow."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from app.blockchain.signer import Signer
from app.db.models import Sweep, SweepItem
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.sweeping import OpenSwept, Swept, swept_by, use_words
from tests.services.blockchain.watch import open_watch
from tests.support.anvil import Anvil

# --- ways


async def test_tokens_are_collected_in_one_transaction_and_all_of_them_arrives(swept: Swept) -> None:
    payments = await swept.confirmed_many(5)
    await swept.settle(*payments)
    assert await swept.treasury_holds("USDC") == 5 * 25_000_000
    assert [kind for kind, *_ in await swept.story()] == ["deploy", "deploy", "collect"]
    [collect] = await swept.watch.rows(Sweep, Sweep.kind == "collect")
    items = await swept.watch.rows(SweepItem, SweepItem.sweep_id == collect.id)
    assert sorted(item.payment_id for item in items) == sorted(payment.id for payment in payments)
    assert {(item.amount_units, item.moved_units, item.live) for item in items} == {(25_000_000, 25_000_000, False)}
    for payment in payments:
        assert await swept.watch.told(payment) == "created detected confirmed settled"
    await swept.nothing_hangs()


async def test_native_coin_arrives_less_the_fee_that_is_recorded_to_the_wei(swept: Swept) -> None:
    payment = await swept.confirmed("ETH", "1")
    await swept.settle(payment)
    [sweep] = await swept.watch.rows(Sweep)
    assert sweep.kind == "native"
    assert await swept.treasury_holds("ETH") == 10**18 - sweep.fee_units
    assert await swept.holds(payment, "ETH") == 0
    [shown] = (await swept.watch.get(payment)).sweeps
    assert int(shown.amount_units) + int(shown.fee_units) == 10**18
    await swept.nothing_hangs()


async def test_a_token_is_topped_up_and_transferred_where_that_is_the_mode(open_swept: OpenSwept) -> None:
    async with open_swept(mode="topup") as swept:
        payments = await swept.confirmed_many(2)
        await swept.settle(*payments)
        assert await swept.treasury_holds("USDC") == 50_000_000
        assert sorted(kind for kind, *_ in await swept.story()) == ["topup", "topup", "transfer", "transfer"]
        for payment in payments:  # gas that was sent there is no payment
            assert [each.token for each in (await swept.watch.get(payment)).transactions] == ["USDC"]
            assert (await swept.watch.get(payment)).flags == []
        await swept.nothing_hangs()


@pytest.mark.parametrize("missing", [[b"baseFeePerGas"], [b"baseFeePerGas", b"effectiveGasPrice"]])
async def test_a_chain_without_base_fee_and_without_eip7702_is_swept_by_top_up(
    open_old: OpenSwept, requests: Requests, missing: list[bytes]
) -> None:
    """A node from before London tells no price in its receipts either."""

    async def without(_methods: set[str], body: bytes) -> bytes:
        for name in missing:
            body = body.replace(b'"%s"' % name, b'"somethingElse"')
        return body

    async with open_old() as swept:
        requests.on_answer = without
        token, native = await swept.confirmed("USDC"), await swept.confirmed("ETH", "1")
        await swept.settle(token, native)
        assert sorted(kind for kind, *_ in await swept.story()) == ["native", "topup", "transfer"]
        assert {attempt.raw[0] >= 0xC0 for attempt in await swept.attempts()} == {True}  # legacy
        [sweep] = await swept.watch.rows(Sweep, Sweep.kind == "native")
        assert await swept.treasury_holds("ETH") == 10**18 - sweep.fee_units
        assert sweep.fee_units == sweep.gas_used * sweep.gas_price_units
        assert await swept.treasury_holds("USDC") == 25_000_000
        await swept.nothing_hangs()


async def test_what_asks_for_eip7702_waits_where_the_chain_has_it_not(open_old: OpenSwept) -> None:
    async with open_old(mode="eip7702") as swept:
        await swept.confirmed("USDC")
        assert await swept.waiting() == ["the chain does not have EIP-7702"]
        assert await swept.story() == []


async def test_the_data_fee_of_an_l2_is_kept_back_and_what_is_left_of_it_is_dust(swept: Swept) -> None:
    """The OP stack's oracle says what a transaction's bytes cost; Anvil, though, does not charge it."""
    oracle = "0x420000000000000000000000000000000000000f"
    await swept.watch.anvil.rpc("anvil_setCode", oracle, "0x64e8d4a5100060005260206000f3")  # 10**12 wei
    payment = await swept.confirmed("ETH", "1")
    await swept.settle(payment)
    assert await swept.holds(payment, "ETH") == 10**12 * 5 // 4
    assert await swept.waiting() == []


@pytest.fixture
async def old_anvil() -> AsyncIterator[Anvil]:
    async with Anvil(extra_args=["--hardfork", "cancun"]) as node:
        yield node


@pytest.fixture
async def open_old(
    db_url: str, tmp_path: Path, old_anvil: Anvil, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> OpenSwept:
    use_words(monkeypatch)
    usdc = await old_anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    return partial(swept_by, partial(open_watch, db_url, tmp_path, old_anvil, tokens={"USDC": usdc}), signer)

"""Goal: whatever the chain, the node or a token does to a sweep, the money arrives once, or waits and says why."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, update

from app.blockchain.wallet import AddressDeriver, account_xpub
from app.core import limits
from app.core.clock import utc_now
from app.core.errors import ConfigError
from app.core.evm import checksum, hex0x
from app.core.queue import WakeUps, connect
from app.db.models import NonceLane, Outflow, Sweep, SweepAttempt, SweepItem, Transaction
from app.db.repositories.outflows import live_treasuries
from app.services.blockchain.reconcile import reconcile_chain
from app.services.blockchain.sweeper import Sweeper, asking, release_sweep
from app.services.blockchain.sweeping.jobs import Plan
from app.services.blockchain.sweeping.plan import make_plan
from app.services.blockchain.sweeping.sign import sign_and_send
from app.services.doctor.finding import Finding, Patient
from app.services.doctor.sweeping import check_sweeping
from app.services.metrics import exposition
from app.services.status import health
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.sweeping import (
    ETHER,
    GAS_MONEY,
    OTHER_WORDS,
    ROUNDS_MAX,
    TREASURY,
    OpenSwept,
    Swept,
    make_signer,
    use_words,
)
from tests.support.anvil import MNEMONIC, Anvil

GWEI = 10**9


async def age_attempts(swept: Swept, seconds: float = limits.SWEEP_STUCK_S + 1, broadcast: bool = False) -> None:
    """As if what was signed had been waiting for so long; `broadcast`: and a node had taken it then."""
    past = timedelta(seconds=seconds)
    async with swept.watch.context.db.write() as session:
        for attempt in await swept.attempts():
            await session.execute(
                update(SweepAttempt)
                .where(SweepAttempt.tx_hash == attempt.tx_hash)
                .values(
                    created_at=attempt.created_at - past, broadcast_at=attempt.created_at - past if broadcast else None
                )
            )


async def age_failures(swept: Swept) -> None:
    """As if what failed, in part or as a whole, had failed a day ago."""
    async with swept.watch.context.db.write() as session:
        for sweep in await swept.watch.rows(Sweep, Sweep.ended_at.is_not(None), Sweep.error.is_not(None)):
            past = sweep.ended_at - timedelta(days=2)
            await session.execute(update(Sweep).where(Sweep.id == sweep.id).values(ended_at=past))


async def base_fee(anvil: Anvil, gwei: int) -> None:
    """The next block's, and the head's."""
    await anvil.rpc("anvil_setNextBlockBaseFeePerGas", hex(gwei * GWEI))
    await anvil.mine()


# --- fees


@pytest.mark.parametrize("token", ["ETH", "USDC"])
async def test_a_stuck_transaction_is_replaced_at_its_nonce_and_at_a_higher_price(swept: Swept, token: str) -> None:
    payment = await swept.confirmed(token, "1")
    if token == "USDC":
        await swept.turn()
        await swept.turn()  # the contracts
    await swept.round()
    await base_fee(swept.watch.anvil, 200)  # anvil drops what pays less
    await swept.watch.scan()
    await age_attempts(swept)
    await swept.settle(payment)
    [sweep] = await swept.watch.rows(Sweep, Sweep.kind.in_(("native", "collect")))
    first, second = [each for each in await swept.attempts() if each.sweep_id == sweep.id]
    assert sweep.tx_hash == second.tx_hash
    assert second.max_fee_units >= first.max_fee_units * 9 // 8
    assert second.max_priority_fee_units >= first.max_priority_fee_units * 9 // 8
    if token == "ETH":
        assert first.value_units - second.value_units == 21_000 * (second.max_fee_units - first.max_fee_units)
        assert await swept.treasury_holds("ETH") == ETHER - (sweep.fee_units or 0)
        assert await swept.holds(payment, "ETH") == 0
    else:
        assert await swept.treasury_holds("USDC") == 1_000_000
    await swept.nothing_hangs()


async def test_when_a_transaction_is_stuck_follows_from_the_chain(swept: Swept) -> None:
    async with asking(swept.sweeper, swept.watch.chain) as round_:
        found = {
            (poll_s, interval_s): replace(
                round_,
                chain=replace(
                    round_.chain, poll_interval_s=poll_s, sweep=replace(round_.chain.sweep, interval_s=interval_s)
                ),
            ).stuck_s
            for poll_s, interval_s in ((0.1, 0.1), (2.0, 10.0), (1.0, 15.0), (4.0, 10.0), (60.0, 10.0))
        }
    assert list(found.values()) == [30, 60, 45, 120, 120]


async def test_either_of_the_competing_transactions_may_be_mined(swept: Swept, requests: Requests) -> None:
    payment = await swept.confirmed("ETH", "1")
    await swept.round()
    await age_attempts(swept)
    refused: list[set[str]] = []

    async def no_answer(methods: set[str]) -> None:
        if "eth_sendRawTransaction" in methods:
            refused.append(methods)
            if len(refused) == 2:  # the replacement never reaches the node
                raise TimeoutError

    requests.on_request = no_answer
    with pytest.raises(TimeoutError):
        await swept.round()
    requests.on_request = None
    assert len(await swept.attempts()) == 2
    await swept.watch.mine_and_scan()
    await swept.settle(payment)
    [sweep] = await swept.watch.rows(Sweep)
    assert sweep.tx_hash == (await swept.attempts())[0].tx_hash
    assert await swept.treasury_holds("ETH") == ETHER - (sweep.fee_units or 0)
    await swept.nothing_hangs()


async def test_a_base_fee_above_the_ceiling_waits_and_says_so(
    open_swept: OpenSwept, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_swept(max_fee_gwei=50) as swept:
        payment = await swept.confirmed("ETH", "1")
        await base_fee(swept.watch.anvil, 80)
        await swept.watch.scan()
        assert await swept.waiting() == ["the fee is 80 gwei, above max_fee_gwei 50"]
        assert "the fee is 80 gwei, above max_fee_gwei 50" in capsys.readouterr().out
        assert await swept.story() == []
        await base_fee(swept.watch.anvil, 40)
        await swept.watch.scan()
        await swept.settle(payment)
        [attempt] = await swept.attempts()
        assert attempt.max_fee_units <= 50 * GWEI


async def test_money_that_has_waited_for_max_wait_goes_whatever_the_fee(open_swept: OpenSwept) -> None:
    async with open_swept(max_fee_gwei=50, min_amount='{ETH: "2"}', max_wait=3600) as swept:
        payment = await swept.confirmed("ETH", "1")
        assert await swept.waiting() == ["less than min_amount 2 ETH"]
        await base_fee(swept.watch.anvil, 80)
        await swept.watch.scan()
        async with swept.watch.context.db.write() as session:
            [row] = await swept.watch.rows(Transaction)
            past = row.seen_at - timedelta(hours=2)
            await session.execute(update(Transaction).values(seen_at=past))
        await swept.settle(payment)


async def test_less_than_its_own_fee_is_left_and_reported(swept: Swept) -> None:
    payment = await swept.watch.create("ETH", "0.000001")
    await swept.watch.pay(payment)
    await swept.watch.mine_and_scan(3)
    assert await swept.waiting() == ["less than its own fee"]
    assert await swept.story() == []


async def test_an_empty_gas_account_is_named_with_the_amount_and_holds_up_tokens_alone(swept: Swept) -> None:
    await swept.watch.anvil.set_balance(swept.gas_account, 0)
    token, native = await swept.confirmed("USDC"), await swept.confirmed("ETH", "1")
    await swept.settle(native)
    [reason] = await swept.waiting()
    assert reason.startswith(f"the gas account {swept.gas_account} lacks 0.")
    [lane] = await swept.watch.rows(NonceLane, NonceLane.is_deposit.is_(False))
    assert (lane.balance_units, lane.short_units > 0) == (0, True)
    await swept.watch.anvil.set_balance(swept.gas_account, lane.short_units)
    await swept.settle(token)


async def test_what_an_empty_gas_account_cannot_pay_for_is_not_estimated_one_by_one(
    open_swept: OpenSwept, requests: Requests
) -> None:
    async with open_swept(mode="topup") as swept:
        await swept.watch.anvil.set_balance(swept.gas_account, 0)
        payments = await swept.confirmed_many(6)
        reasons = await swept.waiting()
        assert (len(reasons), len(requests.calls("eth_estimateGas"))) == (6, 2)
        [lane] = await swept.watch.rows(NonceLane, NonceLane.is_deposit.is_(False))
        await swept.watch.anvil.set_balance(swept.gas_account, lane.short_units)  # enough for all of them
        await swept.round()
        assert len(await swept.watch.rows(Sweep, Sweep.kind == "topup")) == 6
        await swept.watch.anvil.set_balance(swept.gas_account, ETHER)
        await swept.settle(*payments)


@pytest.mark.parametrize("mode", ["auto", "topup"])
async def test_a_slow_plan_ends_in_time_and_signs_what_it_has(
    open_swept: OpenSwept, requests: Requests, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """The time is over with the third estimate of a round: what is planned by then is signed."""
    async with open_swept(mode=mode, batch_size=1) as swept:
        payments = await swept.confirmed_many(4)
        if mode == "auto":
            await swept.turn()
            await swept.turn()  # the contracts
        before = len(requests.calls("eth_estimateGas"))

        def late(_plan: Plan) -> bool:
            return len(requests.calls("eth_estimateGas")) >= before + 3

        with monkeypatch.context() as patched:
            patched.setattr(Plan, "is_full", property(late))
            assert (await swept.waiting()).count("the next round") >= 1
        assert any(kind in ("collect", "topup") for kind, *_ in await swept.story())
        await swept.settle(*payments)


async def test_native_coin_leaves_places_for_tokens(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SWEEP_ROUND_JOBS", 2)
    natives, token = await swept.confirmed_many(3, "ETH", "1"), await swept.confirmed()
    await swept.round()
    assert sorted(kind for kind, *_ in await swept.story()) == ["deploy", "native"]
    await swept.settle(*natives, token)


# --- tokens


@pytest.mark.parametrize("mode", ["auto", "topup"])
async def test_a_blacklisted_address_holds_up_only_itself(open_swept: OpenSwept, anvil: Anvil, mode: str) -> None:
    token = await anvil.deploy("BlacklistToken", "USD Coin", "USDC", 6)
    async with open_swept(mode=mode, tokens={"USDC": token}) as swept:
        good, bad, fine = await swept.confirmed_many(3)
        await anvil.transact(token, "setBlacklisted(address,bool)", bad.address, True)
        await anvil.mine()
        await swept.watch.scan()
        await swept.settle(good, fine)
        assert (await swept.watch.get(bad)).status == "confirmed"
        assert await swept.treasury_holds("USDC") == 50_000_000
        [reason] = await swept.waiting()
        assert reason.startswith("failed 1 times; tried again ")
        await anvil.transact(token, "setBlacklisted(address,bool)", bad.address, False)
        await anvil.mine()
        await swept.watch.scan()
        await age_failures(swept)
        if mode == "auto":  # the batch was confirmed: its one bad item waits by its end
            async with swept.watch.context.db.write() as session:
                [sweep] = await swept.watch.rows(Sweep, Sweep.kind == "collect")
                await session.execute(
                    update(Sweep).where(Sweep.id == sweep.id).values(ended_at=sweep.ended_at - timedelta(days=2))
                )
        await swept.settle(bad)
        assert await swept.treasury_holds("USDC") == 75_000_000
        await swept.nothing_hangs()


async def test_the_doctor_names_an_address_whose_transfers_revert(open_swept: OpenSwept, anvil: Anvil) -> None:
    """Not after the first time, and not any more when its money has left."""
    token = await anvil.deploy("BlacklistToken", "USD Coin", "USDC", 6)
    async with open_swept(mode="topup", tokens={"USDC": token}) as swept:
        bad = await swept.confirmed()
        await anvil.transact(token, "setBlacklisted(address,bool)", bad.address, True)
        await swept.watch.mine_and_scan()
        for _ in range(limits.DOCTOR_SWEEP_FAILURES):
            assert (await sweeps_finding(swept)).result == "ok"
            await age_failures(swept)
            while not [each for each in await swept.waiting() if each.startswith("failed ")]:
                await swept.watch.mine_and_scan()
        finding = await sweeps_finding(swept)
        assert finding.result == "failed"
        assert f"of {bad.id} first: {bad.address} failed 2 times (" in finding.found
        assert "paywatch sweep --dry-run --chain devnet" in finding.remedy
        await anvil.transact(token, "setBlacklisted(address,bool)", bad.address, False)
        await swept.watch.mine_and_scan()
        await age_failures(swept)
        await swept.settle(bad)
        assert (await sweeps_finding(swept)).result == "ok"


async def sweeps_finding(swept: Swept) -> Finding:
    found = {each.check: each for each in await check_sweeping(Patient(swept.watch.context, ""))}
    return found["sweeps:devnet"]


async def test_an_address_that_no_batch_can_hold_is_left_out_of_it(swept: Swept, requests: Requests) -> None:
    payments = await swept.confirmed_many(4)
    bad, *good = payments

    async def refuse(methods: set[str], body: bytes) -> bytes:
        if "eth_estimateGas" not in methods:
            return body
        call = requests.bodies[-1][0]["params"][0]
        if bad.address[2:].lower() not in call.get("data", ""):
            return body
        error: dict[str, Any] = {"code": -32000, "message": "out of gas"}
        return json.dumps({"jsonrpc": "2.0", "id": 0, "error": error}).encode()

    requests.on_answer = refuse
    await swept.settle(*good)
    assert await swept.treasury_holds("USDC") == 75_000_000
    [reason] = await swept.waiting()
    assert reason.startswith("failed 1 times; tried again ")


@pytest.mark.parametrize("mode", ["auto", "topup"])
@pytest.mark.parametrize("kind", ["NoReturnToken", "FeeToken"])
async def test_tokens_that_answer_or_count_oddly_arrive(
    open_swept: OpenSwept, anvil: Anvil, mode: str, kind: str
) -> None:
    token = await anvil.deploy(kind, "Tether", "USDC", 6)
    async with open_swept(mode=mode, tokens={"USDC": token}) as swept:
        payments = await swept.confirmed_many(2)
        await swept.settle(*payments)
        assert await swept.treasury_holds("USDC") == (49_500_000 if kind == "FeeToken" else 50_000_000)
        await swept.nothing_hangs()


async def test_an_address_that_was_swept_before_needs_no_authorization(swept: Swept) -> None:
    payment = await swept.confirmed()
    await swept.settle(payment)
    await swept.watch.pay(payment)
    await swept.watch.mine_and_scan(3)
    for _ in range(6):
        await swept.turn()
    assert await swept.treasury_holds("USDC") == 50_000_000
    fresh, again = [sweep for sweep in await swept.watch.rows(Sweep) if sweep.kind == "collect"]
    kinds = {each.sweep_id: each.raw[0] for each in await swept.attempts()}
    assert sorted((kinds[fresh.id], kinds[again.id])) == [2, 4]
    await swept.nothing_hangs()


async def test_wrong_late_and_part_money_is_swept_too(swept: Swept) -> None:
    """Ether at a token's address, a token at a native address, less than asked and expired, after a cancellation."""
    watch = swept.watch
    tokens, native = await watch.create("USDC", "25"), await watch.create("ETH", "1")
    part, gone = await watch.create("USDC", "25", expires_in_s=600), await watch.create("ETH", "1")
    await watch.cancel(gone)
    await watch.pay(tokens)
    await watch.pay(tokens, ETHER, token="ETH")
    await watch.pay(native)
    await watch.pay(native, 7_000_000, token="USDC")
    await watch.pay(part, 5_000_000)
    await watch.pay(gone)
    await watch.anvil.mine(3)
    await watch.anvil.increase_time(1_000)
    await watch.mine_and_scan(2)
    assert (await watch.get(part)).status == "expired"
    for _ in range(30):
        await swept.turn()
    assert await swept.waiting() == []
    assert await swept.treasury_holds("USDC") == 37_000_000
    for payment in (tokens, native, part, gone):
        assert await swept.holds(payment, "USDC") == 0
    fees = sum(each.fee_units for each in await watch.rows(Outflow))
    assert fees > 0
    assert [(await watch.get(each)).status for each in (tokens, native)] == ["settled", "settled"]
    natives = await watch.rows(Sweep, Sweep.kind == "native")
    assert await swept.treasury_holds("ETH") == 3 * ETHER - sum(each.fee_units or 0 for each in natives)
    await swept.nothing_hangs()


async def test_a_treasury_that_is_a_contract_wallet_gets_native_coin(swept: Swept) -> None:
    """It needs more than the 21,000 of a plain transfer; what the estimate's allowance leaves over is dust."""
    await swept.watch.anvil.rpc("anvil_setCode", TREASURY, "0x60006000a000")  # logs, and takes what it is sent
    payment = await swept.confirmed("ETH", "1")
    await swept.settle(payment)
    [sweep] = await swept.watch.rows(Sweep)
    dust = await swept.holds(payment, "ETH")
    assert 0 < dust < ETHER // 1_000
    assert await swept.treasury_holds("ETH") + (sweep.fee_units or 0) + dust == ETHER
    assert await swept.waiting() == []


async def test_addresses_are_delegated_anew_when_the_treasury_changes(open_swept: OpenSwept) -> None:
    other = "0x" + "5a" * 20
    async with open_swept() as swept:
        payment = await swept.confirmed()
        await swept.settle(payment)
    async with open_swept(treasury=f'"{other}"') as swept:
        await swept.watch.pay(payment)
        await swept.watch.mine_and_scan(3)
        for _ in range(10):
            await swept.turn()
        usdc = swept.watch.tokens["USDC"]
        assert await swept.watch.anvil.call(usdc, "balanceOf(address)", other, returns="uint256") == 25_000_000
        assert await swept.treasury_holds("USDC") == 25_000_000


async def test_the_words_of_another_wallet_are_refused(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    others = AddressDeriver(account_xpub(MNEMONIC))
    monkeypatch.setattr("tests.services.blockchain.watch.deriver", lambda: others)
    await swept.confirmed("ETH", "1")
    with pytest.raises(ConfigError, match="of another wallet"):
        await swept.round()
    assert await swept.story() == []


async def test_one_address_of_another_wallet_holds_up_only_itself(
    swept: Swept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = await swept.confirmed("ETH", "1")
    with monkeypatch.context() as patched:
        others = AddressDeriver(account_xpub(MNEMONIC))
        patched.setattr("tests.services.blockchain.watch.deriver", lambda: others)
        await swept.confirmed("ETH", "2")
    await swept.settle(ours)
    [reason] = await swept.waiting()
    assert reason.startswith("the private key is of another wallet")
    assert capsys.readouterr().out.count("address cannot be swept") == 1


@pytest.mark.parametrize(
    ("kind", "gas_money"), [("native", GAS_MONEY), ("deploy", GAS_MONEY), ("deploy", 0), ("topup", 0)]
)
async def test_a_stuck_sweep_of_another_wallet_holds_up_only_itself(
    open_swept: OpenSwept,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    gas_money: int,
) -> None:
    """The words were changed while it was under way: it is never replaced or paid for, and its bytes go out again."""
    token = "ETH" if kind == "native" else "USDC"
    async with open_swept(mode="topup" if kind == "topup" else "auto") as swept:
        await swept.confirmed(token, "1")
        await swept.round()
        [(signed, *_)] = await swept.story()
        [attempt] = await swept.attempts()
        former = swept.gas_account
        await swept.watch.anvil.set_balance(former, gas_money)
        await base_fee(swept.watch.anvil, 500)  # anvil drops what pays less
        await swept.watch.scan()
        await age_attempts(swept)

        use_words(monkeypatch, OTHER_WORDS)
        swept.sweeper = Sweeper(swept.watch.context, make_signer(OTHER_WORDS))
        await swept.watch.anvil.set_balance(swept.gas_account, 20 * ETHER)
        payment = await swept.confirmed(token, "1")
        for _ in range(ROUNDS_MAX):
            await swept.turn()
            if (await swept.watch.get(payment)).status == "settled":
                break
        assert (await swept.watch.get(payment)).status == "settled"
        [stuck] = await swept.watch.rows(Sweep, Sweep.id == attempt.sweep_id)
        assert (signed, stuck.status) == (kind, "signed")
        tried = [each.tx_hash for each in await swept.attempts() if each.sweep_id == stuck.id]
        assert tried == [attempt.tx_hash]
        assert await swept.watch.anvil.balance(former) == gas_money
        assert capsys.readouterr().out.count("another wallet signed it") == 1

        await swept.watch.anvil.set_balance(former, GAS_MONEY)
        await base_fee(swept.watch.anvil, 1)
        await swept.watch.scan()
        await swept.settle(payment)
        [stuck] = await swept.watch.rows(Sweep, Sweep.id == attempt.sweep_id)
        assert (stuck.status, stuck.tx_hash) == ("confirmed", attempt.tx_hash)


# --- reorgs


@pytest.mark.parametrize("token", ["ETH", "USDC"])
@pytest.mark.parametrize("confirmed", [False, True])
async def test_a_sweep_that_a_reorg_took_back_goes_out_again(swept: Swept, token: str, confirmed: bool) -> None:
    """The same bytes at the same nonce, also when it had its confirmations and had ended."""
    payment = await swept.confirmed(token, "1")
    if token == "USDC":
        for _ in range(8):
            if any(kind == "collect" for kind, *_ in await swept.story()):
                break
            await swept.turn()
        else:
            raise AssertionError("not collected")
    else:
        await swept.turn()
    blocks = 1
    if confirmed:
        while await swept.live():
            await swept.turn()
            blocks += 1
        assert (await swept.watch.get(payment)).status == "settled"
    await swept.round()
    signed = [each.raw for each in await swept.attempts()]
    await swept.watch.anvil.reorg(blocks)
    await swept.watch.scan()
    await swept.settle(payment)
    assert [each.raw for each in await swept.attempts()] == signed
    told = "created detected confirmed settled"
    assert await swept.watch.told(payment) == (f"{told} reverted settled" if confirmed else told)
    moved = await swept.treasury_holds(token)
    fees = [sweep.fee_units or 0 for sweep in await swept.watch.rows(Sweep, Sweep.kind == "native")]
    assert moved == int(payment.amount_units) - sum(fees)
    await swept.nothing_hangs()


async def test_a_sweep_waits_for_no_earlier_one_that_had_ended_when_a_reorg_took_it_back(swept: Swept) -> None:
    """Both are of one deposit address: the later nonce would have to wait for ever."""
    payment = await swept.confirmed("ETH", "1")
    await swept.settle(payment)
    [ended] = await swept.watch.rows(Sweep)
    more = await swept.watch.pay(payment, ETHER)
    raw = await swept.watch.raw(more)
    await swept.watch.mine_and_scan(3)
    await swept.turn()
    await swept.round()
    assert [(nonce, status) for _, status, nonce, _ in await swept.story()] == [(0, "confirmed"), (1, "mined")]
    await swept.watch.anvil.reorg(await swept.watch.anvil.block_number() - ended.block_number + 1)
    await swept.watch.anvil.rpc("eth_sendRawTransaction", raw)
    await swept.watch.mine_and_scan()
    await swept.settle(payment)
    assert all(row.swept for row in await swept.watch.rows(Transaction, Transaction.canonical))
    await swept.nothing_hangs()


@pytest.mark.parametrize("token", ["ETH", "USDC"])
async def test_a_reorg_of_a_sweep_that_had_ended_makes_up_no_money(
    open_swept: OpenSwept, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Its fee is on the address again where balances are looked at, and is nothing that a customer has sent."""
    monkeypatch.setattr(limits, "ROTATION_EVERY_S", 0.0)
    async with open_swept(mode="topup", native="{detect: balances}") as swept:
        payment = await swept.confirmed(token, "1")
        await swept.settle(payment)
        [sweep] = await swept.watch.rows(Sweep, Sweep.kind != "topup")
        await swept.watch.anvil.reorg(await swept.watch.anvil.block_number() - sweep.block_number + 1)
        await swept.watch.mine_and_scan()  # a round comes later
        await swept.settle(payment)
        seen = await swept.watch.get(payment)
        assert (seen.flags, len(seen.transactions)) == ([], 1)
        assert await swept.watch.told(payment) == "created detected confirmed settled reverted settled"
        assert (await reconcile_chain(swept.watch.context, swept.watch.chain)).differences == ()


# --- unknown truth


async def use_nonce(swept: Swept, account: str, *, to: str, value: int = 0) -> None:
    """A transaction that we know nothing of, with the account's key, in the next block instead of ours."""
    anvil = swept.watch.anvil
    await anvil.rpc("anvil_dropAllTransactions")
    await anvil.rpc("anvil_impersonateAccount", account)
    price = (await anvil.block())["baseFeePerGas"]  # little: what it costs is missing at the address
    call = {"from": account, "to": to, "value": hex(value), "gas": hex(21_000), "gasPrice": price}
    await anvil.rpc("eth_sendTransaction", call)
    await anvil.mine()
    await anvil.rpc("anvil_stopImpersonatingAccount", account)


async def test_a_nonce_that_somebody_else_used_freezes_the_sweep_until_an_operator_has_looked(
    swept: Swept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    payment = await swept.confirmed("ETH", "1")
    await swept.round()
    await use_nonce(swept, payment.address, to=payment.address)
    await swept.watch.scan()
    await swept.round()
    assert [status for _, status, *_ in await swept.story()] == ["signed"]  # it may be undone yet
    await swept.watch.mine_and_scan(3)
    await swept.round()
    [(_, status, nonce, error)] = await swept.story()
    assert (status, error) == ("frozen", f"nonce {nonce} was used by a transaction that is not ours")
    [sweep] = await swept.watch.rows(Sweep)
    assert await swept.waiting() == [f"in {sweep.id}"]
    wake_ups = WakeUps(connect("redis://127.0.0.1:9"))  # nobody is there, which is another check
    told = (await exposition(swept.watch.context, wake_ups)).decode()
    assert f'paywatch_sweeps_frozen{{chain="{swept.watch.chain.name}"}} 1.0' in told
    [check] = [each for each in (await health(swept.watch.context, wake_ups)).checks if "sweeps" in each.name]
    assert check.status == "degraded"
    assert sweep.id in check.detail
    async with swept.watch.context.db.read() as session:  # its money may yet arrive there
        assert await live_treasuries(session, swept.watch.chain.chain_id) == {bytes.fromhex(TREASURY[2:])}
    assert capsys.readouterr().out.count("sweep frozen") == 1
    monkeypatch.setattr(limits, "SWEEP_TELL_EVERY_S", 0)
    await swept.round()
    assert capsys.readouterr().out.count("sweep frozen") == 1  # and again
    await swept.watch.mine_and_scan(3)
    assert (await swept.watch.get(payment)).status == "confirmed"
    await release_sweep(swept.watch.context, sweep.id, "op")
    await swept.settle(payment)
    assert sorted(status for _, status, *_ in await swept.story()) == ["confirmed", "released"]
    before = await swept.watch.dump()
    await release_sweep(swept.watch.context, sweep.id, "op")  # again: nothing
    assert await swept.watch.dump() == before


async def test_a_database_from_before_the_sweep_sees_the_money_arrive_and_sends_it_no_second_time(
    swept: Swept,
) -> None:
    payment = await swept.confirmed("ETH", "1")
    await swept.round()
    async with swept.watch.context.db.write() as session:
        for model in (SweepItem, SweepAttempt, Sweep, NonceLane):
            await session.execute(delete(model))
    await swept.round()  # signs the same once more: it knows of nothing
    await swept.watch.mine_and_scan(3)
    for _ in range(6):
        await swept.turn()
    assert (await swept.watch.get(payment)).status == "settled"
    assert await swept.holds(payment, "ETH") == 0
    await swept.nothing_hangs()


async def test_the_gas_account_goes_on_behind_a_nonce_that_it_did_not_give_out(swept: Swept) -> None:
    await swept.round()
    await use_nonce(swept, swept.gas_account, to=swept.gas_account)
    payment = await swept.confirmed()
    await swept.settle(payment)
    assert [nonce for _, _, nonce, _ in await swept.story()] == [1, 2, 3]


async def test_a_nonce_that_was_left_out_is_filled(open_swept: OpenSwept) -> None:
    """What used it was undone by a reorg, and later ones wait for it. Under the ceiling, like everything else."""
    async with open_swept(max_fee_gwei=1) as swept:
        await a_nonce_is_filled(swept)
        assert max(each.max_fee_units for each in await swept.attempts()) <= GWEI


async def a_nonce_is_filled(swept: Swept) -> None:
    await swept.round()
    snapshot = await swept.watch.anvil.snapshot()
    await use_nonce(swept, swept.gas_account, to=swept.gas_account)
    payment = await swept.confirmed()
    await swept.round()
    assert [nonce for _, _, nonce, _ in await swept.story()] == [1]
    [attempt] = await swept.attempts()
    paid = [await swept.watch.raw((await swept.watch.get(payment)).transactions[0].tx_hash or "")]
    await swept.watch.anvil.revert(snapshot)
    await swept.watch.anvil.rpc("eth_sendRawTransaction", paid[0])
    await swept.watch.mine_and_scan(6)
    await swept.round()
    await age_attempts(swept)
    await swept.settle(payment)
    kinds = [(kind, nonce) for kind, _, nonce, _ in await swept.story()]
    assert ("fill", 0) in kinds
    assert attempt.tx_hash in {each.tx_hash for each in await swept.watch.rows(Sweep)}


async def test_what_a_node_refuses_for_good_is_given_up_and_planned_anew(swept: Swept, requests: Requests) -> None:
    payment = await swept.confirmed("ETH", "1")
    answered: list[bytes] = []

    async def refuse(methods: set[str], body: bytes) -> bytes:
        if "eth_sendRawTransaction" not in methods or len(answered) == 2:
            return body
        answered.append(body)
        await swept.watch.anvil.rpc("anvil_dropAllTransactions")
        error: dict[str, Any] = {"code": -32000, "message": "transaction type not supported"}
        return json.dumps({"jsonrpc": "2.0", "id": 0, "error": error}).encode()

    requests.on_answer = refuse
    await swept.round()
    await swept.round()
    requests.on_answer = None
    for _ in range(6):
        await swept.turn()
    [(kind, status, _, error)] = await swept.story()
    assert (kind, status) == ("native", "failed")
    assert "transaction type not supported" in (error or "")
    await swept.nothing_hangs()
    await age_failures(swept)
    await swept.settle(payment)
    cancelled, native = await swept.watch.rows(Sweep)
    fees = (cancelled.fee_units or 0) + (native.fee_units or 0)
    assert await swept.treasury_holds("ETH") == ETHER - fees
    assert checksum(native.account) == payment.address


@pytest.mark.parametrize("when", ["before-the-money-moves", "after-it-has-moved"])
async def test_a_fee_paid_in_vain_counts_in_whichever_block_a_reorg_has_put_it(
    swept: Swept, requests: Requests, when: str
) -> None:
    """Nodes mostly mine the same transactions again. Else the payment would wait for ever for that fee to come back."""
    watch = swept.watch
    payment = await swept.confirmed("ETH", "1")
    requests.on_answer = refuse_all(swept, "transaction type not supported")
    for _ in range(2):
        await swept.round()
    requests.on_answer = None
    for _ in range(6):
        await swept.turn()
    await age_failures(swept)
    if when == "after-it-has-moved":
        await swept.settle(payment)
    mined = await watch.rows(Sweep, Sweep.block_number.is_not(None))
    first = min(sweep.block_number or 0 for sweep in mined)
    again = [(await raw_of(swept, sweep), (sweep.block_number or 0) - first + 1) for sweep in mined]
    depth = await watch.anvil.block_number() - first + 1
    await watch.anvil.mine(2)
    await watch.anvil.reorg(depth + 2, again)
    await watch.mine_and_scan(3)
    await swept.round()
    await age_failures(swept)
    await swept.settle(payment)
    assert [status for _, status, *_ in await swept.story()] == ["failed", "confirmed"]
    for sweep in await watch.rows(Sweep):
        assert (await watch.anvil.block(sweep.block_number or 0))["hash"] == hex0x(sweep.block_hash or b"")
    assert (await reconcile_chain(watch.context, watch.chain)).differences == ()


async def raw_of(swept: Swept, sweep: Sweep) -> str:
    [raw] = [attempt.raw for attempt in await swept.attempts() if attempt.tx_hash == sweep.tx_hash]
    return hex0x(raw)


def refuse_all(swept: Swept, words: str) -> Callable[[set[str], bytes], Awaitable[bytes]]:
    """Every broadcast is refused in these words, and no pool has it."""

    async def refuse(methods: set[str], body: bytes) -> bytes:
        if "eth_sendRawTransaction" not in methods:
            return body
        await swept.watch.anvil.rpc("anvil_dropAllTransactions")
        error: dict[str, Any] = {"code": -32000, "message": words}
        return json.dumps({"jsonrpc": "2.0", "id": 0, "error": error}).encode()

    return refuse


async def test_a_node_that_refuses_all_has_one_attempt_and_one_cancellation_under_the_ceiling(
    open_swept: OpenSwept, requests: Requests, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_swept(max_fee_gwei=3) as swept:
        payment = await swept.confirmed("ETH", "1")
        requests.on_answer = refuse_all(swept, "transaction type not supported")
        for _ in range(20):
            await swept.round()
        first, last = await swept.attempts()
        assert (first.cancels, last.cancels) == (False, True)
        assert max(first.max_fee_units, last.max_fee_units) <= 3 * GWEI
        assert capsys.readouterr().out.count("giving it up as well") == 1
        requests.on_answer = None
        for _ in range(6):
            await swept.turn()
        await age_failures(swept)
        await swept.settle(payment)
        await swept.nothing_hangs()


async def test_what_was_taken_once_and_refused_later_is_replaced_when_it_is_stuck(
    swept: Swept, requests: Requests
) -> None:
    payment = await swept.confirmed("ETH", "1")
    await swept.round()
    requests.on_answer = refuse_all(swept, "transaction type not supported")
    await age_attempts(swept, broadcast=True)
    await swept.round()
    assert [each.cancels for each in await swept.attempts()] == [False, False]
    requests.on_answer = None
    await swept.settle(payment)
    await swept.nothing_hangs()


async def test_a_gas_account_that_cannot_pay_waits_and_signs_nothing_dearer(swept: Swept, requests: Requests) -> None:
    payment = await swept.confirmed()
    requests.on_answer = refuse_all(swept, "insufficient funds for gas * price + value")
    for _ in range(3):
        await swept.round()
        await age_attempts(swept)
    assert len(await swept.attempts()) == 1
    requests.on_answer = None
    await swept.settle(payment)
    await swept.nothing_hangs()


async def test_a_stuck_transfer_is_topped_up_for_its_higher_price(open_swept: OpenSwept) -> None:
    async with open_swept(mode="topup") as swept:
        payment = await swept.confirmed()
        await swept.turn()  # the top-up is mined
        await swept.round()
        await base_fee(swept.watch.anvil, 100)
        await swept.watch.scan()
        await age_attempts(swept)
        await swept.settle(payment)
        assert [kind for kind, *_ in await swept.story()] == ["topup", "transfer", "topup"]
        assert await swept.treasury_holds("USDC") == 25_000_000
        await swept.nothing_hangs()


async def data_fee(anvil: Anvil, wei: int) -> None:
    """What the OP stack's oracle answers, whatever it is asked; Anvil does not charge it."""
    oracle = "0x420000000000000000000000000000000000000f"
    await anvil.rpc("anvil_setCode", oracle, f"0x67{wei:016x}60005260206000f3")


async def test_a_stuck_transfer_is_topped_up_for_the_data_fee_of_an_l2_as_well(open_swept: OpenSwept) -> None:
    async with open_swept(mode="topup") as swept:
        fee_wei = ETHER // 20
        await data_fee(swept.watch.anvil, fee_wei)
        payment = await swept.confirmed()
        await swept.turn()  # the top-up is mined
        await swept.round()
        [_, former] = await swept.attempts()
        await base_fee(swept.watch.anvil, 100)
        await swept.watch.scan()
        await age_attempts(swept)
        for _ in range(ROUNDS_MAX):
            await swept.round()
            *_, last = [each for each in await swept.attempts() if each.sweep_id == former.sweep_id]
            if last.raw != former.raw:
                break
            await swept.watch.mine_and_scan()
        else:
            raise AssertionError("not replaced")
        assert await swept.holds(payment, "ETH") >= last.gas_limit * last.max_fee_units + fee_wei
        await swept.settle(payment)


async def test_stuck_native_coin_leaves_what_the_data_fee_of_an_l2_has_become(swept: Swept) -> None:
    """Signed before an outage, say, after which Ethereum is dear: kept back is what it takes now."""
    await data_fee(swept.watch.anvil, ETHER // 1000)
    payment = await swept.confirmed("ETH", "1")
    await swept.round()
    await data_fee(swept.watch.anvil, ETHER // 100)
    await age_attempts(swept)
    await swept.round()
    _, last = await swept.attempts()
    assert last.value_units + last.gas_limit * last.max_fee_units + ETHER // 100 <= ETHER
    await data_fee(swept.watch.anvil, 0)
    await swept.settle(payment)


async def test_a_customers_ether_pays_for_no_gas(open_swept: OpenSwept) -> None:
    """It waits for min_amount, and a token at its address goes by gas of our own meanwhile."""
    async with open_swept(min_amount='{ETH: "2"}') as swept:
        payment = await swept.confirmed("ETH", "1")
        await swept.watch.pay(payment, 7_000_000, token="USDC")
        await swept.watch.mine_and_scan(3)
        for _ in range(8):
            await swept.turn()
        assert await swept.treasury_holds("USDC") == 7_000_000
        assert sorted(kind for kind, *_ in await swept.story()) == ["topup", "transfer"]
        assert await swept.holds(payment, "ETH") >= ETHER
        assert await swept.waiting() == ["less than min_amount 2 ETH"]


@pytest.mark.parametrize("late", [False, True])
async def test_a_plan_that_was_overtaken_is_dropped(swept: Swept, late: bool) -> None:
    """Another sweeper signed meanwhile what it wants to sign, or has even seen it confirmed (`late`)."""
    payment = await swept.confirmed("ETH", "1")
    async with asking(swept.sweeper, swept.watch.chain) as round_:
        plan, _ = await make_plan(round_)
        if late:
            await swept.settle(payment)
            round_ = replace(round_, began_at=utc_now())  # and nothing ended since: the nonce alone tells
        else:
            await swept.round()
        assert [await sign_and_send(round_, job) for job in plan.jobs] == [None]
    assert len(await swept.attempts()) == 1

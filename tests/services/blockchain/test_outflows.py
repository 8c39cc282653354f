"""Goal: money that reached the treasury settles its payment, whoever sent it, as long as the chain shows it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.blockchain.wallet import AddressDeriver, account_xpub
from app.core import limits
from app.core.clock import utc_now
from app.core.evm import NATIVE_ASSET
from app.core.ids import new_id
from app.db.models import Event, NonceLane, Outflow, Sweep, SweepItem, Transaction
from app.services.blockchain.backup import rescan_blocks
from app.services.blockchain.reconcile import reconcile_chain
from app.services.views import PaymentView
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.killer import kill_at_every_point
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.sweeping import OpenSwept
from tests.services.blockchain.watch import CONFIRMATIONS, Watch
from tests.support.anvil import Anvil, encode_call
from tests.support.node import Call, ProxyNode

ETHER = 10**18
TREASURY = "0x" + "7e" * 20
SWEPT = f'{{mode: auto, treasury: "{TREASURY}"}}'
GAS_PRICE = 2 * 10**9


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deposit addresses that hold nothing: those of Anvil's own words are its rich accounts."""
    other = AddressDeriver(account_xpub("legal winner thank year wave sausage worth useful legal winner thank yellow"))
    monkeypatch.setattr("tests.services.blockchain.watch.deriver", lambda: other)


@pytest.fixture
async def swept(opened: OpenWatch) -> AsyncIterator[Watch]:
    async with opened(sweep=SWEPT) as watch:
        yield watch
        await watch.audit(against_node=False)


# --- what a sweeper, or anybody who has the keys, would send


async def send(anvil: Anvil, sender: str, to: str, *, value: int = 0, data: str = "0x", gas: int = 100_000) -> str:
    """A transaction of a deposit address; not mined here. Its fee is exactly gas used times GAS_PRICE."""
    await anvil.rpc("anvil_impersonateAccount", sender)
    transaction = {"from": sender, "to": to, "value": hex(value), "data": data, "gas": hex(gas)}
    tx_hash: str = await anvil.rpc("eth_sendTransaction", transaction | {"gasPrice": hex(GAS_PRICE)})
    return tx_hash


async def sweep_token(watch: Watch, payment: PaymentView, units: int, *, token: str = "USDC") -> str:
    """Move tokens to the treasury, with gas from nowhere."""
    await watch.anvil.set_balance(payment.address, ETHER)
    data = encode_call("transfer(address,uint256)", TREASURY, units)
    return await send(watch.anvil, payment.address, watch.tokens[token], data=data, gas=200_000)


async def sweep_ether(watch: Watch, payment: PaymentView, *, leaving: int = 0) -> str:
    """Move the whole balance to the treasury, but for the fee and what is left behind."""
    value = await watch.anvil.balance(payment.address) - 21_000 * GAS_PRICE - leaving
    return await send(watch.anvil, payment.address, TREASURY, value=value, gas=21_000)


async def confirmed(watch: Watch, token: str = "USDC", amount: str = "25", **changed: Any) -> PaymentView:
    payment = await watch.create(token, amount, **changed)
    await watch.pay(payment)
    await watch.mine_and_scan(CONFIRMATIONS)
    assert (await watch.get(payment)).status == "confirmed"
    return payment


async def sweep(watch: Watch, payment: PaymentView) -> str:
    units = int(payment.amount_units)
    return await (sweep_ether(watch, payment) if payment.token == "ETH" else sweep_token(watch, payment, units))


# --- what settles


@pytest.mark.parametrize(("token", "amount"), [("USDC", "25"), ("ETH", "1")])
async def test_money_at_the_treasury_settles_once_it_has_its_confirmations(
    swept: Watch, token: str, amount: str
) -> None:
    payment = await confirmed(swept, token, amount)
    tx_hash = await sweep(swept, payment)
    for confirmations in range(1, CONFIRMATIONS + 1):
        assert (await swept.get(payment)).status == "confirmed"
        await swept.mine_and_scan()
        [shown] = (await swept.get(payment)).sweeps
        assert (shown.tx_hash, shown.status, shown.confirmations) == (tx_hash, "canonical", confirmations)
    seen = await swept.get(payment)
    assert (seen.status, seen.flags) == ("settled", [])
    assert seen.settled_at is not None
    assert await swept.told(payment) == "created detected confirmed settled"

    arrived = await treasury_holds(swept, token)
    fee = 21_000 * GAS_PRICE if token == "ETH" else int(shown.fee_units)
    assert (shown.amount_units, shown.fee_units) == (str(arrived), str(fee))
    [row] = await swept.rows(Outflow)
    assert row.covers_units == int(payment.amount_units)
    assert [each.swept for each in await swept.rows(Transaction)] == [True]
    [event] = await swept.rows(Event, Event.type == "payment.settled")
    assert [(each["tx_hash"], each["sweep_id"]) for each in event.data["sweeps"]] == [(tx_hash, None)]


async def test_the_fee_is_known_where_receipts_tell_no_price(swept: Watch, requests: Requests) -> None:
    """Nodes from before London have the price in the transaction alone."""

    async def without_price(_methods: set[str], body: bytes) -> bytes:
        return body.replace(b'"effectiveGasPrice"', b'"somethingElse"')

    requests.on_answer = without_price
    payment = await confirmed(swept, "ETH", "1")
    await sweep(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    [row] = await swept.rows(Outflow)
    assert row.fee_units == 21_000 * GAS_PRICE
    assert (await swept.get(payment)).status == "settled"


async def test_a_settled_payment_names_the_sweep_that_took_its_money(open_swept: OpenSwept) -> None:
    async with open_swept() as swept:
        payments = [await swept.confirmed("ETH", "1") for _ in range(2)]
        await swept.settle(*payments)
        sweeps = {item.payment_id: item.sweep_id for item in await swept.watch.rows(SweepItem)}
        events = await swept.watch.rows(Event, Event.type == "payment.settled")
        told = {event.payment_id: [each["sweep_id"] for each in event.data["sweeps"]] for event in events}
        assert told == {payment.id: [sweeps[payment.id]] for payment in payments}
        shown = [(await swept.watch.get(payment)).sweeps[0].sweep_id for payment in payments]
        assert shown == [sweeps[payment.id] for payment in payments]


async def treasury_holds(watch: Watch, token: str) -> int:
    if token == "ETH":
        return await watch.anvil.balance(TREASURY)
    units: int = await watch.anvil.call(watch.tokens[token], "balanceOf(address)", TREASURY, returns="uint256")
    return units


async def test_a_part_of_the_money_settles_nothing_and_the_rest_does(swept: Watch) -> None:
    payment = await confirmed(swept)
    await sweep_token(swept, payment, 10_000_000)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert (await swept.get(payment)).status == "confirmed"
    assert [each.swept for each in await swept.rows(Transaction)] == [False]
    await sweep_token(swept, payment, 15_000_000)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert await swept.told(payment) == "created detected confirmed settled"
    assert [each.swept for each in await swept.rows(Transaction)] == [True]


async def test_what_arrives_between_signature_and_block_is_not_taken_for_swept(swept: Watch) -> None:
    payment = await confirmed(swept)
    await swept.pay(payment, 7_000_000)
    await swept.anvil.mine()
    await sweep_token(swept, payment, 25_000_000)
    await swept.mine_and_scan(CONFIRMATIONS)
    rows = await swept.rows(Transaction)
    assert {row.amount_units: row.swept for row in rows} == {25_000_000: True, 7_000_000: False}


async def test_ether_that_nobody_saw_arrive_stands_for_no_later_ether(swept: Watch) -> None:
    """A sweep took more than was recorded; the surplus neither hides nor settles what comes after it."""
    payment = await swept.create("ETH", "2")
    forwarder = await swept.anvil.deploy("Forwarder")
    await swept.anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)  # not seen by `blocks`
    await swept.pay(payment, ETHER)
    await swept.mine_and_scan()
    await swept.expire_at(payment, 60 * 60)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert (await swept.get(payment)).status == "expired"
    await sweep_ether(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    [row] = await swept.rows(Outflow)
    assert row.covers_units == 2 * ETHER
    assert [each.swept for each in await swept.rows(Transaction)] == [True]

    await swept.pay(payment, ETHER)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert [each.swept for each in await swept.rows(Transaction)] == [True, False]
    assert (await swept.get(payment)).status == "confirmed"
    await sweep_ether(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert [each.swept for each in await swept.rows(Transaction)] == [True, True]
    assert (await swept.get(payment)).status == "settled"


@pytest.mark.parametrize(("left", "settles"), [(21_000 * GAS_PRICE, True), (21_000 * GAS_PRICE + 1, False)])
async def test_ether_that_would_not_pay_for_another_transfer_is_dust(swept: Watch, left: int, settles: bool) -> None:
    payment = await confirmed(swept, "ETH", "1")
    await sweep_ether(swept, payment, leaving=left)
    await swept.mine_and_scan(CONFIRMATIONS)
    [row] = await swept.rows(Outflow)
    assert row.amount_units + row.fee_units + left == ETHER
    assert row.covers_units == (ETHER if settles else ETHER - left)
    assert (await swept.get(payment)).status == ("settled" if settles else "confirmed")
    assert [each.swept for each in await swept.rows(Transaction)] == [settles]


async def test_ether_settles_although_another_assets_sweep_burned_some_of_it(swept: Watch) -> None:
    payment = await confirmed(swept, "ETH", "1")
    await swept.pay(payment, 5_000_000, token="USDC")
    await swept.mine_and_scan(CONFIRMATIONS)
    data = encode_call("transfer(address,uint256)", TREASURY, 5_000_000)
    await send(swept.anvil, payment.address, swept.tokens["USDC"], data=data)
    await swept.mine_and_scan()
    await sweep_ether(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    seen = await swept.get(payment)
    assert (seen.status, seen.flags) == ("settled", ["wrong_asset"])
    assert [each.token for each in seen.sweeps] == ["USDC", "ETH"]
    assert int(seen.sweeps[0].fee_units) > 0
    assert all(each.swept for each in await swept.rows(Transaction))
    assert (await reconcile_chain(swept.context, swept.chain)).differences == ()


async def test_a_token_that_keeps_a_fee_settles_by_what_left_the_address(opened: OpenWatch, anvil: Anvil) -> None:
    token = await anvil.deploy("FeeToken", "Fee", "FEE", 6)
    async with opened(tokens={"FEE": token}, sweep=SWEPT) as watch:
        payment = await confirmed(watch, "FEE")
        await sweep_token(watch, payment, 25_000_000, token="FEE")
        await watch.mine_and_scan(CONFIRMATIONS)
        seen = await watch.get(payment)
        assert (seen.status, seen.sweeps[0].amount) == ("settled", "24.75")
        assert [each.swept for each in await watch.rows(Transaction)] == [True]


async def test_a_collector_that_moves_many_addresses_settles_each_of_them(swept: Watch) -> None:
    """The tokens go by `transferFrom` of somebody else, who pays: no fee is the addresses' own."""
    payments = [await confirmed(swept) for _ in range(3)]
    spender = swept.anvil.accounts[4]
    for payment in payments:
        await swept.anvil.set_balance(payment.address, ETHER)
        approval = encode_call("approve(address,uint256)", spender, 2**255)
        await send(swept.anvil, payment.address, swept.tokens["USDC"], data=approval)
        await swept.anvil.mine()
        await swept.anvil.transact(
            swept.tokens["USDC"],
            "transferFrom(address,address,uint256)",
            payment.address,
            TREASURY,
            25_000_000,
            sender_index=4,
        )
    await swept.mine_and_scan(CONFIRMATIONS)
    for payment in payments:
        seen = await swept.get(payment)
        assert (seen.status, [each.fee_units for each in seen.sweeps]) == ("settled", ["0"])


# --- what does not


async def test_transfers_that_failed_and_those_of_strangers_settle_nothing(swept: Watch) -> None:
    payment = await confirmed(swept)
    await sweep_token(swept, payment, 26_000_000)  # more than is there: reverts
    await swept.pay(payment.model_copy(update={"address": TREASURY}))
    await swept.mine_and_scan(CONFIRMATIONS)
    assert await treasury_holds(swept, "USDC") == 25_000_000
    assert await swept.rows(Outflow) == []
    assert (await swept.get(payment)).status == "confirmed"


async def test_ether_of_a_transaction_that_failed_settles_nothing(opened: OpenWatch, anvil: Anvil) -> None:
    await anvil.rpc("anvil_setCode", TREASURY, "0x60006000fd")  # refuses everything
    async with opened(sweep=SWEPT) as watch:
        payment = await confirmed(watch, "ETH", "1")
        tx_hash = await send(anvil, payment.address, TREASURY, value=ETHER // 2)
        await watch.mine_and_scan(CONFIRMATIONS)
        receipt = await anvil.receipt(tx_hash)
        assert receipt is not None
        assert receipt["status"] == "0x0"
        assert await watch.rows(Outflow) == []


async def test_another_asset_at_the_treasury_is_recorded_and_settles_nothing(swept: Watch) -> None:
    payment = await confirmed(swept)
    await swept.pay(payment, ETHER, token="ETH")
    await swept.mine_and_scan(CONFIRMATIONS)
    await sweep_ether(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    seen = await swept.get(payment)
    assert (seen.status, seen.flags) == ("confirmed", ["wrong_asset"])
    assert [each.token for each in seen.sweeps] == ["ETH"]
    assert {row.asset == NATIVE_ASSET: row.swept for row in await swept.rows(Transaction)} == {True: True, False: False}
    await sweep_token(swept, payment, 25_000_000)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert (await swept.get(payment)).status == "settled"


async def test_an_outflow_that_one_node_makes_up_settles_nothing(opened: OpenWatch, anvil: Anvil) -> None:
    """The liar shows a stranger's transfer to the treasury as one of the deposit address."""
    address = ""

    def lying(call: Call, answer: Call) -> Call:
        if call["method"] == "eth_getLogs" and address:
            for entry in answer["result"]:
                if entry["topics"][2].endswith(TREASURY[2:]):
                    entry["topics"][1] = "0x" + address[2:].lower().rjust(64, "0")
        return answer

    async with ProxyNode(anvil.url, lying) as liar, opened(rpc_urls=[liar.url, anvil.url], sweep=SWEPT) as watch:
        payment = await confirmed(watch)
        address = payment.address
        await watch.pay(payment.model_copy(update={"address": TREASURY}))
        await watch.mine_and_scan(CONFIRMATIONS)
        [row] = await watch.rows(Outflow)
        assert (row.sender.hex(), row.verified) == (address[2:].lower(), False)
        await watch.pay(payment, 1)  # has it decided again
        await watch.mine_and_scan()
        assert await watch.told(payment) == "created detected confirmed overpaid"


async def test_outflows_that_no_receipt_proves_hold_up_no_later_settlement(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second endpoint has no receipts of the first ones, ever."""
    monkeypatch.setattr(limits, "VERIFY_TRANSFERS", 2)
    unknown: set[str] = set()

    def forgets(call: Call, answer: Call) -> Call:
        hidden = call["method"] == "eth_getTransactionReceipt" and call["params"][0] in unknown
        return answer | {"result": None} if hidden else answer

    async with ProxyNode(anvil.url, forgets) as second, opened(rpc_urls=[anvil.url, second.url], sweep=SWEPT) as watch:
        payments = [await confirmed(watch) for _ in range(5)]
        for payment in payments[:4]:
            unknown.add(await sweep_token(watch, payment, 25_000_000))
        await watch.mine_and_scan(CONFIRMATIONS)
        await sweep_token(watch, payments[4], 25_000_000)
        await watch.mine_and_scan(CONFIRMATIONS)
        for _ in range(3):  # five wait for a second look, and a step takes two
            await watch.step()
        statuses = [(await watch.get(payment)).status for payment in payments]
        assert statuses == ["confirmed"] * 4 + ["settled"]


# --- what comes back


@pytest.mark.parametrize(("token", "amount"), [("USDC", "25"), ("ETH", "1")])
async def test_a_reorg_of_the_sweep_falls_back_is_told_and_settles_again(swept: Watch, token: str, amount: str) -> None:
    payment = await confirmed(swept, token, amount)
    await sweep(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert (await swept.get(payment)).status == "settled"
    await swept.anvil.reorg(CONFIRMATIONS)
    await swept.scan()
    seen = await swept.get(payment)
    assert (seen.status, seen.settled_at) == ("confirmed", None)
    assert [(each.status, each.confirmations) for each in seen.sweeps] == [("orphaned", 0)]
    assert [each.swept for each in await swept.rows(Transaction)] == [False]

    await sweep(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    seen = await swept.get(payment)
    assert (seen.status, sorted(each.status for each in seen.sweeps)) == ("settled", ["canonical", "orphaned"])
    assert await swept.told(payment) == "created detected confirmed settled reverted settled"
    assert [each.swept for each in await swept.rows(Transaction)] == [True]


async def test_a_reorg_of_payment_and_sweep_takes_both_back(swept: Watch) -> None:
    payment = await confirmed(swept, confirmations_required=CONFIRMATIONS)
    await sweep(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    await swept.anvil.reorg(CONFIRMATIONS * 2)
    await swept.scan()
    seen = await swept.get(payment)
    assert (seen.status, seen.flags) == ("pending", ["reorged"])
    await swept.pay(payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    assert (await swept.get(payment)).status == "confirmed"


@pytest.mark.parametrize("undone", [False, True], ids=["settling", "undoing"])
async def test_a_step_that_sees_a_sweep_may_be_killed_anywhere(swept: Watch, requests: Requests, undone: bool) -> None:
    payments = [await swept.create(token, confirmations_required=1) for token in ("USDC", "ETH")]
    for payment in payments:
        await swept.pay(payment)
    await swept.mine_and_scan()
    for payment in payments:
        await sweep(swept, payment)
    await swept.anvil.mine()
    if undone:
        await swept.scan()
        await swept.anvil.reorg(1)
    assert await kill_at_every_point(swept, requests) > 20
    await swept.scan()
    told = "created detected confirmed settled" + (" reverted" if undone else "")
    for payment in payments:
        assert await swept.told(payment) == told
    assert [row.canonical for row in await swept.rows(Outflow)] == [not undone] * 2
    assert [row.swept for row in await swept.rows(Transaction)] == [not undone] * 2


async def test_two_steps_side_by_side_record_an_outflow_once(swept: Watch, opened: OpenWatch) -> None:
    payment = await confirmed(swept)
    await sweep(swept, payment)
    await swept.anvil.mine(CONFIRMATIONS)
    async with opened(sweep=SWEPT) as twin:
        await asyncio.gather(swept.step(), twin.step(), swept.step(), twin.step())
        await asyncio.gather(swept.scan(), twin.scan())
    assert await swept.told(payment) == "created detected confirmed settled"
    assert len(await swept.rows(Outflow)) == 1


async def test_a_missed_outflow_is_found_by_a_rescan_and_counts_once(swept: Watch) -> None:
    payment = await confirmed(swept)
    await sweep(swept, payment)
    await swept.mine_and_scan(CONFIRMATIONS)
    before = await swept.dump()
    async with swept.context.db.write() as session:
        for row in await swept.rows(Outflow):
            await session.delete(row)
    first = (await swept.state()).first_block + 1
    for found in (1, 0):
        outcomes = [outcome async for outcome in rescan_blocks(swept.context, swept.chain, first, None)]
        assert sum(outcome.found for outcome in outcomes) == found
    await swept.scan()
    assert (await swept.get(payment)).status == "settled"
    after = await swept.dump()
    for name in ("events", "payments", "transactions"):
        assert after[name] == before[name]


async def test_a_payment_that_finality_settled_stays_so_when_sweeping_is_switched_on(opened: OpenWatch) -> None:
    async with opened(finality={"depth": 2}) as watch:
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(6)
        assert (await watch.get(payment)).status == "settled"
    async with opened(finality={"depth": 2}, sweep=SWEPT) as watch:
        await watch.pay(payment, 1_000_000)
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "settled"
        assert await watch.told(payment) == "created detected confirmed settled overpaid"
        # Nor is it undone by what becomes of money at the treasury: of another asset, or a part of its own.
        await watch.pay(payment, ETHER, token="ETH")
        await watch.mine_and_scan()
        await sweep_ether(watch, payment)
        await watch.mine_and_scan()
        await sweep_token(watch, payment, 5_000_000)
        await watch.mine_and_scan()
        await watch.anvil.reorg(1)
        await watch.scan()
        assert len(await watch.rows(Outflow)) == 2
        assert (await watch.get(payment)).status == "settled"
        assert await watch.told(payment) == "created detected confirmed settled overpaid overpaid"


# --- our own money


async def own_account(watch: Watch, index: int) -> bytes:
    account = bytes.fromhex(watch.anvil.accounts[index][2:])
    async with watch.context.db.write() as session:
        session.add(NonceLane(chain_id=watch.chain.chain_id, account=account, is_deposit=False, next_nonce=0))
    return account


async def signed_topup(watch: Watch, account: bytes, payment: PaymentView, units: int) -> None:
    """What the sweeper stores before it broadcasts a top-up."""
    sweep_id = new_id("swp")
    nonce = len(await watch.rows(Sweep))
    async with watch.context.db.write() as session:
        session.add(
            Sweep(
                id=sweep_id,
                chain_id=watch.chain.chain_id,
                kind="topup",
                asset=NATIVE_ASSET,
                account=account,
                nonce=nonce,
                status="signed",
                created_at=utc_now(),
            )
        )
        await session.flush()
        session.add(
            SweepItem(
                sweep_id=sweep_id,
                payment_id=payment.id,
                chain_id=watch.chain.chain_id,
                address=bytes.fromhex(payment.address[2:]),
                asset=NATIVE_ASSET,
                amount_units=units,
                live=True,
            )
        )


@pytest.mark.parametrize("detect", ["blocks", "trace", "balances"])
async def test_a_top_up_is_no_payment_and_its_rest_no_surplus(opened: OpenWatch, detect: str) -> None:
    async with opened(sweep=SWEPT, native=f"{{detect: {detect}}}") as watch:
        account = await own_account(watch, 5)
        payment, native = await confirmed(watch), await watch.create("ETH", "0.001")
        for each in (payment, native):
            await signed_topup(watch, account, each, ETHER // 1000)
            await watch.anvil.send_ether(5, each.address, ETHER // 1000)
            await watch.mine_and_scan()
        data = encode_call("transfer(address,uint256)", TREASURY, 25_000_000)
        await send(watch.anvil, payment.address, watch.tokens["USDC"], data=data)
        await watch.mine_and_scan(CONFIRMATIONS)
        assert (await watch.get(native)).status == "pending"
        seen = await watch.get(payment)
        assert (seen.status, seen.flags, len(seen.transactions)) == ("settled", [], 1)
        if detect == "balances":  # a customer's own is still told from it, to the wei
            forwarder = await watch.anvil.deploy("Forwarder")
            await watch.anvil.transact(forwarder, "pay(address)", native.address, value=ETHER // 1000)
            await watch.mine_and_scan(CONFIRMATIONS)
            seen = await watch.get(native)
            assert (seen.status, seen.amount_received) == ("confirmed", "0.001")


async def test_hidden_ether_after_a_sweep_is_found_to_the_wei(opened: OpenWatch) -> None:
    """What the address holds is compared with what was received less what left it and what that cost."""
    async with opened(sweep=SWEPT, native="{detect: balances}") as watch:
        payment = await watch.create("ETH", "2")
        await watch.pay(payment, ETHER)
        await watch.mine_and_scan(CONFIRMATIONS)
        await sweep_ether(watch, payment, leaving=5)
        await watch.mine_and_scan(CONFIRMATIONS)
        forwarder = await watch.anvil.deploy("Forwarder")
        await watch.anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
        await watch.mine_and_scan(CONFIRMATIONS)
        seen = await watch.get(payment)
        assert (seen.status, seen.amount_received_units) == ("confirmed", str(2 * ETHER))
        [hidden] = await watch.rows(Transaction, Transaction.position != "tx")
        assert hidden.amount_units == ETHER
        assert (await reconcile_chain(watch.context, watch.chain)).differences == ()

"""Goal: ether that no top-level transfer shows is found, once, by traces or by balances, and where it went."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.blockchain.balances import _BALANCES_CODE
from app.blockchain.wallet import AddressDeriver, account_xpub
from app.core import limits
from app.db.models import ChainState, Transaction
from app.services.blockchain.backup import backup_pass, rescan_blocks
from app.services.views import PaymentView
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.watch import CONFIRMATIONS, Watch
from tests.support.anvil import Anvil, encode_call
from tests.support.node import Call, ProxyNode, failure, result

ETHER = 10**18
MISSING = (-32601, "the method does not exist/is not available")
TRACING = ("debug_traceBlockByHash", "trace_block")


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deposit addresses that hold nothing: those of Anvil's own words are its rich accounts."""
    other = AddressDeriver(account_xpub("legal winner thank year wave sausage worth useful legal winner thank yellow"))
    monkeypatch.setattr("tests.services.blockchain.watch.deriver", lambda: other)


@pytest.fixture
async def forwarder(anvil: Anvil) -> str:
    return await anvil.deploy("Forwarder")


def without(*methods: str) -> Callable[[Call, Call], Call]:
    """A change for `ProxyNode`: a node that does not have these."""
    return lambda call, answer: failure(call, *MISSING) if call["method"] in methods else answer


def native(mode: str) -> dict[str, Any]:
    return {"native": f"{{detect: {mode}}}"}


@pytest.fixture(params=["debug_traceBlockByHash", "trace_block", "balances", "balances only"])
async def detecting(request: pytest.FixtureRequest, opened: OpenWatch, anvil: Anvil) -> AsyncIterator[Watch]:
    """A watch that detects in one of four ways; `balances only` is a node that traces nothing."""
    how = request.param
    lacking = [method for method in TRACING if method != how] if how != "balances" else []
    mode = "balances" if how.startswith("balances") else "trace"
    async with ProxyNode(anvil.url, without(*lacking)) as node, opened(rpc_urls=[node.url], **native(mode)) as watch:
        yield watch


async def amounts(watch: Watch, payment: PaymentView) -> int:
    return int((await watch.get(payment)).amount_received_units)


async def wrapper(anvil: Anvil, target: str, prelude: str = "") -> str:
    """A contract that hands its call on to `target`, and does not mind when that fails."""
    address = "0x" + "c0de" * 10
    code = prelude + "36600060003760006000366000347373".replace("7373", "73") + target[2:].lower() + "5af1"
    await anvil.rpc("anvil_setCode", address, "0x" + code)
    return address


# --- every way in, every way of finding it


async def test_ether_from_a_contract_is_found(detecting: Watch, forwarder: str) -> None:
    payment = await detecting.create("ETH", "1")
    tx_hash = await detecting.anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
    await detecting.mine_and_scan()
    seen = await detecting.get(payment)
    assert (seen.status, seen.amount_received) == ("detected", "1")
    await detecting.mine_and_scan(CONFIRMATIONS)
    assert await detecting.told(payment) == "created detected confirmed"
    [row] = await detecting.rows(Transaction)
    if row.position == "balance":
        assert (row.tx_hash, row.sender, row.tx_index) == (None, None, -1)
    else:
        assert row.position.startswith("trace:")
        assert "0x" + row.tx_hash.hex() == tx_hash
        assert "0x" + row.sender.hex() == forwarder.lower()
    await detecting.audit(against_node=False)


async def test_the_transaction_is_named_wherever_the_node_traces(
    detecting: Watch, forwarder: str, request: pytest.FixtureRequest
) -> None:
    payment = await detecting.create("ETH", "1")
    await detecting.anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
    await detecting.anvil.mine(5)  # the money did not come with the last block of the step
    await detecting.scan()
    [row] = await detecting.rows(Transaction)
    only = "balances only" in request.node.name
    assert (row.position == "balance", row.tx_hash is None) == (only, only)
    assert row.block_number == await detecting.anvil.block_number() - 4


async def test_a_batch_pays_several_payments_and_one_of_them_twice(detecting: Watch, forwarder: str) -> None:
    payments = [await detecting.create("ETH", str(number)) for number in (1, 2, 3)]
    to = [payment.address for payment in payments] + [payments[0].address]
    values = [ETHER // 2, 2 * ETHER, 3 * ETHER, ETHER // 2]
    await detecting.anvil.transact(forwarder, "batchEther(address[],uint256[])", to, values, value=sum(values))
    await detecting.mine_and_scan(CONFIRMATIONS)
    for payment in payments:
        assert await detecting.told(payment) == "created detected confirmed"
        assert str(await amounts(detecting, payment)) == payment.amount_units


async def test_ether_of_a_self_destruct_is_found(detecting: Watch, forwarder: str) -> None:
    payment = await detecting.create("ETH", "1")
    await detecting.anvil.transact(forwarder, "payBySelfdestruct(address)", payment.address, value=ETHER)
    await detecting.mine_and_scan(CONFIRMATIONS)
    assert await detecting.told(payment) == "created detected confirmed"
    assert await amounts(detecting, payment) == ETHER


async def test_a_top_level_transfer_is_not_counted_twice_nor_value_with_calldata(
    detecting: Watch, forwarder: str
) -> None:
    plain, data, both = [await detecting.create("ETH", "1") for _ in range(3)]
    await detecting.pay(plain)
    call = {"from": detecting.anvil.accounts[1], "to": data.address, "value": hex(ETHER), "gas": hex(100_000)}
    await detecting.anvil.rpc(
        "eth_sendTransaction", call | {"data": encode_call("transfer(address,uint256)", plain.address, 1)}
    )
    await detecting.pay(both, ETHER // 4)
    await detecting.anvil.transact(forwarder, "pay(address)", both.address, value=ETHER - ETHER // 4)
    await detecting.mine_and_scan(CONFIRMATIONS)
    for payment in (plain, data, both):
        seen = await detecting.get(payment)
        assert (seen.amount_received, seen.status, seen.flags) == ("1", "confirmed", [])
    rows = await detecting.rows(Transaction)
    assert len([row for row in rows if row.position == "tx"]) == 3
    assert len(rows) == 4


async def test_failed_frames_and_reverted_transactions_pay_nothing(detecting: Watch, forwarder: str) -> None:
    inner, outer = await detecting.create("ETH", "1"), await detecting.create("ETH", "1")
    zero = "0x" + "00" * 20
    lenient = await wrapper(detecting.anvil, forwarder)
    pay_and_revert = "payAndRevert(address,address,uint256)"
    hashes = [
        await detecting.anvil.transact(lenient, pay_and_revert, zero, inner.address, 0, value=ETHER),
        await detecting.anvil.transact(forwarder, pay_and_revert, zero, outer.address, 0, value=ETHER),
    ]
    await detecting.mine_and_scan(CONFIRMATIONS)
    receipts = [await detecting.anvil.receipt(tx_hash) for tx_hash in hashes]
    assert [receipt and receipt["status"] for receipt in receipts] == ["0x1", "0x0"]
    assert await detecting.rows(Transaction) == []
    for payment in (inner, outer):
        assert await detecting.told(payment) == "created"


async def test_money_taken_back_by_a_reorg_is_taken_back_here_and_counts_again_once(
    detecting: Watch, forwarder: str
) -> None:
    payment = await detecting.create("ETH", "1")
    tx_hash = await detecting.anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
    await detecting.mine_and_scan()
    raw = await detecting.raw(tx_hash)
    await detecting.mine_and_scan(CONFIRMATIONS)
    assert (await detecting.get(payment)).status == "confirmed"

    await detecting.anvil.reorg(CONFIRMATIONS + 1)
    await detecting.scan()
    seen = await detecting.get(payment)
    assert (seen.status, seen.amount_received, seen.flags) == ("pending", "0", ["reorged"])

    await detecting.anvil.reorg(2, [(raw, 1)])
    await detecting.scan()
    await detecting.mine_and_scan(CONFIRMATIONS)
    seen = await detecting.get(payment)
    assert (seen.status, seen.amount_received) == ("confirmed", "1")
    assert await detecting.told(payment) == "created detected confirmed reverted detected confirmed"
    await detecting.audit(against_node=False)


# --- the two ways to trace agree


async def test_both_ways_to_trace_give_a_transfer_the_same_place(
    opened: OpenWatch, anvil: Anvil, forwarder: str
) -> None:
    """The endpoint that reads again may trace in the other way: it must not find the same transfer anew.

    The call of a precompile comes first: Parity-style traces leave it out.
    """
    # call(gas, 0x02 (sha256), 0, 0, 0, 0, 0), pop
    calls_precompile = "60006000600060006000" + "6002" + "5af1" + "50"
    async with (
        ProxyNode(anvil.url, without("trace_block")) as geth,
        ProxyNode(anvil.url, without("debug_traceBlockByHash")) as parity,
        opened(rpc_urls=[geth.url, parity.url], finality="{depth: 1}", **native("trace")) as watch,
    ):
        payment = await watch.create("ETH", "1")
        through = await wrapper(anvil, forwarder, calls_precompile)
        await anvil.transact(through, "pay(address)", payment.address, value=ETHER)
        await watch.mine_and_scan(CONFIRMATIONS)
        assert await amounts(watch, payment) == ETHER
        outcome = await backup_pass(watch.context, watch.chain)
        assert outcome is not None
        assert (outcome.problem, outcome.found) == (None, 0)
        assert parity.calls("trace_block")
        assert await amounts(watch, payment) == ETHER


# --- modes that change


@pytest.mark.parametrize("order", ["blocks trace balances", "balances trace blocks", "balances blocks balances"])
async def test_nothing_counts_twice_when_the_mode_changes(
    opened: OpenWatch, anvil: Anvil, forwarder: str, order: str
) -> None:
    async with ProxyNode(anvil.url, without(*TRACING)) as silent:
        payment: PaymentView | None = None
        for mode in order.split():
            url = silent.url if mode == "balances" else anvil.url
            async with opened(rpc_urls=[url], finality="{depth: 1}", **native(mode)) as watch:
                payment = payment or await watch.create("ETH", "1", confirmations_required=50)
                await anvil.mine()
                await watch.scan()
                await anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
                await watch.pay(payment, 1_000)
                await watch.mine_and_scan(3)
                async for outcome in rescan_blocks(watch.context, watch.chain, 1, None):
                    assert outcome.problem is None
                await watch.scan()
                last = mode
        assert payment is not None
        async with opened(**native(last)) as watch:
            held = await anvil.balance(payment.address)
            found = await amounts(watch, payment)
            assert found == held if last != "blocks" else found <= held
            await watch.audit(against_node=False)


async def test_what_a_balance_confirmed_stays_so_when_its_transaction_is_found(
    opened: OpenWatch, blind: ProxyNode, anvil: Anvil, forwarder: str
) -> None:
    """The money has been there all the time: nobody is told that it went, nor that it came again."""
    finality = "{depth: 3}"
    async with opened(rpc_urls=[blind.url], finality=finality, **native("balances")) as watch:
        payment, late = await watch.create("ETH", "1"), await watch.create("ETH", "1")
        await watch.cancel(late)
        for each in (payment, late):
            await anvil.transact(forwarder, "pay(address)", each.address, value=ETHER)
        await watch.mine_and_scan(5)
        assert [row.position for row in await watch.rows(Transaction)] == ["balance"] * 2
        told = [await watch.told(each) for each in (payment, late)]
        assert told == ["created detected confirmed settled", "created cancelled late"]
    async with opened(finality=finality, **native("trace")) as watch:
        async for outcome in rescan_blocks(watch.context, watch.chain, 1, None):
            assert outcome.problem is None
        await watch.mine_and_scan(5)
        assert [row.position for row in await watch.rows(Transaction)] == ["trace:0"] * 2
        assert [await watch.told(each) for each in (payment, late)] == told
        assert (await watch.get(payment)).status == "settled"
        await watch.audit(against_node=False)


# --- balances


@pytest.fixture
async def blind(anvil: Anvil) -> AsyncIterator[ProxyNode]:
    """A node that traces nothing."""
    async with ProxyNode(anvil.url, without(*TRACING)) as node:
        yield node


async def test_a_balance_is_read_again_before_it_is_confirmed(
    opened: OpenWatch, anvil: Anvil, forwarder: str, blind: ProxyNode
) -> None:
    async with opened(rpc_urls=[blind.url], **native("balances")) as watch:
        payment = await watch.create("ETH", "1")
        await anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
        await watch.mine_and_scan()
        await anvil.set_balance(payment.address, ETHER - 1)  # gone, in no transaction
        await watch.mine_and_scan(CONFIRMATIONS + 2)
        assert (await watch.get(payment)).status == "detected"
        await anvil.set_balance(payment.address, ETHER)
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "confirmed"


async def test_balances_that_are_never_confirmed_hold_up_no_later_payment(
    opened: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their money was moved on, in no transaction that we know, before it had its confirmations."""
    monkeypatch.setattr(limits, "VERIFY_TRANSFERS", 2)
    async with opened(**native("balances")) as watch:
        gone = [await watch.create("ETH", "1") for _ in range(5)]
        for payment in gone:
            await watch.anvil.set_balance(payment.address, ETHER)
        await watch.mine_and_scan()
        for payment in gone:
            await watch.anvil.set_balance(payment.address, 0)
        await watch.mine_and_scan(CONFIRMATIONS)
        later = [await watch.create(token, "1") for token in ("USDC", "ETH")]
        for payment in later:
            await watch.pay(payment)
        await watch.mine_and_scan(CONFIRMATIONS)
        for _ in range(4):  # seven wait for a second look, and a step takes two
            await watch.step()
        assert [(await watch.get(payment)).status for payment in later] == ["confirmed", "confirmed"]
        assert {(await watch.get(payment)).status for payment in gone} == {"detected"}
        await watch.anvil.set_balance(gone[2].address, ETHER)
        for _ in range(3):
            await watch.mine_and_scan()
        assert (await watch.get(gone[2])).status == "confirmed"


async def test_a_validator_withdrawal_is_ether_like_any_other(opened: OpenWatch, anvil: Anvil) -> None:
    """In no transaction at all, though the node traces."""
    async with opened(**native("balances")) as watch:
        payment = await watch.create("ETH", "1")
        await anvil.set_balance(payment.address, ETHER)
        await watch.mine_and_scan(CONFIRMATIONS)
        assert await watch.told(payment) == "created detected confirmed"
        [row] = await watch.rows(Transaction)
        assert row.position == "balance"


async def test_an_address_without_an_open_payment_is_found_in_rotation(
    opened: OpenWatch, anvil: Anvil, forwarder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ROTATION_ADDRESSES", 2)
    monkeypatch.setattr(limits, "ROTATION_EVERY_S", 0.0)
    async with opened(**native("balances")) as watch:
        payments = [await watch.create("ETH", "1") for _ in range(5)]
        for payment in payments:
            await watch.cancel(payment)
        await watch.mine_and_scan()
        await anvil.transact(forwarder, "pay(address)", payments[4].address, value=ETHER)
        await anvil.transact(forwarder, "pay(address)", payments[0].address, value=ETHER)
        for _ in range(6):
            await watch.mine_and_scan()
        for payment in (payments[0], payments[4]):
            assert "late" in " ".join((await watch.get(payment)).flags)
            assert len(await watch.rows(Transaction, Transaction.payment_id == payment.id)) == 1
        assert len(await watch.rows(Transaction)) == 2


async def test_a_balance_gives_way_to_its_transaction_and_counts_once(
    opened: OpenWatch, anvil: Anvil, usdc: str
) -> None:
    """The first endpoint hid a plain transfer; the balance told of it, and reading again brings the transaction."""

    def hides(call: Call, answer: Call) -> Call:
        if call["method"] in TRACING:
            return failure(call, *MISSING)
        if call["method"] == "eth_getBlockByNumber" and call["params"][1] and answer.get("result"):
            return answer | {"result": answer["result"] | {"transactions": []}}
        return answer

    async with (
        ProxyNode(anvil.url, hides) as liar,
        opened(rpc_urls=[liar.url, anvil.url], finality="{depth: 1}", **native("balances")) as watch,
    ):
        payment = await watch.create("ETH", "1", confirmations_required=50)
        tx_hash = await watch.pay(payment)
        await watch.mine_and_scan(2)
        [row] = await watch.rows(Transaction)
        assert (row.position, row.amount_units) == ("balance", ETHER)
        outcome = await backup_pass(watch.context, watch.chain)
        assert outcome is not None
        assert (outcome.problem, outcome.found) == (None, 1)
        [row] = await watch.rows(Transaction)
        assert (row.position, "0x" + row.tx_hash.hex()) == ("tx", tx_hash)
        seen = await watch.get(payment)
        assert (seen.status, seen.amount_received) == ("detected", "1")
        await watch.mine_and_scan(3)
        assert await amounts(watch, payment) == ETHER
        await watch.audit()


async def test_a_wei_to_an_address_that_was_paid_stops_no_chain(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can send it, while another payment has money on record and the rotation looks elsewhere."""
    monkeypatch.setattr(limits, "ROTATION_ADDRESSES", 1)
    async with opened(**native("balances")) as watch:
        await watch.create("ETH", "7")
        paid = await watch.create("ETH", "1")
        await watch.pay(paid)
        await watch.mine_and_scan(CONFIRMATIONS)
        assert (await watch.get(paid)).status == "confirmed"
        other = await watch.create("ETH", "1")
        await watch.pay(other, ETHER // 2)
        await watch.mine_and_scan()
        await watch.pay(paid, 1)
        await watch.mine_and_scan()
        await watch.pay(other, ETHER // 2)
        await watch.mine_and_scan()
        assert (await watch.get(other)).status == "detected"
        await watch.audit()


DEEP = "0x" + "dead" * 10  # a contract that calls itself as long as the EVM lets it


@pytest.mark.parametrize("how", ["trace", "balances"])
async def test_calls_as_deep_as_the_evm_allows_stop_no_chain(
    opened: OpenWatch, anvil: Anvil, forwarder: str, how: str
) -> None:
    await anvil.rpc("anvil_setCode", DEEP, "0x5f5f5f5f5f305af100")
    async with opened(**native(how)) as watch:
        payment = await watch.create("ETH", "1")
        tx_hash = await anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
        await anvil.rpc("eth_sendTransaction", {"from": anvil.accounts[3], "to": DEEP, "gas": hex(16_700_000)})
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "detected"
        [row] = await watch.rows(Transaction)
        assert (row.position, "0x" + row.tx_hash.hex()) == ("trace:0", tx_hash)


async def test_a_block_that_is_not_traced_in_full_leaves_the_balance(
    opened: OpenWatch, anvil: Anvil, forwarder: str
) -> None:
    """Polygon's nodes leave transactions of the chain itself out of the traces, in each block that has one."""

    def short(call: Call, answer: Call) -> Call:
        traced = call["method"] == "debug_traceBlockByHash" and answer.get("result")
        return result(call, answer["result"][:-1]) if traced else answer

    async with ProxyNode(anvil.url, short) as node, opened(rpc_urls=[node.url], **native("balances")) as watch:
        payment = await watch.create("ETH", "1")
        await anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "detected"
        [row] = await watch.rows(Transaction)
        assert row.position == "balance"


async def test_a_transfer_credited_by_somebody_else_during_a_step_is_no_surplus(
    opened: OpenWatch, anvil: Anvil
) -> None:
    """The step reads what was recorded, then the balance; between the two and its writing, a rescan credits it."""

    def hides(call: Call, answer: Call) -> Call:
        if call["method"] == "eth_getBlockByNumber" and call["params"][1] and answer.get("result"):
            return answer | {"result": answer["result"] | {"transactions": []}}
        return answer

    async with (
        ProxyNode(anvil.url, hides) as liar,
        ProxyNode(anvil.url, without(*TRACING)) as node,
        opened(rpc_urls=[node.url], **native("balances")) as watch,
        opened(rpc_urls=[liar.url], **native("blocks")) as blinded,
        opened(**native("blocks")) as operator,
    ):
        payment = await watch.create("ETH", "1", confirmations_required=50)
        await watch.pay(payment)
        await blinded.mine_and_scan()  # missed it
        assert await watch.rows(Transaction) == []
        await anvil.mine()
        done: list[int] = []

        respond = node.respond

        async def interfering(payload: Any) -> Any:
            answer = await respond(payload)
            if not done and _BALANCES_CODE.hex() in str(payload):
                done.append(1)
                async for outcome in rescan_blocks(operator.context, operator.chain, 1, None):
                    assert outcome.problem is None
            return answer

        node.respond = interfering  # type: ignore[method-assign]
        for _ in range(4):
            assert (await watch.step()).problem is None
        assert done
        assert await amounts(watch, payment) == ETHER
        await watch.audit()


async def test_where_the_node_has_no_state_any_more_the_first_block_that_has_it_serves(
    opened: OpenWatch, anvil: Anvil, forwarder: str
) -> None:
    head: list[str] = []

    def prunes(call: Call, answer: Call) -> Call:
        if call["method"] in TRACING:
            return failure(call, *MISSING)
        at = call["params"][-1] if call["method"] in ("eth_call", "eth_getBalance") else None
        if head and isinstance(at, dict) and at["blockHash"] != head[0]:
            return failure(call, -32000, "missing trie node 01ab (path ) state 0x01 is not available")
        return answer

    async with (
        ProxyNode(anvil.url, prunes) as node,
        opened(rpc_urls=[node.url], finality="{depth: 3}", block_batch_size=4, **native("balances")) as watch,
    ):
        payment, later = await watch.create("ETH", "1"), await watch.create("ETH", "1", confirmations_required=30)
        await anvil.transact(forwarder, "pay(address)", payment.address, value=ETHER)
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "detected"
        await anvil.transact(forwarder, "pay(address)", later.address, value=ETHER)
        await anvil.mine(20)  # the watch was away, and the node forgot
        head.append((await anvil.block())["hash"])
        await watch.scan()
        assert (await watch.get(payment)).status == "settled"
        [row] = await watch.rows(Transaction, Transaction.payment_id == later.id)
        assert (row.position, row.block_number) == ("balance", await anvil.block_number())
        assert (await watch.get(later)).status == "detected"


# --- what the node cannot do


@pytest.mark.parametrize(
    ("mode", "lacking", "message"),
    [
        pytest.param("trace", TRACING, "needs debug_traceBlockByHash or trace_block", id="trace"),
        pytest.param(
            "balances", ("eth_getBalance",), "needs eth_call and eth_getBalance at a block hash", id="balances"
        ),
    ],
)
async def test_what_the_node_cannot_do_is_refused_with_a_clear_message(
    opened: OpenWatch, anvil: Anvil, mode: str, lacking: tuple[str, ...], message: str
) -> None:
    async with (
        ProxyNode(anvil.url, without(*lacking)) as node,
        opened(rpc_urls=[node.url], prepared=False, **native(mode)) as watch,
    ):
        check = await watch.prepare()
        assert check.problem is not None
        assert f"native.detect: {mode} {message}" in check.problem
        assert "127.0.0.1" in check.problem
        assert check.final
        assert await watch.rows(ChainState) == []
        assert not (await watch.step()).progressed


async def test_a_node_that_lacks_the_block_alone_stops_no_chain(opened: OpenWatch, anvil: Anvil) -> None:
    """It answers null for the traces of a block that it has not seen, as one behind a balancer may."""

    def null(call: Call, answer: Call) -> Call:
        if call["method"] == "trace_block":
            return failure(call, *MISSING)
        return result(call, None) if call["method"] == "debug_traceBlockByHash" else answer

    async with ProxyNode(anvil.url) as node, opened(rpc_urls=[node.url], **native("trace")) as watch:
        node.change = null
        check = await watch.prepare()
        assert check.problem is not None
        assert "no traces of block" in check.problem
        assert not check.final
        assert (await watch.state()).halt_code is None
        node.change = None
        assert (await watch.prepare()).problem is None


async def test_one_way_to_trace_is_enough(opened: OpenWatch, anvil: Anvil) -> None:
    async with (
        ProxyNode(anvil.url, without("debug_traceBlockByHash")) as node,
        opened(rpc_urls=[node.url], **native("trace")) as watch,
    ):
        endpoint = watch.context.nodes.nodes(watch.chain).endpoints[0]
        assert endpoint.trace_method == "trace_block"

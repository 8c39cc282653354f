"""The scanner step on a real node: whatever way money takes, it is seen once, counted right, and told."""

import json
from datetime import timedelta

import pytest
from sqlalchemy import update

from app.blockchain.rpc import Endpoint
from app.core.chains import Chain
from app.core.clock import utc_now
from app.db.models import BlockHeader, ChainState, Transaction
from app.services.blockchain import scanner
from app.services.blockchain.gather import Findings, gather
from app.services.blockchain.plan import Plan
from app.services.context import Context
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.watch import CONFIRMATIONS, Watch
from tests.support.anvil import Anvil, encode_call


async def fund(watch: Watch, token: str, spender: str) -> None:
    """Give the first account plenty of a token, and let a contract move it."""
    mine = watch.anvil.accounts[0]
    await watch.anvil.transact(token, "mint(address,uint256)", mine, 10**15)
    await watch.anvil.transact(token, "approve(address,uint256)", spender, 10**15)
    await watch.mine_and_scan()


# --- the main job


@pytest.mark.parametrize("token", ["ETH", "USDC"])
async def test_a_payment_is_detected_in_its_block_and_confirmed_by_those_on_top(watch: Watch, token: str) -> None:
    payment = await watch.create(token)
    await watch.pay(payment)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    head = await watch.anvil.block_number()
    assert (seen.status, seen.detected_in_block, seen.amount_received, seen.amount_due) == ("detected", head, "25", "0")
    [transaction] = seen.transactions
    assert (transaction.confirmations, transaction.status, transaction.amount) == (1, "canonical", "25")

    await watch.mine_and_scan(CONFIRMATIONS - 2)
    assert (await watch.get(payment)).status == "detected"
    await watch.mine_and_scan()
    assert (await watch.get(payment)).status == "confirmed"
    assert await watch.told(payment) == "created detected confirmed"


async def test_one_confirmation_is_had_in_the_block_itself(watch: Watch) -> None:
    payment = await watch.create(confirmations_required=1)
    await watch.pay(payment)
    await watch.mine_and_scan()
    assert await watch.told(payment) == "created detected confirmed"


async def test_with_no_sweeping_a_payment_is_settled_when_its_block_is_final(opened: OpenWatch) -> None:
    async with opened(finality={"depth": 5}, confirmations_required=1) as watch:
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(5)
        assert (await watch.get(payment)).status == "confirmed"
        await watch.mine_and_scan()
        assert await watch.told(payment) == "created detected confirmed settled"
        await watch.audit()


async def test_finality_may_be_the_nodes_own_tag(opened: OpenWatch) -> None:
    """Anvil calls a block final 64 blocks later."""
    async with opened(finality={"tag": "finalized"}) as watch:
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(64)
        assert (await watch.get(payment)).status == "confirmed"
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "settled"
        await watch.audit()


async def test_a_step_that_finds_nothing_costs_one_request(watch: Watch, requests: Requests) -> None:
    payment = await watch.create()
    await watch.mine_and_scan()
    requests.bodies.clear()
    before = await watch.dump()
    outcome = await watch.step()
    assert (outcome.progressed, outcome.changes, outcome.problem) == (False, (), None)
    assert len(requests.bodies) == 1
    assert await watch.dump() == before
    assert (await watch.get(payment)).version == 1


async def test_the_idle_step_stays_at_one_request_while_a_payment_waits_for_confirmations(
    watch: Watch, requests: Requests
) -> None:
    payment = await watch.create()
    await watch.pay(payment)
    await watch.mine_and_scan()
    requests.bodies.clear()
    await watch.step()
    assert len(requests.bodies) == 1


async def test_no_database_connection_is_held_while_waiting_for_the_node(watch: Watch, requests: Requests) -> None:
    held: list[int] = []

    async def count(_methods: set[str]) -> None:
        held.append(watch.context.db.engine.pool.checkedout())  # type: ignore[attr-defined]

    requests.on_request = count
    payments = [await watch.create("ETH"), await watch.create()]
    for payment in payments:
        await watch.pay(payment)
    await watch.mine_and_scan()
    await watch.anvil.reorg(1)
    await watch.scan()
    await watch.mine_and_scan(CONFIRMATIONS)
    assert held
    assert set(held) == {0}


# --- the ways money comes


async def test_a_reverted_transaction_pays_nothing(watch: Watch) -> None:
    native, token, inside = await watch.create("ETH"), await watch.create(), await watch.create()
    forwarder = await watch.anvil.deploy("Forwarder")
    # A top-level transfer can only fail where there is code: the address gets some that reverts.
    await watch.anvil.rpc("anvil_setCode", native.address, "0x60006000fd")
    usdc = watch.tokens["USDC"]
    await fund(watch, usdc, forwarder)
    hashes = [
        await watch.pay(native),
        await watch.anvil.transact(usdc, "transfer(address,uint256)", token.address, 25_000_000, sender_index=7),
        await watch.anvil.transact(
            forwarder, "payAndRevert(address,address,uint256)", usdc, inside.address, 25_000_000
        ),
    ]
    await watch.mine_and_scan(CONFIRMATIONS)
    receipts = [await watch.anvil.receipt(tx_hash) for tx_hash in hashes]
    assert [receipt and receipt["status"] for receipt in receipts] == ["0x0", "0x0", "0x0"]
    for payment in (native, token, inside):
        seen = await watch.get(payment)
        assert (seen.status, seen.transactions, seen.version) == ("pending", [], 1)


async def test_ether_sent_with_calldata_counts(watch: Watch) -> None:
    payment = await watch.create("ETH")
    await watch.anvil.rpc(
        "eth_sendTransaction",
        {
            "from": watch.anvil.accounts[1],
            "to": payment.address,
            "value": hex(int(payment.amount_units)),
            "data": encode_call("transfer(address,uint256)", watch.anvil.accounts[2], 1),
            "gas": hex(100_000),
        },
    )
    await watch.mine_and_scan()
    assert (await watch.get(payment)).status == "detected"


async def test_two_token_transfers_to_one_address_in_one_transaction_both_count(watch: Watch) -> None:
    payment = await watch.create()
    usdc, forwarder = watch.tokens["USDC"], await watch.anvil.deploy("Forwarder")
    await fund(watch, usdc, forwarder)
    to, values = [payment.address, payment.address], [12_000_000, 13_000_000]
    await watch.anvil.transact(forwarder, "batchToken(address,address[],uint256[])", usdc, to, values)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert (seen.status, [each.amount for each in seen.transactions]) == ("detected", ["12", "13"])
    assert len({each.tx_hash for each in seen.transactions}) == 1
    assert len({each.position for each in seen.transactions}) == 2


async def test_ether_and_tokens_to_one_address_in_one_block_both_count(watch: Watch) -> None:
    payment = await watch.create("ETH")
    await watch.pay(payment, 3_000_000, token="USDC")
    await watch.pay(payment)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert sorted(each.token for each in seen.transactions) == ["ETH", "USDC"]
    assert (seen.status, seen.flags) == ("detected", ["wrong_asset"])


async def test_a_batch_that_pays_twenty_payments_at_once(watch: Watch) -> None:
    payments = [await watch.create(amount=str(number)) for number in range(1, 21)]
    usdc, forwarder = watch.tokens["USDC"], await watch.anvil.deploy("Forwarder")
    await fund(watch, usdc, forwarder)
    to, values = [each.address for each in payments], [int(each.amount_units) for each in payments]
    await watch.anvil.transact(forwarder, "batchToken(address,address[],uint256[])", usdc, to, values)
    await watch.mine_and_scan(CONFIRMATIONS)
    for payment in payments:
        assert await watch.told(payment) == "created detected confirmed"


async def test_what_arrives_counts_when_the_token_keeps_a_fee(opened: OpenWatch, anvil: Anvil) -> None:
    fee_token = await anvil.deploy("FeeToken", "Fee", "FEE", 6)
    async with opened(tokens={"FEE": fee_token}) as watch:
        payment = await watch.create("FEE", "100")
        await anvil.transact(fee_token, "mint(address,uint256)", anvil.accounts[1], 200_000_000)
        await anvil.transact(fee_token, "transfer(address,uint256)", payment.address, 100_000_000, sender_index=1)
        await watch.mine_and_scan()
        seen = await watch.get(payment)
        assert (seen.status, seen.flags, seen.amount_received, seen.amount_due) == ("pending", ["underpaid"], "99", "1")
        await watch.audit()


async def test_a_token_that_returns_nothing_pays_like_any_other(opened: OpenWatch, anvil: Anvil) -> None:
    odd = await anvil.deploy("NoReturnToken", "Tether", "USDT", 6)
    async with opened(tokens={"USDT": odd}) as watch:
        payment = await watch.create("USDT")
        await anvil.transact(odd, "mint(address,uint256)", anvil.accounts[1], 25_000_000)
        await anvil.transact(odd, "transfer(address,uint256)", payment.address, 25_000_000, sender_index=1)
        await watch.mine_and_scan(CONFIRMATIONS)
        assert await watch.told(payment) == "created detected confirmed"
        await watch.audit()


async def test_a_fake_token_with_a_known_symbol_is_nothing(watch: Watch) -> None:
    payment = await watch.create()
    fake = await watch.anvil.deploy("TestToken", "USD Coin", "USDC", 6)
    await watch.anvil.transact(fake, "mint(address,uint256)", payment.address, 25_000_000)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert (seen.status, seen.flags, seen.transactions) == ("pending", [], [])


async def test_transfers_of_nothing_are_nothing(watch: Watch) -> None:
    """Address poisoning sends zero tokens from anybody to anybody."""
    native, token = await watch.create("ETH"), await watch.create()
    await watch.pay(native, 0)
    await watch.pay(token, 0)
    await watch.mine_and_scan()
    assert await watch.rows(Transaction) == []
    assert (await watch.told(native), await watch.told(token)) == ("created", "created")


async def test_a_transfer_from_a_deposit_address_is_no_payment_to_it(watch: Watch) -> None:
    payment, other = await watch.create("ETH"), await watch.create("ETH")
    await watch.pay(payment)
    await watch.mine_and_scan()
    await watch.anvil.rpc("anvil_impersonateAccount", payment.address)
    move = {"from": payment.address, "to": watch.anvil.accounts[3], "value": "0x5", "gas": hex(21_000)}
    await watch.anvil.rpc("eth_sendTransaction", move)
    await watch.mine_and_scan()
    assert len((await watch.get(payment)).transactions) == 1
    assert (await watch.get(other)).transactions == []


# --- how much, and what


async def test_parts_add_up(watch: Watch) -> None:
    payment = await watch.create()
    await watch.pay(payment, 10_000_000)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert (seen.status, seen.flags, seen.amount_received, seen.amount_due) == ("pending", ["underpaid"], "10", "15")
    await watch.pay(payment, 14_999_999)
    await watch.mine_and_scan()
    assert (await watch.get(payment)).amount_due == "0.000001"
    await watch.pay(payment, 1)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert (seen.status, seen.flags, seen.amount_received) == ("detected", [], "25")
    await watch.mine_and_scan(CONFIRMATIONS - 1)
    assert await watch.told(payment) == "created underpaid underpaid detected confirmed"


async def test_too_much_is_told_at_once_and_later_too(watch: Watch) -> None:
    payment = await watch.create("ETH")
    await watch.pay(payment, int(payment.amount_units) + 1)
    await watch.mine_and_scan(CONFIRMATIONS)
    assert await watch.told(payment) == "created detected overpaid confirmed"
    await watch.pay(payment, 5)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert (seen.status, seen.flags, seen.amount_received_units) == ("confirmed", ["overpaid"], str(25 * 10**18 + 6))
    assert await watch.told(payment) == "created detected overpaid confirmed overpaid"


async def test_money_within_the_tolerance_that_comes_later_is_counted(watch: Watch) -> None:
    payment = await watch.create(tolerance="1")
    await watch.pay(payment, 24_500_000)
    await watch.mine_and_scan()
    await watch.pay(payment, 300_000)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert (seen.status, seen.flags, seen.amount_received, seen.amount_due) == ("detected", [], "24.8", "0")


async def test_the_wrong_asset_is_recorded_and_told_and_counts_nothing(watch: Watch) -> None:
    native, token = await watch.create("ETH"), await watch.create()
    await watch.pay(native, 25_000_000, token="USDC")
    await watch.pay(token, 25_000_000, token="ETH")
    await watch.mine_and_scan(CONFIRMATIONS)
    for payment, symbol in ((native, "USDC"), (token, "ETH")):
        seen = await watch.get(payment)
        assert (seen.status, seen.flags, seen.amount_received_units) == ("pending", ["wrong_asset"], "0")
        assert [each.token for each in seen.transactions] == [symbol]
        assert seen.version == 2
    await watch.pay(token)
    await watch.mine_and_scan()
    seen = await watch.get(token)
    assert (seen.status, seen.flags, seen.amount_received) == ("detected", ["wrong_asset"], "25")


# --- time


async def test_a_payment_expires_by_the_time_of_the_blocks_and_is_late_after_it(watch: Watch) -> None:
    payment = await watch.create(expires_in_s=600)
    await watch.anvil.increase_time(595)
    await watch.mine_and_scan()
    assert (await watch.get(payment)).status == "pending"
    await watch.anvil.increase_time(10)
    await watch.mine_and_scan()
    assert await watch.told(payment) == "created expired"
    await watch.pay(payment)
    await watch.mine_and_scan(CONFIRMATIONS)
    seen = await watch.get(payment)
    assert (seen.status, seen.flags) == ("confirmed", ["late"])
    assert await watch.told(payment) == "created expired late detected confirmed"


async def test_an_outage_of_ours_never_expires_a_payment_that_was_paid_in_time(watch: Watch) -> None:
    payment, unpaid = await watch.create(expires_in_s=600), await watch.create(expires_in_s=600)
    await watch.pay(payment)
    await watch.anvil.mine()
    await watch.anvil.increase_time(10_000)
    await watch.anvil.mine()
    await watch.scan()
    seen = await watch.get(payment)
    assert (seen.status, seen.flags) == ("detected", [])
    assert (await watch.get(unpaid)).status == "expired"


async def test_a_payment_in_two_blocks_of_one_step_is_late_by_the_block_that_completes_it(watch: Watch) -> None:
    payment = await watch.create(expires_in_s=600)
    await watch.pay(payment, 24_000_000)
    await watch.anvil.mine()
    await watch.anvil.increase_time(10_000)
    await watch.pay(payment, 1_000_000)
    await watch.mine_and_scan()
    seen = await watch.get(payment)
    assert (seen.status, seen.flags) == ("detected", ["late"])


async def stand_still(watch: Watch) -> None:
    """Make the cursor's block an hour old: the chain has been idle since."""
    async with watch.context.db.write() as session:
        await session.execute(update(ChainState).values(last_scanned_time=utc_now() - timedelta(hours=1)))


async def test_an_idle_chain_does_not_keep_a_payment_open(watch: Watch) -> None:
    """But a head read that begins within the grace after the end proves nothing yet."""
    payment = await watch.create()
    await watch.mine_and_scan()
    await stand_still(watch)
    await watch.expire_at(payment, seconds_ago=25)
    await watch.scan()
    assert (await watch.get(payment)).status == "pending"
    await watch.expire_at(payment, seconds_ago=31)
    await watch.scan()
    assert await watch.told(payment) == "created expired"


async def test_a_new_block_on_an_idle_chain_is_read_before_anything_expires(watch: Watch) -> None:
    payment = await watch.create()
    await watch.mine_and_scan()
    await stand_still(watch)
    await watch.expire_at(payment, seconds_ago=31)
    await watch.pay(payment)
    await watch.mine_and_scan()
    assert await watch.told(payment) == "created late detected"


async def test_a_cancelled_payment_records_what_comes(watch: Watch) -> None:
    payment = await watch.create()
    await watch.cancel(payment)
    await watch.pay(payment)
    await watch.mine_and_scan(CONFIRMATIONS)
    seen = await watch.get(payment)
    assert (seen.status, seen.flags, seen.amount_received) == ("cancelled", ["late"], "25")
    assert await watch.told(payment) == "created cancelled late"


# --- catching up


async def test_what_was_paid_while_nothing_was_scanning_is_found(opened: OpenWatch, requests: Requests) -> None:
    """500 blocks: finalized ones in ranges of block_batch_size, the last ones as linked runs by hash."""
    async with opened(block_batch_size=150, finality={"depth": 10}, confirmations_required=2) as watch:
        payments = [await watch.create(token) for token in ("ETH", "USDC") * 4]
        first = await watch.anvil.block_number() + 1
        for payment in payments:
            await watch.pay(payment)
            await watch.anvil.mine(62)
        last = await watch.anvil.mine(4)
        assert last - first + 1 == 500
        requests.bodies.clear()
        await watch.scan()
        for payment in payments:
            assert await watch.told(payment) == "created detected confirmed settled"

        filters = [call["params"][0] for call in requests.calls("eth_getLogs")]
        by_hash = [each["blockHash"] for each in filters if "blockHash" in each]
        ranges = [(int(each["fromBlock"], 16), int(each["toBlock"], 16)) for each in filters if "fromBlock" in each]
        finalized = last - 10
        assert ranges == [(start, min(start + 149, finalized)) for start in range(first, finalized + 1, 150)]
        assert by_hash == [(await watch.anvil.block(number))["hash"] for number in range(finalized + 1, last + 1)]
        assert len(requests.bodies) <= 40
        assert (await watch.state()).last_scanned_block == last
        await watch.audit()


async def test_every_scanned_block_is_linked_empty_ones_too(watch: Watch) -> None:
    first = (await watch.state()).first_block
    await watch.anvil.mine(3)
    payment = await watch.create()
    await watch.pay(payment)
    await watch.mine_and_scan(20)
    headers = {header.number: header for header in await watch.rows(BlockHeader)}
    assert sorted(headers) == list(range(first, first + 24))
    for number, header in headers.items():
        block = await watch.anvil.block(number)
        assert ("0x" + header.hash.hex(), "0x" + header.parent_hash.hex()) == (block["hash"], block["parentHash"])
        assert int(header.time.timestamp()) == int(block["timestamp"], 16)


async def test_a_configured_start_block_is_the_first_to_be_scanned(opened: OpenWatch, anvil: Anvil) -> None:
    await anvil.mine(5)
    async with opened(start_block=3) as watch:
        assert (await watch.state()).last_scanned_block == 2
        await watch.scan()
        assert sorted(header.number for header in await watch.rows(BlockHeader)) == [2, 3, 4, 5, 6]
        await watch.audit()


# --- a node that says something else


async def test_a_node_whose_head_is_behind_the_cursor_is_no_fork(watch: Watch) -> None:
    """It shows our blocks, only fewer of them; when it goes on with others, that is one."""
    payment = await watch.create(confirmations_required=1)
    await watch.pay(payment)
    await watch.mine_and_scan()
    snapshot = await watch.anvil.snapshot()
    await watch.mine_and_scan(3)
    before = await watch.dump()
    await watch.anvil.revert(snapshot)
    outcome = await watch.step()
    assert outcome.problem is not None
    assert not outcome.progressed
    assert await watch.dump() == before
    other = await watch.create()
    await watch.pay(other)
    await watch.mine_and_scan()
    assert (await watch.get(other)).status == "detected"
    assert await watch.told(payment) == "created detected confirmed"


async def test_a_dead_node_is_a_problem_that_writes_nothing(watch: Watch, opened: OpenWatch) -> None:
    payment = await watch.create()
    await watch.pay(payment)
    await watch.anvil.mine()
    before = await watch.dump()
    async with opened(rpc_urls=["http://127.0.0.1:9"], prepared=False) as dead:
        outcome = await dead.step()
    assert outcome.problem is not None
    assert not outcome.progressed
    assert await watch.dump() == before
    await watch.scan()
    assert (await watch.get(payment)).status == "detected"


@pytest.mark.parametrize("error", [KeyError, OverflowError, RecursionError, ValueError])
async def test_an_answer_that_nobody_foresaw_is_left_for_another_node(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    async with opened(rpc_urls=[anvil.url, f"{anvil.url}/"]) as watch:
        first = watch.context.nodes.nodes(watch.chain).endpoints[0]

        async def trip(context: Context, chain: Chain, endpoint: Endpoint, plan: Plan) -> Findings:
            if endpoint is first:
                raise error
            return await gather(context, chain, endpoint, plan)

        monkeypatch.setattr(scanner, "gather", trip)
        payment = await watch.create()
        await watch.pay(payment)
        await anvil.mine()
        outcome = await watch.step()
        assert (outcome.progressed, outcome.problem) == (False, f"{first.name}: {error.__name__}")
        await watch.scan()
        assert (await watch.get(payment)).status == "detected"


@pytest.mark.parametrize("token", ["ETH", "USDC"])
async def test_nothing_is_confirmed_unless_its_receipt_still_shows_it(
    watch: Watch, requests: Requests, token: str
) -> None:
    """Anvil cannot be made to forget a receipt, so its answer is replaced on the way."""
    payment = await watch.create(token, confirmations_required=2)
    await watch.pay(payment)
    await watch.mine_and_scan()

    async def forget(methods: set[str], body: bytes) -> bytes:
        if methods != {"eth_getTransactionReceipt"}:
            return body
        answers = json.loads(body)
        return json.dumps([each | {"result": None} for each in answers]).encode()

    requests.on_answer = forget
    await watch.mine_and_scan(3)
    assert (await watch.get(payment)).status == "detected"
    requests.on_answer = None
    await watch.scan()
    assert (await watch.get(payment)).status == "confirmed"

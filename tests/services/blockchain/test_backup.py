"""Goal: what one endpoint hides, or loses, another one or the operator brings back, once, and somebody is told."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.blockchain.errors import TransientError
from app.blockchain.wallet import AddressDeriver, account_xpub
from app.core import limits
from app.core.metrics import REGISTRY
from app.core.queue import WakeUps, connect
from app.db.models import BlockHeader, Transaction
from app.db.repositories import chains
from app.services.blockchain.backup import Reread, backup_pass, rescan_blocks
from app.services.blockchain.heads import follow_heads
from app.services.blockchain.reconcile import reconcile_chain
from app.services.metrics import exposition
from app.services.views import PaymentView
from devnet.ports import free_port
from tests.cli.test_cli import paywatch
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.watch import CONFIRMATIONS, Watch, chain_yaml
from tests.support.anvil import MNEMONIC, Anvil
from tests.support.forks import Answer
from tests.support.node import Call, ProxyNode, hides_payments
from tests.support.secrets import SECRET_KEY

SHALLOW = "{depth: 2}"


@pytest.fixture(autouse=True)
def addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deposit addresses that hold nothing: those of Anvil's own words are its rich accounts."""
    other = AddressDeriver(account_xpub("legal winner thank year wave sausage worth useful legal winner thank yellow"))
    monkeypatch.setattr("tests.services.blockchain.watch.deriver", lambda: other)


@pytest.fixture
async def liar(anvil: Anvil) -> AsyncIterator[ProxyNode]:
    async with ProxyNode(anvil.url, hides_payments) as node:
        yield node


@pytest.fixture
async def honest(anvil: Anvil) -> AsyncIterator[ProxyNode]:
    async with ProxyNode(anvil.url) as node:
        yield node


async def passes(watch: Watch) -> Reread:
    """Backup passes until nothing is left to read; what they found together."""
    found, first, last, changes = 0, 0, 0, ()
    while (outcome := await backup_pass(watch.context, watch.chain)) is not None:
        assert outcome.problem is None
        found, last, changes = found + outcome.found, outcome.last, (*changes, *outcome.changes)
    return Reread(first, last, found, changes)


async def rescan(watch: Watch, first: int = 1, last: int | None = None) -> list[Reread]:
    return [outcome async for outcome in rescan_blocks(watch.context, watch.chain, first, last)]


async def two_payments(watch: Watch, confirmations: int = 1) -> list[PaymentView]:
    """One in tokens and one in ether, both paid."""
    payments = [await watch.create(token, confirmations_required=confirmations) for token in ("USDC", "ETH")]
    for payment in payments:
        await watch.pay(payment)
    return payments


# --- the backup pass


async def test_what_the_first_endpoint_hid_is_credited_and_the_operator_is_told(
    opened: OpenWatch, liar: ProxyNode, honest: ProxyNode
) -> None:
    async with opened(rpc_urls=[liar.url, honest.url], finality=SHALLOW) as watch:
        payments = await two_payments(watch)
        await watch.mine_and_scan(4)
        assert await watch.rows(Transaction) == []
        with capture_logs() as logs:
            outcome = await passes(watch)
        assert (outcome.found, len(outcome.changes) > 0) == (2, True)
        [alarm] = [entry for entry in logs if entry["log_level"] == "error"]
        assert (alarm["transfers"], alarm["missed_by"], alarm["found_by"]) == (2, liar.url, honest.url)
        nobody = WakeUps(connect("redis://127.0.0.1:9"))  # no Redis is needed
        metrics = (await exposition(watch.context, nobody)).decode()
        assert f'paywatch_chain_missed_transfers_total{{chain="{watch.chain.name}"}} 2.0' in metrics
        await watch.mine_and_scan()
        for payment in payments:
            assert await watch.told(payment) in ("created detected confirmed", "created detected confirmed settled")
            assert (await watch.get(payment)).amount_received == "25"
        await watch.audit()


async def test_a_second_pass_over_the_same_blocks_inserts_nothing(
    opened: OpenWatch, liar: ProxyNode, honest: ProxyNode
) -> None:
    async with opened(rpc_urls=[liar.url, honest.url], finality=SHALLOW) as watch:
        await two_payments(watch)
        await watch.mine_and_scan(4)
        assert (await passes(watch)).found == 2
        assert await backup_pass(watch.context, watch.chain) is None
        before = await watch.rows(Transaction)
        async with watch.context.db.write() as session:
            state = await session.merge(await watch.state())
            state.backup_block = state.first_block
        with capture_logs() as logs:
            outcome = await passes(watch)
        assert outcome.found == 0
        assert [entry for entry in logs if entry["log_level"] == "error"] == []
        assert len(await watch.rows(Transaction)) == len(before) == 2


async def test_an_honest_scan_leaves_the_backup_pass_nothing(opened: OpenWatch, honest: ProxyNode) -> None:
    async with opened(rpc_urls=[honest.url], finality=SHALLOW, block_batch_size=3) as watch:
        await two_payments(watch)
        await watch.mine_and_scan(12)
        outcome = await passes(watch)
        state = await watch.state()
        assert (outcome.found, state.backup_block) == (0, state.finalized_block)
        await watch.audit()


async def test_passes_side_by_side_credit_once(opened: OpenWatch, liar: ProxyNode, honest: ProxyNode) -> None:
    async with (
        opened(rpc_urls=[liar.url, honest.url], finality=SHALLOW) as watch,
        opened(rpc_urls=[liar.url, honest.url], finality=SHALLOW) as other,
    ):
        payments = await two_payments(watch)
        await watch.mine_and_scan(4)
        outcomes = await asyncio.gather(*(backup_pass(each.context, each.chain) for each in (watch, other, watch)))
        assert sum(outcome.found for outcome in outcomes if outcome) == 2
        for payment in payments:
            assert (await watch.get(payment)).amount_received == "25"
        await watch.audit()


async def test_a_backup_endpoint_that_is_down_writes_nothing_and_rests(opened: OpenWatch, liar: ProxyNode) -> None:
    async with opened(rpc_urls=[liar.url, "http://127.0.0.1:9"], finality=SHALLOW) as watch:
        await two_payments(watch)
        await watch.mine_and_scan(4)
        before = await watch.dump()
        outcome = await backup_pass(watch.context, watch.chain)
        assert outcome is not None
        assert outcome.problem is not None
        assert "127.0.0.1:9" in outcome.problem
        assert await watch.dump() == before


# --- reconcile


async def test_reconcile_reports_nothing_when_all_is_well(opened: OpenWatch, anvil: Anvil) -> None:
    async with opened(finality=SHALLOW) as watch:
        await two_payments(watch)
        await watch.create("ETH")
        await watch.mine_and_scan(4)
        report = await reconcile_chain(watch.context, watch.chain)
        assert (report.differences, report.problem) == ((), None)


async def test_reconcile_adds_up_the_largest_amounts_to_the_unit(opened: OpenWatch, anvil: Anvil, usdc: str) -> None:
    """On PostgreSQL the database does; a float would be off by 10^60."""
    async with opened(finality=SHALLOW) as watch:
        payment = await watch.create()
        for units in (2**255 - 1, 1, 2**254 + 1, 2**254 - 2):
            await watch.pay(payment, units)
        await watch.mine_and_scan(4)
        assert await anvil.call(usdc, "balanceOf(address)", payment.address, returns="uint256") == 2**256 - 1
        report = await reconcile_chain(watch.context, watch.chain)
        assert (report.differences, report.problem) == ((), None)


async def test_reconcile_reports_each_difference(opened: OpenWatch, liar: ProxyNode, anvil: Anvil) -> None:
    async with opened(rpc_urls=[liar.url], finality=SHALLOW) as watch:
        token, native = await two_payments(watch)
        await watch.mine_and_scan(4)
        with capture_logs() as logs:
            report = await reconcile_chain(watch.context, watch.chain)
        found = {(each.payment_id, each.symbol, each.recorded_units, each.held_units) for each in report.differences}
        assert found == {
            (token.id, "USDC", 0, int(token.amount_units)),
            (native.id, "ETH", 0, int(native.amount_units)),
        }
        assert {each.address for each in report.differences} == {token.address, native.address}
        assert len([entry for entry in logs if entry["log_level"] == "error"]) == 2


async def test_reconcile_says_when_the_node_cannot_be_asked(opened: OpenWatch) -> None:
    async with Anvil() as node:
        await node.deploy("TestToken", "USD Coin", "USDC", 6)
        async with opened(rpc_urls=[node.url]) as watch:
            await watch.create("ETH")
            await node.stop()
            report = await reconcile_chain(watch.context, watch.chain)
    assert report.differences == ()
    assert report.problem is not None
    assert "127.0.0.1" in report.problem


@pytest.mark.parametrize("code", ["0x60006000fd", "0x"])
async def test_a_token_whose_balances_cannot_be_read_hides_no_other_difference(
    opened: OpenWatch, liar: ProxyNode, anvil: Anvil, usdc: str, tmp_path: Path, db_url: str, code: str
) -> None:
    """Its `balanceOf` reverts, or nobody answers there any more."""
    broken = await anvil.deploy("TestToken", "Broken", "BROKEN", 6)
    async with opened(rpc_urls=[liar.url], finality=SHALLOW, tokens={"BROKEN": broken, "USDC": usdc}) as watch:
        token, native = await two_payments(watch)
        await anvil.rpc("anvil_setCode", broken, code)
        await watch.mine_and_scan(4)
        report = await reconcile_chain(watch.context, watch.chain)
        assert {(each.payment_id, each.symbol) for each in report.differences} == {
            (token.id, "USDC"),
            (native.id, "ETH"),
        }
        assert report.problem is not None
        assert report.problem.startswith(f"{liar.url}: BROKEN: ")
        answer = await operator(tmp_path, db_url, watch, "reconcile", "--chain", "devnet")
        assert answer.code == 1
        assert token.id in answer.out
        assert native.id in answer.out
        assert "BROKEN: " in answer.error


# --- rescan


async def test_rescan_credits_what_is_missing_and_again_nothing(
    opened: OpenWatch, liar: ProxyNode, anvil: Anvil
) -> None:
    async with opened(rpc_urls=[liar.url], finality=SHALLOW, block_batch_size=3) as watch:
        payments = await two_payments(watch)
        await watch.mine_and_scan(7)
        liar.change = None
        cursor = (await watch.state()).last_scanned_block
        outcomes = await rescan(watch)
        assert [outcome.problem for outcome in outcomes] == [None] * len(outcomes)
        assert (outcomes[0].first, outcomes[-1].last) == (1, cursor)
        assert sum(outcome.found for outcome in outcomes) == 2
        again = await rescan(watch)
        assert sum(outcome.found for outcome in again) == 0
        assert not any(outcome.changes for outcome in again)
        await watch.mine_and_scan()
        for payment in payments:
            seen = await watch.get(payment)
            assert (seen.status in ("confirmed", "settled"), seen.amount_received) == (True, "25")
        await watch.audit()


async def test_a_rescan_leaves_the_backup_pass_its_blocks(
    opened: OpenWatch, liar: ProxyNode, honest: ProxyNode
) -> None:
    """It asks the preferred endpoint again, which may hide the same again."""
    async with opened(rpc_urls=[liar.url, honest.url], finality=SHALLOW) as watch:
        await two_payments(watch)
        await watch.mine_and_scan(4)
        assert sum(outcome.found for outcome in await rescan(watch)) == 0
        assert (await passes(watch)).found == 2


async def test_rescan_reads_only_the_blocks_that_it_was_given(opened: OpenWatch, liar: ProxyNode) -> None:
    async with opened(rpc_urls=[liar.url], finality=SHALLOW) as watch:
        await two_payments(watch)
        await watch.mine_and_scan(5)
        liar.change = None
        paid_at = (await watch.state()).last_scanned_block - 4
        assert sum(outcome.found for outcome in await rescan(watch, paid_at + 1, paid_at + 2)) == 0
        assert sum(outcome.found for outcome in await rescan(watch, paid_at, paid_at)) == 2


async def halted(watch: Watch, anvil: Anvil) -> PaymentView:
    """A confirmed payment whose block, final already, was replaced by another."""
    payment = await watch.create("ETH", confirmations_required=1)
    tx_hash = await watch.pay(payment)
    await watch.mine_and_scan()
    raw = await watch.raw(tx_hash)
    await watch.mine_and_scan(4)
    await anvil.reorg(5, [(raw, 2)])
    await anvil.mine()
    for _ in range(3):
        await watch.step()
    state = await watch.state()
    assert state.halt_code == "reorg"
    assert "below the final block" in state.halt_detail
    assert not (await watch.step()).progressed
    return payment


async def test_rescan_releases_a_chain_that_a_fork_below_finality_halted(opened: OpenWatch, anvil: Anvil) -> None:
    async with opened(finality=SHALLOW) as watch:
        payment = await halted(watch, anvil)
        assert await backup_pass(watch.context, watch.chain) is None
        outcomes = await rescan(watch, (await watch.state()).first_block)
        assert [outcome.problem for outcome in outcomes if outcome.problem] == []
        assert (await watch.state()).halt_code is None
        await watch.scan()
        seen = await watch.get(payment)
        assert seen.status in ("confirmed", "settled")
        assert sorted(each.status for each in seen.transactions) == ["canonical", "orphaned"]
        assert (seen.amount_received, "reorged" in seen.flags) == ("25", True)
        assert (await passes(watch)).found == 0
        await watch.audit()


async def test_a_rescan_of_a_halted_chain_whose_node_is_away_changes_nothing(opened: OpenWatch, anvil: Anvil) -> None:
    async with opened(finality=SHALLOW) as watch:
        await halted(watch, anvil)
        await anvil.stop()
        [outcome] = await rescan(watch)
        assert outcome.problem is not None
        assert (await watch.state()).halt_code == "reorg"


# --- the operator's command


async def operator(tmp_path: Path, db_url: str, watch: Watch, *arguments: str) -> Answer:
    (tmp_path / "cli").mkdir(exist_ok=True)
    url = watch.context.nodes.nodes(watch.chain).endpoints[0].provider.endpoint_uri
    chains = tmp_path / "cli" / "chains.yaml"
    chains.write_text(chain_yaml(str(url), watch.tokens, 6, finality=SHALLOW))
    return await paywatch(
        tmp_path / "cli",
        *arguments,
        PAYWATCH_DATABASE_URL=db_url,
        PAYWATCH_XPUB=account_xpub(MNEMONIC),
        PAYWATCH_SECRET_KEY=SECRET_KEY,
        PAYWATCH_REDIS_URL="redis://127.0.0.1:9",
        PAYWATCH_PUBLIC_URL="https://pay.example.com",
        PAYWATCH_CHAINS_FILE=str(chains),
    )


async def test_the_commands_say_what_is_missing_and_bring_it_back(
    opened: OpenWatch, liar: ProxyNode, tmp_path: Path, db_url: str
) -> None:
    async with opened(rpc_urls=[liar.url], finality=SHALLOW) as watch:
        token, native = await two_payments(watch)
        await watch.mine_and_scan(4)
        answer = await operator(tmp_path, db_url, watch, "reconcile", "--chain", "devnet")
        assert answer.code == 1
        assert token.id in answer.out
        assert native.address in answer.out
        assert "25" in answer.out

        liar.change = None
        cursor = (await watch.state()).last_scanned_block
        answer = await operator(tmp_path, db_url, watch, "rescan", "--chain", "devnet", "--from", "1")
        assert (answer.code, f"read blocks 1 to {cursor} of devnet" in answer.out) == (0, True)
        assert "2 transfers had been missed" in answer.out
        answer = await operator(tmp_path, db_url, watch, "rescan", "--chain", "devnet", "--from", "1", "--to", "3")
        assert (answer.code, "1 to 3 of devnet again: 0 transfers" in answer.out) == (0, True)

        answer = await operator(tmp_path, db_url, watch, "reconcile", "--chain", "devnet")
        assert (answer.code, answer.out.strip()) == (0, "every balance is what was recorded")


async def test_the_commands_refuse_what_makes_no_sense(
    opened: OpenWatch, tmp_path: Path, db_url: str, anvil: Anvil
) -> None:
    async with opened(finality=SHALLOW) as watch:
        await watch.create("ETH")
        for arguments, code, message in (
            (("rescan", "--chain", "moon", "--from", "1"), 1, "moon"),
            (("rescan", "--chain", "devnet", "--from", "5000"), 1, "nothing to read again"),
        ):
            answer = await operator(tmp_path, db_url, watch, *arguments)
            assert (answer.code, message in answer.error, "Traceback" in answer.error) == (code, True, False)
        await anvil.stop()
        for command in (("rescan", "--chain", "devnet", "--from", "1"), ("reconcile", "--chain", "devnet")):
            answer = await operator(tmp_path, db_url, watch, *command)
            assert (answer.code, "Traceback" in answer.error) == (1, False)
            assert "127.0.0.1" in answer.error


# --- many endpoints


async def test_receipts_are_read_again_from_the_second_endpoint(
    opened: OpenWatch, anvil: Anvil, honest: ProxyNode
) -> None:
    async with ProxyNode(anvil.url) as first, opened(rpc_urls=[first.url, honest.url]) as watch:
        payment = await watch.create("USDC")
        tx_hash = await watch.pay(payment)
        await watch.mine_and_scan()
        assert honest.calls("eth_getTransactionReceipt") == []
        await watch.mine_and_scan(CONFIRMATIONS - 1)
        assert [call["params"] for call in honest.calls("eth_getTransactionReceipt")] == [[tx_hash]]
        assert first.calls("eth_getTransactionReceipt") == []
        assert (await watch.get(payment)).status == "confirmed"
        await watch.audit()


async def test_a_payment_that_the_second_endpoint_does_not_have_is_not_confirmed(
    opened: OpenWatch, anvil: Anvil
) -> None:
    def no_receipts(call: Call, answer: Call) -> Call:
        return answer | {"result": None} if call["method"] == "eth_getTransactionReceipt" else answer

    async with (
        ProxyNode(anvil.url, no_receipts) as second,
        opened(rpc_urls=[anvil.url, second.url]) as watch,
    ):
        payment = await watch.create("USDC")
        await watch.pay(payment)
        await watch.mine_and_scan(CONFIRMATIONS + 2)
        assert (await watch.get(payment)).status == "detected"
        second.change = None
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "confirmed"


async def test_an_endpoint_that_dies_midway_costs_no_payment(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BREAKER_MIN_S", 600.0)  # a slow machine gives it no time to be asked again
    first = ProxyNode(anvil.url)
    await first.__aenter__()
    async with opened(rpc_urls=[first.url, anvil.url]) as watch:
        payments: list[PaymentView] = []
        for number in range(6):
            payment = await watch.create("USDC" if number % 2 else "ETH")
            payments.append(payment)
            await watch.pay(payment)
            await anvil.mine()
            if number == 2:
                assert (await watch.step()).problem is None
                await first.stop()
        outcome = await watch.step()
        assert outcome.problem is not None
        assert watch.context.nodes.nodes(watch.chain).states()[0][1] == "open"
        await watch.scan()
        await watch.mine_and_scan(CONFIRMATIONS)
        for payment in payments:
            assert (await watch.get(payment)).status == "confirmed"
        await watch.audit()


async def test_an_endpoint_on_another_chain_is_refused_and_the_others_serve(opened: OpenWatch, anvil: Anvil) -> None:
    """It was down when the chain was checked, and is asked for its chain when it is first needed."""
    async with ProxyNode(anvil.url) as node, opened(rpc_urls=[node.url, anvil.url], prepared=False) as watch:
        nodes = watch.context.nodes.nodes(watch.chain)
        nodes.failed(nodes.endpoints[0], TransientError("down"))
        await node.stop()
        assert (await watch.prepare()).problem is None
        assert nodes.endpoints[0] not in nodes.checked
        async with Anvil(chain_id=31338) as other:
            nodes.endpoints[0].provider.endpoint_uri = other.url  # somebody moved the name
            payment = await watch.create()
            await watch.pay(payment)
            await anvil.mine()
            nodes.succeeded(nodes.endpoints[0])
            outcome = await watch.step()
            assert outcome.problem is not None
            assert "has chain id 31338, chains.yaml says 31337" in outcome.problem
            await watch.scan()
        assert (await watch.get(payment)).status == "detected"
        assert "31338" in nodes.states()[0][1]
        assert (await watch.state()).halt_code is None


# --- pushed heads


async def test_a_pushed_head_wakes_the_listener_and_a_lost_connection_is_tried_again(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WS_BACKOFF_MIN_S", 0.05)
    monkeypatch.setattr(limits, "WS_BACKOFF_MAX_S", 0.1)
    woken: asyncio.Queue[str] = asyncio.Queue()
    async with Anvil(port=free_port()) as node:
        await node.deploy("TestToken", "USD Coin", "USDC", 6)
        async with opened(rpc_urls=[node.url], ws_url=node.ws_url) as watch:
            following = asyncio.create_task(follow_heads(watch.chain, woken.put))
            try:
                assert await _mine_until(node, woken) == "devnet"
                await node.stop()  # the same port serves again a moment later
                await asyncio.sleep(0.2)
                await node.start()
                while not woken.empty():
                    woken.get_nowait()
                assert await _mine_until(node, woken) == "devnet"
                assert not following.done()
                assert REGISTRY.get_sample_value("paywatch_ws_connected", {"chain": "devnet"}) == 1
                await node.stop()
                async with asyncio.timeout(60):
                    while REGISTRY.get_sample_value("paywatch_ws_connected", {"chain": "devnet"}) != 0:
                        await asyncio.sleep(0.01)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)


async def test_heads_are_followed_after_an_error_that_nobody_foresaw(
    opened: OpenWatch, anvil: Anvil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WS_BACKOFF_MIN_S", 0.05)
    woken: asyncio.Queue[str] = asyncio.Queue()

    async def wake(chain: str) -> None:
        woken.put_nowait(chain)
        if woken.qsize() == 1:
            raise KeyError("nobody foresaw this")

    async with opened(ws_url=anvil.ws_url) as watch:
        following = asyncio.create_task(follow_heads(watch.chain, wake))
        async with asyncio.timeout(60):
            while woken.qsize() < 2:
                await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _mine_until(node: Anvil, woken: "asyncio.Queue[str]") -> str:
    async with asyncio.timeout(60):
        while True:
            await node.mine()
            try:
                return await asyncio.wait_for(woken.get(), 0.3)
            except TimeoutError:
                continue


async def test_without_a_websocket_nothing_is_followed(watch: Watch) -> None:
    assert watch.chain.ws_url is None
    await asyncio.wait_for(follow_heads(watch.chain, asyncio.Queue[str]().put), 60)


async def test_a_rescan_below_the_kept_headers_adds_none(opened: OpenWatch, anvil: Anvil) -> None:
    """One that stood there by itself would be a gap."""
    async with opened(finality=SHALLOW) as watch:
        await watch.mine_and_scan(6)
        async with watch.context.db.write() as session:
            await chains.delete_headers_below(session, watch.chain.chain_id, 4)
        kept = [row.number for row in await watch.rows(BlockHeader)]
        async for reread in rescan_blocks(watch.context, watch.chain, 2, None):
            assert reread.problem is None
        assert [row.number for row in await watch.rows(BlockHeader)] == kept

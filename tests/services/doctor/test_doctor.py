"""Goal: whatever is broken, the very check that looks at it says so with a remedy, and no other one cries for it."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from sqlalchemy import text, update

from app import __version__
from app.blockchain.wallet import account_xpub, new_mnemonic
from app.core import limits, queue
from app.core.chains import Finality, Native, Sweep, Token
from app.core.clock import utc_now
from app.core.evm import to_bytes20
from app.core.ids import new_id
from app.core.queue import WakeUps
from app.core.vitals import keep_vitals
from app.db import schema
from app.db.engine import Database
from app.db.models import (
    ChainState,
    NonceLane,
    Payment,
    PaymentOption,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookReceiver,
)
from app.db.models import Sweep as SweepRow
from app.db.repositories import delivery_log, diagnosis
from app.services import doctor, pauses
from app.services.blockchain import control
from app.services.blockchain.backup import rescan_blocks
from app.services.context import open_context
from app.services.doctor import Check, Finding, admit, disk, examine, make_patient
from app.services.doctor.configuration import check_wallet
from app.services.doctor.processes import check_workers
from app.services.metrics import exposition
from app.services.status import health, swept_lanes
from app.workers.audit import reconcile_task
from app.workers.listener import Listener
from app.workers.runner import TASKS
from tests.services.doctor.conftest import WAIT_S, System
from tests.support.anvil import Anvil
from tests.support.exposition import read_exposition
from tests.support.gateway import chains_of
from tests.support.node import Call, ProxyNode, ScriptedNode, failure, result

# arq closes its pool under a name that redis calls old; workers in this process say it where other tests start them.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")

# Nobody serves and works while a test breaks something: the one who did would mend it, or break it further.
NOBODY = {"worker:listener", "worker:webhook", "process:server"}
TREASURY = to_bytes20("0x" + "7e" * 20)
SWEPT = Sweep(mode="auto", treasury=TREASURY)

Break = Callable[[System], Awaitable[None]]


def failed_of(found: dict[str, Finding]) -> set[str]:
    return {check for check, finding in found.items() if finding.result == "failed"}


def assert_named(found: dict[str, Finding], check: str, said: str, remedy: str, outcome: str = "failed") -> None:
    finding = found[check]
    assert finding.result == outcome, finding
    assert said in finding.found, finding
    assert remedy in finding.remedy, finding
    if re.search(r"chains\.yaml|rpc_urls of|a node or plan", finding.remedy):  # they are read at the start alone
        assert "then restart server and workers" in finding.remedy, finding


async def test_a_healthy_system_has_nothing_to_say(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check is ok, and nothing in the database was changed by looking."""
    monkeypatch.setattr(limits, "DOCTOR_LOOP_LAG_S", 60.0)  # all are in one process, on a machine that may be busy
    monkeypatch.setattr(limits, "DOCTOR_LATENCY_S", 60.0)
    async with system.running():
        found = await system.until(lambda seen: {each.result for each in seen.values()} == {"ok"})
    assert {"settings"} | set(found) >= {
        *("secret key", "wallet", "stored secrets", "database", "schema", "locks", "slow queries", "orphan rows"),
        *("payment states", "amounts", "headers:devnet", "redis", "redis memory", "queue:listener", "worker:listener"),
        *("process:server", "process:listener,webhook", "rpc:devnet#0", "tokens:devnet", "chain:devnet"),
        *("tasks:devnet", "tasks:webhook", "balances:devnet", "backup:devnet"),
        *("webhooks due", "webhooks dead", "webhook endpoints", "sweeps", "clock:redis", "clock:devnet"),
    }
    assert all(not finding.remedy for finding in found.values())


async def test_looking_changes_nothing(system: System) -> None:
    before = await system.watch.dump()
    await system.examine()
    assert await system.watch.dump() == before


# --- the database


@dataclass(frozen=True)
class Fault:
    """`said` and `remedy` are parts of what the finding says. `also`: other checks that must fail with it."""

    name: str
    break_it: Break
    check: str
    said: str
    remedy: str
    also: frozenset[str] = frozenset()


async def lose_cursor(system: System) -> None:
    await system.execute("DELETE FROM chain_states")


async def halt(system: System) -> None:
    await system.execute("UPDATE chain_states SET halt_code = 'reorg', halt_detail = 'a fork below finality'")


async def contradict(system: System) -> None:
    await system.execute("UPDATE chain_states SET halt_code = 'config', halt_detail = 'other decimals'")


async def stand_still(system: System) -> None:
    long_ago = utc_now() - timedelta(hours=1)
    async with system.watch.context.db.write() as session:
        await session.execute(update(ChainState).values(head_seen_at=long_ago))


async def rename(system: System) -> None:
    await system.execute("UPDATE chain_states SET name = 'former'")


async def go_back(system: System) -> None:
    await schema.downgrade(system.settings.database_url, "base")


async def add_index(system: System) -> None:
    await system.execute("CREATE INDEX ix_by_hand ON payments (description)")


async def credit_too_much(system: System) -> None:
    async with system.watch.context.db.write() as session:
        mine = PaymentOption.payment_id == system.paid.id
        await session.execute(update(PaymentOption).where(mine).values(received_units=26_000_000))


async def lose_header(system: System) -> None:
    await system.execute("DELETE FROM block_headers WHERE number = 3")


async def bend_header(system: System) -> None:
    await system.execute("UPDATE block_headers SET parent_hash = :hash WHERE number = 4", hash=b"\x01" * 32)


async def lose_newest_header(system: System) -> None:
    await system.execute("DELETE FROM block_headers WHERE number = (SELECT max(number) FROM block_headers)")


async def confirm_unpaid(system: System) -> None:
    async with system.watch.context.db.write() as session:
        values = {"status": "confirmed", "detected_at": utc_now(), "confirmed_at": utc_now()}
        await session.execute(update(Payment).where(Payment.id == system.unpaid.id).values(values))


async def lose_event(system: System) -> None:
    await system.execute("DELETE FROM events WHERE type = 'payment.detected'")


async def forget_time(system: System) -> None:
    await system.execute("UPDATE payments SET confirmed_at = NULL")


async def settle_without_outflow(system: System) -> None:
    system.chain = replace(system.chain, sweep=SWEPT)
    async with system.watch.context.db.write() as session:
        values = {"status": "settled", "settled_at": utc_now(), "settled_by_sweep": True}
        await session.execute(update(Payment).where(Payment.id == system.paid.id).values(values))


async def delivery(system: System, **values: Any) -> None:
    async with system.watch.context.db.write() as session:
        event_id = (await session.execute(text("SELECT min(id) FROM events"))).scalar_one()
        row = {
            "id": new_id("dlv"),
            "merchant_id": system.watch.merchant_id,
            "payment_id": system.paid.id,
            "event_id": event_id,
            "event_version": 1,
            "url": "https://shop.example.com/hook",
            "receiver": "shop",
            "status": "pending",
            "attempt_count": 1,
            "failure_count": 1,
            "manual": False,
            "created_at": utc_now(),
        }
        session.add(WebhookDelivery(**row | values))


async def give_up(system: System) -> None:
    await delivery(system, status="dead", dead_reason="attempts_used_up")


async def owe(system: System) -> None:
    await delivery(system, next_attempt_at=utc_now() - timedelta(minutes=10))


async def disable_endpoint(system: System, reason: str = "failing") -> None:
    async with system.watch.context.db.write() as session:
        session.add(
            WebhookEndpoint(
                id=new_id("whe"),
                merchant_id=system.watch.merchant_id,
                url="https://shop.example.com/hook",
                secret=b"sealed",
                old_secrets=[],
                created_at=utc_now(),
                disabled_at=utc_now(),
                disabled_reason=reason,
            )
        )


async def freeze(system: System) -> None:
    async with system.watch.context.db.write() as session:
        session.add(
            SweepRow(
                id="swp_frozen",
                chain_id=system.chain.chain_id,
                kind="native",
                asset=bytes(20),
                account=bytes(19) + b"\x09",
                nonce=0,
                status="frozen",
                created_at=utc_now(),
            )
        )


async def run_out_of_gas(system: System) -> None:
    """The account that the last round looked at has nothing."""
    await gas_account(system, looked_at=utc_now())


async def stop_sweeping(system: System) -> None:
    await gas_account(system, looked_at=utc_now() - timedelta(hours=1))


async def never_sweep(system: System) -> None:
    """As where the sweeper has no key: its chain is swept, money waits, and no round ever was."""
    system.chain = replace(system.chain, sweep=SWEPT)
    async with system.watch.context.db.write() as session:
        waits = {"confirmed_at": utc_now() - timedelta(hours=1)}
        await session.execute(update(Payment).where(Payment.id == system.paid.id).values(waits))


async def gas_account(system: System, **values: Any) -> None:
    system.chain = replace(system.chain, sweep=SWEPT)
    async with system.watch.context.db.write() as session:
        lane = {"chain_id": system.chain.chain_id, "account": bytes(19) + b"\x77", "is_deposit": False, "next_nonce": 0}
        session.add(NonceLane(**lane | {"balance_units": 0, "short_units": 10**17} | values))


# --- Redis, nodes, clocks, configuration


async def stop_redis(system: System) -> None:
    system.redis.stop()


async def stop_node(system: System) -> None:
    await system.watch.anvil.stop()


async def other_chain_id(system: System) -> None:
    system.chain = replace(system.chain, chain_id=31338)


async def move_node_ahead(system: System) -> None:
    await system.watch.anvil.increase_time(3600)
    await system.watch.anvil.mine()


async def wrong_decimals(system: System) -> None:
    [token] = system.chain.tokens
    system.chain = replace(system.chain, tokens=(replace(token, decimals=8),))


async def no_token(system: System) -> None:
    system.chain = replace(system.chain, tokens=(Token("USDC", b"\x01" * 20, 6),))


async def other_wallet(system: System) -> None:
    system.configure(xpub=account_xpub(new_mnemonic()))


async def bad_xpub(system: System) -> None:
    system.configure(xpub="xpubNonsense")


async def other_secret_key(system: System) -> None:
    system.configure(secret_key="another-key-9aB3xK7qWm2ZtYp5vLc8-Jr6")


async def no_secret_key(system: System) -> None:
    system.settings = system.settings.model_copy(update={"secret_key": None})


FAULTS = [
    Fault("missing cursor", lose_cursor, "chain:devnet", "no cursor (ChainState)", "python -m app.workers"),
    Fault("halted chain", halt, "chain:devnet", "halted (reorg): a fork", "paywatch chain resume devnet"),
    Fault("halted by config", contradict, "chain:devnet", "halted (config): other decimals", "mend chains.yaml"),
    Fault("cursor stale", stand_still, "chain:devnet", "does not advance", "python -m app.workers --roles listener"),
    Fault("renamed chain", rename, "chain:devnet", "calls chain id 31337 'former'", "call it former again"),
    Fault("schema behind", go_back, "schema", "has no schema yet", "python migrate.py upgrade"),
    Fault(
        "extra index", add_index, "schema", "index payments.ix_by_hand is in the database and not", "migrate.py check"
    ),
    Fault("amounts", credit_too_much, "amounts", "26000000 USDC units, its transfers 25000000", "paywatch reconcile"),
    Fault("header gap", lose_header, "headers:devnet", "blocks 3 to 3 are missing", "rescan --chain devnet --from 3"),
    Fault(
        "headers unlinked", bend_header, "headers:devnet", "block 4 is not the child", "rescan --chain devnet --from 3"
    ),
    Fault("no newest header", lose_newest_header, "headers:devnet", "header of the cursor", "paywatch rescan --chain"),
    Fault("unpaid, confirmed", confirm_unpaid, "payment states", "do not bear that out", "paywatch payments show pay_"),
    Fault("event lost", lose_event, "payment states", "at version 3 with 2 events", "paywatch payments show pay_"),
    Fault("time lost", forget_time, "payment states", "its times say otherwise", "paywatch payments show pay_"),
    Fault(
        *("settled, no outflow", settle_without_outflow, "payment states", "do not bear that out", "paywatch payments"),
        also=frozenset({"worker:sweeper"}),
    ),
    Fault("dead webhook", give_up, "webhooks dead", "1, 1 of them made within a week", "webhooks replay --since 20"),
    Fault("webhook owed", owe, "webhooks due", "the oldest for 6", "python -m app.workers --roles webhook"),
    Fault("endpoint disabled", disable_endpoint, "webhook endpoints", "(failing)", "PATCH /v1/webhook_endpoints/whe_"),
    Fault("frozen sweep", freeze, "sweeps:devnet", "1 frozen: swp_frozen", "paywatch sweep release swp_frozen"),
    Fault(
        *("no gas", run_out_of_gas, "gas:devnet", "holds 0 ETH; a round needs 0.1 ETH more", "send 0.1 ETH to 0x"),
        also=frozenset({"worker:sweeper"}),
    ),
    Fault(
        *("no rounds", stop_sweeping, "gas:devnet", "the last round was 36", "--roles sweeper"),
        also=frozenset({"worker:sweeper"}),
    ),
    Fault(
        *("no key", never_sweep, "gas:devnet", "no round has ever been, and confirmed money has", "PAYWATCH_MNEMONIC"),
        also=frozenset({"worker:sweeper"}),
    ),
    Fault("node stopped", stop_node, "rpc:devnet#0", "http://127.0.0.1:", "start the node"),
    Fault(
        *(
            "wrong chain id",
            other_chain_id,
            "rpc:devnet#0",
            "of chain id 31337, chains.yaml says 31338",
            "mend rpc_urls",
        ),
        also=frozenset({"chain:devnet"}),
    ),
    Fault("clock skew", move_node_ahead, "clock:devnet", "ahead of this machine's clock", "timedatectl set-ntp"),
    Fault(
        "decimals", wrong_decimals, "tokens:devnet", "it has 6 decimals, chains.yaml says 8", "mend tokens of devnet"
    ),
    Fault("no token", no_token, "tokens:devnet", "no token answers", "mend tokens of devnet"),
    Fault("other wallet", other_wallet, "wallet", "was made from another wallet", "PAYWATCH_XPUB"),
    Fault("bad xpub", bad_xpub, "wallet", "not an extended public key", "PAYWATCH_XPUB"),
    Fault("other secret key", other_secret_key, "stored secrets", "cannot be decrypted", "PAYWATCH_SECRET_KEY"),
    Fault(
        *("no secret key", no_secret_key, "secret key", "PAYWATCH_SECRET_KEY is not set", "openssl rand"),
        also=frozenset({"stored secrets"}),
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_a_fault_is_named_with_its_remedy_and_alone(system: System, fault: Fault) -> None:
    await fault.break_it(system)
    found = await system.examine()
    assert failed_of(found) - NOBODY == {fault.check} | fault.also
    assert_named(found, fault.check, fault.said, fault.remedy)


# --- what somebody wants so


async def test_what_an_operator_stopped_is_no_failure_beside_its_pause(system: System) -> None:
    await owe(system)
    await stop_sweeping(system)
    found = await system.examine()
    assert failed_of(found) - NOBODY == {"webhooks due", "gas:devnet", "worker:sweeper"}
    for what in (pauses.WEBHOOKS, pauses.SWEEPING):
        await pauses.pause(system.watch.context, what, "a dispute", "ops")
    await control.halt(system.watch.context, system.watch.chain, "maintenance", "ops")
    found = await system.examine()
    assert failed_of(found) - NOBODY == {"worker:sweeper"}
    assert_named(found, "chain:devnet", "halted by ops", "paywatch chain resume devnet", "warning")


async def test_a_chain_that_is_halted_has_no_rounds_to_miss(system: System) -> None:
    await stop_sweeping(system)
    await halt(system)
    assert failed_of(await system.examine()) - NOBODY == {"chain:devnet", "worker:sweeper"}


async def test_the_gas_account_of_a_wallet_that_the_sweeper_no_longer_has_is_no_fault(system: System) -> None:
    """A sweeper that was given a wrong key has left an empty gas account, at which no round looks again."""
    rich = to_bytes20(system.watch.anvil.accounts[0])
    await gas_account(system, account=rich, balance_units=10**18, short_units=0, looked_at=utc_now())
    for last_byte in (b"\x00", b"\xff"):
        await gas_account(system, account=last_byte * 20, looked_at=utc_now() - timedelta(hours=1))
    assert (await system.examine())["gas:devnet"].result == "ok"
    context = open_context(system.settings, system.chains)
    try:
        async with context.db.read() as session:
            assert [lane.account for lane in await swept_lanes(context, session)] == [rich]
    finally:
        await context.close()


class OutOfReach(type(Path())):  # type: ignore[misc]
    """In a folder that lets nobody look into it."""

    def is_dir(self) -> bool:
        raise PermissionError(13, "Permission denied")


async def test_a_disk_that_stops_sqlite_is_named(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes and workers look guilty of it. Shown with higher limits; to root no folder is closed."""
    found = await system.examine()
    if system.postgres is not None:
        assert "disk" not in found
        return
    assert_named(found, "disk", "MiB free at ", "", "ok")
    monkeypatch.setattr("app.core.limits.DOCTOR_DISK_LOW_BYTES", 2**62)
    assert_named(await system.examine(), "disk", "MiB free at ", "make room", "warning")
    monkeypatch.setattr("app.core.limits.DOCTOR_DISK_FULL_BYTES", 2**62)
    assert_named(await system.examine(), "disk", "MiB free at ", "make room")
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        assert_named(await system.examine(), "disk", "cannot be written to by uid", "run it as the user")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "Path", OutOfReach)
        assert_named(await system.examine(), "disk", "cannot be written to by uid", "run it as the user")


async def test_a_receiver_that_is_only_probed_makes_nothing_late(system: System) -> None:
    await owe(system)
    async with system.watch.context.db.write() as session:
        now = utc_now()
        session.add(
            WebhookReceiver(
                receiver="shop",
                failure_count=limits.WEBHOOK_BREAKER_FAILURES,
                failing_since=now,
                last_failed_at=now,
                probe_at=now,
            )
        )
    assert failed_of(await system.examine()) - NOBODY == set()


async def test_an_endpoint_that_its_merchant_disabled_has_nothing_given_up(system: System) -> None:
    """Each event makes it a dead delivery, for a replay once it is enabled; nobody tried to send it."""
    await disable_endpoint(system, "merchant")
    await delivery(system, status="dead", dead_reason="endpoint_disabled")
    assert failed_of(await system.examine()) - NOBODY == set()
    async with system.watch.context.db.read() as session:
        assert (await delivery_log.counts(session, utc_now())).dead == 0


async def test_an_endpoint_that_says_it_is_gone_is_a_warning(system: System) -> None:
    await disable_endpoint(system, "gone")
    assert_named(await system.examine(), "webhook endpoints", "(gone)", "PATCH /v1/webhook_endpoints/whe_", "warning")


@pytest.mark.parametrize("break_it", [lose_header, bend_header, lose_newest_header])
async def test_the_remedy_of_a_broken_line_of_headers_mends_it(system: System, break_it: Break) -> None:
    before = await system.watch.dump()
    await break_it(system)
    remedy = (await system.examine())["headers:devnet"].remedy
    found = re.fullmatch(r"paywatch rescan --chain devnet --from (\d+)", remedy)
    assert found is not None
    async for reread in rescan_blocks(system.watch.context, system.watch.chain, int(found[1]), None):
        assert reread.problem is None
    assert await system.watch.dump() == before
    await system.watch.mine_and_scan()
    assert (await system.examine())["headers:devnet"].result == "ok"


async def test_what_needs_redis_is_not_looked_at_without_it(system: System) -> None:
    await stop_redis(system)
    found = await system.examine()
    assert failed_of(found) == {"redis"}
    assert_named(found, "redis", "redis://127.0.0.1:", "start Redis")
    for check in ("queues", "workers"):
        assert_named(found, check, "not checked: Redis is away", "mend redis first", "warning")


async def test_what_needs_the_database_is_not_looked_at_without_it(system: System, tmp_path: Path) -> None:
    gone = f"sqlite+aiosqlite:///{tmp_path}/nowhere/gone.db"
    system.configure(database_url="postgresql+asyncpg://paywatch:hunter2@127.0.0.1:1/gone" if system.postgres else gone)
    found = await system.examine()
    assert failed_of(found) - NOBODY == {"database"}
    assert "hunter2" not in str(found)
    assert found["payments"].found.startswith("not checked: ")
    assert found["rpc:devnet#0"].result == "ok"
    assert not (tmp_path / "nowhere").exists()  # looking makes nothing


async def test_orphan_rows_are_found(system: System) -> None:
    if system.postgres is not None:
        pytest.skip("PostgreSQL refuses them")
    async with system.watch.context.db.engine.connect() as connection:
        await connection.rollback()
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        await raw.driver_connection.execute("PRAGMA foreign_keys=OFF")
        await raw.driver_connection.execute("DELETE FROM merchants")
        await raw.driver_connection.execute("PRAGMA foreign_keys=ON")
    found = await system.examine()
    assert failed_of(found) - NOBODY == {"orphan rows"}
    assert_named(found, "orphan rows", "payments without its merchants", "paywatch restore")


async def test_a_transaction_that_holds_others_up_is_named(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOCTOR_QUERY_S", 0.0)
    monkeypatch.setattr(limits, "DOCTOR_LOCK_WAIT_S", 0.1)
    async with system.watch.context.db.write() as session:
        await session.execute(text("UPDATE payments SET description = 'held'"))
        waiting = None if system.postgres is None else asyncio.create_task(system.execute("DELETE FROM payments"))
        found = await system.until(lambda seen: "locks" in failed_of(seen))
        if system.postgres is None:
            assert_named(found, "locks", "held the writer's place", "fuser")
        else:
            assert_named(found, "locks", "and others wait for it", "SELECT pg_terminate_backend(")
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.parametrize("application", ["pg_dump", "psql"])
async def test_what_lasts_and_is_in_nobodys_way_is_not_to_be_killed(
    system: System, monkeypatch: pytest.MonkeyPatch, application: str
) -> None:
    """A backup reads for hours in one transaction; it is let alone even where a migration waits for it."""
    if system.postgres is None:
        pytest.skip("SQLite has no list of sessions")
    monkeypatch.setattr(limits, "DOCTOR_QUERY_S", 0.0)
    monkeypatch.setattr(limits, "DOCTOR_TRANSACTION_S", 0.0)
    await system.execute("CREATE TABLE by_hand (id integer)")
    other = Database(system.settings.database_url)
    async with other.read() as session:
        await session.execute(text(f"SET application_name = '{application}'"))
        await session.execute(text("SELECT id FROM by_hand"))
        tasks = []
        if application == "pg_dump":
            tasks.append(asyncio.create_task(system.execute("TRUNCATE by_hand")))
            await until_blocked(system)
        tasks.append(asyncio.create_task(session.execute(text("SELECT pg_sleep(600)"))))
        remedy = "let it end" if application == "pg_dump" else "TABLE pg_stat_activity"
        found = await system.until(lambda seen: remedy in seen["slow queries"].remedy)
        for check in ("locks", "slow queries"):
            assert_named(found, check, "session ", remedy, "warning")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await other.close()


async def until_blocked(system: System) -> None:
    """Until a session waits for another one."""
    async with asyncio.timeout(WAIT_S):
        while True:
            async with system.watch.context.db.read() as session:
                if any(each.blocked_by is not None for each in await diagnosis.other_sessions(session)):
                    return
            await asyncio.sleep(0.05)


# --- nodes that lack something


def without(*methods: str) -> Callable[[Call, Call], Call]:
    def change(call: Call, answer: Call) -> Call:
        return (
            failure(call, -32601, f"the method {call['method']} does not exist")
            if call["method"] in methods
            else answer
        )

    return change


def without_receipts(call: Call, answer: Call) -> Call:
    return result(call, None) if call["method"] == "eth_getTransactionReceipt" else answer


def without_tag(call: Call, answer: Call) -> Call:
    return result(call, None) if call["params"][:1] == ["finalized"] else answer


def without_history(call: Call, answer: Call) -> Call:
    is_old = call["method"] == "eth_call" and isinstance(call["params"][1], dict)
    return failure(call, -32000, "missing trie node") if is_old else answer


@pytest.mark.parametrize(
    ("change", "described", "said"),
    [
        (without("eth_getTransactionReceipt"), {}, "has no receipts"),
        (without_receipts, {}, "has no receipts"),
        (without("eth_getLogs"), {}, "has no logs by block hash"),
        (
            without("debug_traceBlockByHash", "trace_block"),
            {"native": Native(detect="trace")},
            "debug_traceBlockByHash",
        ),
        (without_tag, {"finality": Finality(tag="finalized")}, "has no the block tag finalized"),
        (without_history, {"native": Native(detect="balances")}, "has no balances at an older block's hash"),
    ],
    ids=["receipts", "null-receipts", "logs", "trace", "tag", "history"],
)
async def test_a_node_that_lacks_a_method_is_named(
    system: System, change: Callable[[Call, Call], Call], described: dict[str, Any], said: str
) -> None:
    system.chain = replace(system.chain, **described)
    assert (await system.examine())["rpc:devnet#0"].result == "ok"
    await system.watch.anvil.send_ether(4, system.watch.anvil.accounts[3], 1)
    await system.watch.anvil.mine()
    async with ProxyNode(system.watch.anvil.url, change) as node:
        await system.add_node(f"{node.url}/v3/rpc-key-of-the-operator")
        found = await system.examine()
    assert failed_of(found) - NOBODY == {"rpc:devnet#1"}
    assert_named(found, "rpc:devnet#1", said, "use a node or plan that has it")
    assert "rpc-key-of-the-operator" not in str(found)


def behind(call: Call, answer: Call) -> Call:
    """As a backend behind the same balancer says that has not seen the block yet."""
    return failure(call, -32000, "unknown block") if call["method"] == "eth_getLogs" else answer


def busy(call: Call, answer: Call) -> Call:
    return failure(call, -32000, "request timed out") if call["method"] == "eth_getLogs" else answer


@pytest.mark.parametrize("change", [behind, busy])
async def test_a_node_that_could_not_say_is_no_node_that_lacks_it(
    system: System, change: Callable[[Call, Call], Call]
) -> None:
    async with ProxyNode(system.watch.anvil.url, change) as node:
        await system.add_node(node.url)
        found = await system.examine()
    assert failed_of(found) - NOBODY == set()
    assert_named(found, "rpc:devnet#1", "could not be asked for logs by block hash", "run it again", "warning")


async def test_a_node_that_limits_our_calls_is_named(system: System) -> None:
    def limited(_payload: Any) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "60"})

    async with ScriptedNode(limited) as node:
        await system.add_node(node.url)
        found = await system.examine()
    assert failed_of(found) - NOBODY == {"rpc:devnet#1"}
    assert_named(found, "rpc:devnet#1", "limits our calls", "raise its plan's limit")


async def test_a_node_that_lags_behind_the_others_is_named(system: System) -> None:
    async with Anvil(extra_args=["--timestamp", str(int(time.time()) - 3600)]) as old:
        await system.add_node(old.url)
        found = await system.examine()
    assert failed_of(found) - NOBODY == {"rpc:devnet#1"}
    assert_named(found, "rpc:devnet#1", "s behind the others'", "put it last in rpc_urls")


async def test_a_head_that_stands_still_is_named_on_a_chain_that_never_rests(system: System) -> None:
    async with Anvil(extra_args=["--timestamp", str(int(time.time()) - 3600)]) as old:
        await system.add_node(old.url, first=True)
        assert (await system.examine())["rpc:devnet#0"].result == "ok"
        system.chain = replace(system.chain, max_head_age_s=180.0)
        found = await system.examine()
    assert_named(found, "rpc:devnet#0", "its newest block is 36", "put another node into rpc_urls")


class InStep(ProxyNode):
    """Answers its nth request when the other one has been asked as often: where one waits for the other, none does."""

    def __init__(self, target: str, chain_id: int) -> None:
        super().__init__(target, lambda call, answer: _with_chain_id(call, answer, chain_id))
        self.other: InStep | None = None

    async def respond(self, payload: Any) -> web.Response:
        number = len(self.bodies)
        while self.other is not None and len(self.other.bodies) < number:
            await asyncio.sleep(0.01)
        return await super().respond(payload)


def _with_chain_id(call: Call, answer: Call, chain_id: int) -> Call:
    return result(call, hex(chain_id)) if call["method"] == "eth_chainId" else answer


async def test_chains_are_looked_at_at_once_so_two_nodes_that_hang_cost_no_other_finding(system: System) -> None:
    url = system.watch.anvil.url
    async with InStep(url, 31337) as one, InStep(url, 4242) as two:
        one.other, two.other = two, one
        first = replace(system.chain, rpc_urls=(one.url,))
        second = replace(system.chain, name="second", chain_id=4242, rpc_urls=(two.url,))
        patient = make_patient(system.settings, chains_of(first, second))
        try:
            found = {each.check: each.result for each in await examine(patient)}
        finally:
            await patient.context.close()
    for check in ("rpc:devnet#0", "rpc:second#0", "tokens:devnet", "tokens:second", "clock:devnet", "clock:second"):
        assert found[check] == "ok"


async def test_a_clock_that_is_fast_is_told_by_a_chain_that_never_rests(system: System) -> None:
    """The database's and Redis' may be the same machine's; two minutes are no lag of a node yet."""
    system.chain = replace(system.chain, tokens=())
    async with Anvil(extra_args=["--timestamp", str(int(time.time()) - 120)]) as slow:
        await system.add_node(slow.url, first=True)
        assert (await system.examine())["clock:devnet"].result == "ok"
        system.chain = replace(system.chain, max_head_age_s=3600.0)
        found = await system.examine()
    assert_named(found, "clock:devnet", "s old by this machine's clock", "timedatectl set-ntp true", "warning")


async def test_a_node_that_hangs_is_given_up(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DOCTOR_NODE_S", 0.5)
    async with Anvil() as hung:
        await system.add_node(hung.url)
        hung.pause()
        try:
            found = await system.examine()
        finally:
            hung.resume()
    assert_named(found, "rpc:devnet#1", "no answer within", "start the node")


async def test_a_websocket_that_pushes_nothing_is_a_warning(system: System) -> None:
    key = "rpc-key-of-the-operator"
    system.chain = replace(system.chain, ws_url=system.watch.anvil.ws_url)
    assert (await system.examine())["ws:devnet"].result == "ok"
    system.chain = replace(system.chain, ws_url=f"ws://127.0.0.1:9/{key}")
    found = await system.examine()
    assert_named(found, "ws:devnet", "ws://127.0.0.1:9", "mend ws_url of devnet", "warning")
    assert key not in str(found)
    async with Anvil(chain_id=4242) as other:
        system.chain = replace(system.chain, ws_url=other.ws_url)
        assert_named(await system.examine(), "ws:devnet", "it is of chain id 4242", "mend ws_url of devnet", "warning")


async def test_a_token_that_calls_itself_otherwise_is_a_warning(system: System) -> None:
    other = await system.watch.anvil.deploy("TestToken", "Fake", "FAKE", 6)
    system.chain = replace(system.chain, tokens=(Token("USDC", to_bytes20(other), 6),))
    assert_named(await system.examine(), "tokens:devnet", "calls itself 'FAKE'", "is the right one", "warning")


# --- Redis and processes


async def test_a_redis_that_evicts_is_a_warning(system: System) -> None:
    redis = queue.connect(system.settings.redis_url)
    try:
        await redis.config_set("maxmemory", "100mb")
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        found = await system.examine()
    finally:
        await redis.config_set("maxmemory", "0")
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.aclose(close_connection_pool=True)
    assert_named(found, "redis memory", "allkeys-lru", "maxmemory-policy noeviction", "warning")


async def test_jobs_that_nobody_takes_are_named(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    wake_ups = WakeUps(queue.connect(system.settings.redis_url))
    await wake_ups.listener("devnet")
    await wake_ups.close()
    assert (await system.examine())["queue:listener"].found.startswith("1 jobs, the oldest for ")
    monkeypatch.setattr(limits, "DOCTOR_QUEUE_S", -1.0)
    found = await system.examine()
    assert_named(found, "queue:listener", "1 jobs", "python -m app.workers --roles listener")


async def test_workers_and_servers_that_are_gone_are_named(system: System) -> None:
    assert_named(await system.examine(), "process:server", "no API server tells of itself", "python server.py")
    async with system.running():
        assert not failed_of(await system.examine())
    found = await system.examine()
    assert failed_of(found) == {"worker:listener", "worker:webhook"}  # the server's vitals end by themselves
    assert_named(found, "worker:listener", "listen_for_payments", "python -m app.workers --roles listener")
    assert_named(found, "worker:webhook", "send_webhook_task", "python -m app.workers --roles webhook")


async def test_a_task_that_is_dead_in_a_living_worker_is_named(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doctor, health and metrics name the task, and say that its worker lives."""
    monkeypatch.delitem(TASKS["listener"], queue.BACKUP_TASK)
    monkeypatch.setattr(limits, "BACKUP_EVERY_S", 0.5)
    monkeypatch.setattr(limits, "TASK_LATE_S", 3.0)
    wake_ups = WakeUps(queue.connect(system.settings.redis_url))
    async with system.running():
        found = await system.until(lambda seen: "last done too long ago: backup_pass " in seen["tasks:devnet"].found)
        assert_named(found, "tasks:devnet", "backup_pass ", "python -m app.workers --roles listener")
        assert found["worker:listener"].result == "ok"
        checks = {check.name: check for check in (await health(system.watch.context, wake_ups)).checks}
        assert checks["tasks:devnet"].status == "degraded"
        assert checks["tasks:devnet"].detail.startswith("last done too long ago: ")
        assert "backup_pass " in checks["tasks:devnet"].detail
        assert checks["worker:listener"].status == "ok"
        told = read_exposition((await exposition(system.watch.context, wake_ups)).decode())
        assert told.value("paywatch_task_late", task="backup_pass", chain="devnet") == 1
        assert told.value("paywatch_task_age_seconds", task="backup_pass", chain="devnet") > 3
        assert told.value("paywatch_worker_alive", role="listener") == 1
    assert (await system.examine())["tasks:devnet"].result == "ok"  # `worker:listener` says it, once that is dead
    await wake_ups.close()


async def test_balances_that_are_not_as_recorded_are_named(system: System) -> None:
    """An hour's comparison finds what nobody recorded."""
    wake_ups = WakeUps(queue.connect(system.settings.redis_url))
    ctx = {"listener": Listener(system.watch.context, wake_ups), "redis": wake_ups.redis}
    await reconcile_task(ctx, "devnet")
    assert_named(await system.examine(), "balances:devnet", "as recorded", "", "ok")
    await system.execute("DELETE FROM transactions")
    await reconcile_task(ctx, "devnet")
    assert_named(await system.examine(), "balances:devnet", "1 differed", "paywatch reconcile --chain devnet")
    checks = {check.name: check.status for check in (await health(system.watch.context, wake_ups)).checks}
    assert checks["balances:devnet"] == "degraded"
    told = read_exposition((await exposition(system.watch.context, wake_ups)).decode())
    assert told.value("paywatch_reconcile_differences", chain="devnet") == 1
    await wake_ups.close()


async def test_a_comparison_that_is_not_whole_tells_what_it_found_and_never_that_all_is_well(system: System) -> None:
    """A token's balances cannot be read, those of native coin can."""
    wake_ups = WakeUps(queue.connect(system.settings.redis_url))
    ctx = {"listener": Listener(system.watch.context, wake_ups), "redis": wake_ups.redis}
    anvil = system.watch.anvil
    await anvil.rpc("anvil_setCode", system.watch.tokens["USDC"], "0x")
    for held_wei in (1, 0):
        await anvil.set_balance(system.paid.address, held_wei)
        await system.watch.mine_and_scan()
        await reconcile_task(ctx, "devnet")
        assert_named(await system.examine(), "balances:devnet", "1 differed", "paywatch reconcile --chain devnet")
    await wake_ups.close()


async def test_what_the_backup_pass_found_or_has_not_read_is_told(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_named(await system.examine(), "backup:devnet", "final blocks are still to be read", "", "ok")
    monkeypatch.setattr(limits, "DOCTOR_BACKUP_BLOCKS", 2)
    await system.execute("UPDATE chain_states SET finalized_block = last_scanned_block, backup_block = 0")
    assert_named(await system.examine(), "backup:devnet", "final blocks", "look at tasks:devnet", "warning")
    await system.execute("UPDATE chain_states SET missed_transfers = 2")
    assert_named(await system.examine(), "backup:devnet", "had missed 2 transfers", "`missed_by`", "warning")


async def test_an_event_loop_that_is_blocked_is_told(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_S", 2.0)  # the doctor looks oftener than that, so each has a block in it
    monkeypatch.setattr(limits, "VITALS_TICK_S", 0.1)
    monkeypatch.setattr(limits, "DOCTOR_LOOP_LAG_S", 60.0)
    redis = queue.connect(system.settings.redis_url)
    keeping = asyncio.create_task(keep_vitals(redis, "server"))
    try:
        await system.until(lambda found: found["process:server"].result == "ok")
        monkeypatch.setattr(limits, "DOCTOR_LOOP_LAG_S", 0.45)

        def is_told(found: dict[str, Finding]) -> bool:
            time.sleep(0.8)  # what blocks it
            return found["process:server"].result == "warning"

        found = await system.until(is_told)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await redis.aclose(close_connection_pool=True)
    assert_named(found, "process:server", "the loop is blocked", "more CPU", "warning")


async def test_a_process_whose_connections_are_all_in_use_is_named(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(limits, "VITALS_TICK_S", 0.1)
    redis = queue.connect(system.settings.redis_url)
    keeping = asyncio.create_task(keep_vitals(redis, "server"))
    try:
        await system.until(lambda found: found["process:server"].result == "ok")
        async with AsyncExitStack() as held:
            for _ in range(limits.DB_POOL_SIZE + limits.DB_POOL_OVERFLOW):
                session = await held.enter_async_context(system.watch.context.db.read())
                await session.connection()
            found = await system.until(lambda seen: seen["process:server"].result == "failed")
            assert found["database"].result == found["locks"].result == "ok"
        assert_named(found, "process:server", "all of its 20 database connections are in use", "`locks` and `slow")
        await system.until(lambda seen: seen["process:server"].result == "ok")
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await redis.aclose(close_connection_pool=True)


async def test_a_process_whose_memory_has_grown_is_told(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEARTBEAT_S", 0.2)
    mebibyte = 1024 * 1024
    redis = queue.connect(system.settings.redis_url)
    keeping = asyncio.create_task(keep_vitals(redis, "server"))
    try:
        found = await system.until(lambda seen: seen["process:server"].result == "ok")
        held = int(found["process:server"].found.rpartition(" MiB")[0].rpartition(" ")[2])
        monkeypatch.setattr(limits, "DOCTOR_RSS_BYTES", (held + 128) * mebibyte)
        leak = b"x" * (256 * mebibyte)
        found = await system.until(lambda seen: seen["process:server"].result == "warning")
        del leak
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await redis.aclose(close_connection_pool=True)
    assert_named(found, "process:server", "that is much", "restart the server on ", "warning")


async def test_a_workers_host_needs_no_wallet_and_an_embedded_servers_does(system: System) -> None:
    """The compose file gives its listener's and webhook's worker none, and the doctor is content there."""
    async with system.running():
        system.configure(xpub=None)
        found = await system.until(lambda seen: not failed_of(seen))
    assert found["wallet"].result == "ok"
    assert "right for a worker of the listener's and webhook's roles" in found["wallet"].found
    system.settings = system.settings.model_copy(update={"redis_url": None})
    assert system.settings.embedded
    patient = make_patient(system.settings, system.chains)
    try:
        found = {finding.check: finding for finding in await check_wallet(patient)}
    finally:
        await patient.context.close()
    assert_named(found, "wallet", "no wallet is configured", "paywatch keys init")


async def test_no_process_is_missed_among_many(system: System) -> None:
    """The server and its key are found in whichever order Redis names the processes; what is well is told shortly."""
    now = {
        "loop_lag_s": "0",
        "rss_bytes": "0",
        "pool_in_use": "0",
        "pool_limit": "20",
        "started_at": "2026-01-01T00:00",
    }
    async with system.running():
        redis = queue.connect(system.settings.redis_url)
        for pid in range(10 * limits.DOCTOR_ROWS):
            fields = {"host": "far", "pid": str(pid), "role": "listener", "version": __version__}
            await redis.hset(queue.vitals_key("far", pid, "listener"), mapping=now | fields)  # type: ignore[misc]
        late = now | {"host": "far", "pid": "999", "role": "webhook", "version": __version__, "loop_lag_s": "9"}
        await redis.hset(queue.vitals_key("far", 999, "webhook"), mapping=late)  # type: ignore[misc]
        await redis.aclose(close_connection_pool=True)
        system.configure(mnemonic=new_mnemonic(), xpub=None)
        patient = make_patient(system.settings, system.chains)
        try:
            found = await check_workers(patient)
        finally:
            await patient.context.close()
    by_check = {finding.check: finding for finding in found}
    assert_named(by_check, "api host", "has a private key", "PAYWATCH_MNEMONIC")
    assert failed_of(by_check) == {"api host"}, "there is a server"
    assert_named(by_check, "process:webhook", "the loop is blocked", "more CPU", "warning")
    well = [finding for finding in found if finding.check.startswith("process:") and finding.result == "ok"]
    assert len(well) == limits.DOCTOR_ROWS
    assert re.fullmatch(r"18\d more are well", by_check["processes"].found)


async def test_a_private_key_beside_the_api_server_is_named(system: System) -> None:
    words = new_mnemonic()
    async with system.running():
        system.configure(mnemonic=words, xpub=None)
        found = await system.examine()
    assert_named(found, "api host", "has a private key", "PAYWATCH_MNEMONIC")
    assert words not in str(found)


# --- files


async def test_files_that_others_can_read_are_named(system: System, tmp_path: Path) -> None:
    keystore = tmp_path / "wallet.json"
    keystore.write_text("{}")
    keystore.chmod(0o644)
    system.configure(keystore_file=keystore, keystore_password="correct horse battery")
    found = await system.examine()
    assert_named(found, "file:wallet.json", "mode 644", f"chmod 600 {keystore}")
    keystore.unlink()
    assert_named(await system.examine(), "file:wallet.json", "is not there", "give back the keystore")


async def test_every_file_with_a_secret_is_looked_at(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env_file, mounted = tmp_path / ".env", tmp_path / "api_key"
    env_file.write_text("PAYWATCH_API_KEY_FILE=api_key\n")
    mounted.write_text("pwk_0123456789")
    mounted.chmod(0o644)
    env_file.chmod(0o644)
    found = await system.examine()
    assert "file:.env" not in found  # it holds no secret itself
    assert_named(found, "file:api_key", "mode 644", "chmod 600 api_key", "warning")
    mounted.chmod(0o600)
    assert (await system.examine())["file:api_key"].result == "ok"
    env_file.write_text("PAYWATCH_MNEMONIC=some words\n")
    assert_named(await system.examine(), "file:.env", "mode 644", "chmod 600 .env")


async def test_a_sqlite_file_that_others_can_reach_is_a_warning(system: System, tmp_path: Path) -> None:
    if system.postgres is not None:
        pytest.skip("PostgreSQL keeps its files itself")
    path = tmp_path / "paywatch.db"
    path.chmod(0o644)
    assert f"file:{path.name}" not in await system.examine()  # its folder lets nobody in
    path.parent.chmod(0o755)
    assert_named(await system.examine(), f"file:{path.name}", "mode 644", f"chmod 600 {path}", "warning")


async def test_a_key_that_can_be_guessed_is_a_warning(system: System) -> None:
    system.configure(secret_key="changeme" * 4)
    assert_named(await system.examine(), "secret key", "different characters", "openssl rand", "warning")


# --- the doctor itself


async def test_a_check_that_crashes_or_hangs_is_a_finding(
    system: System, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def crash(_patient: object) -> list[Finding]:
        raise ZeroDivisionError("the database's password is hunter2")

    async def hang(_patient: object) -> list[Finding]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(doctor, "CHECKS", (Check("crashes", crash), Check("hangs", hang)))
    monkeypatch.setattr(limits, "DOCTOR_CHECK_S", 0.1)
    found = await system.examine()
    assert_named(found, "crashes", "ended with ZeroDivisionError", "paywatch doctor --bundle")
    assert_named(found, "hangs", "not done in", "run it again")
    assert "hunter2" not in str(found) + caplog.text


async def test_a_broken_configuration_is_the_first_finding_and_the_rest_is_looked_at(
    system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAYWATCH_DATABASE_URL", system.settings.database_url)
    monkeypatch.setenv("PAYWATCH_REDIS_URL", system.settings.redis_url)
    monkeypatch.setenv("PAYWATCH_XPUB", system.settings.xpub or "")
    monkeypatch.setenv("PAYWATCH_PORT", "eighty")
    found = await diagnosed()
    assert next(iter(found)) == "settings"
    assert_named(found, "settings", "PAYWATCH_PORT: ", "mend the variable")
    assert "eighty" not in str(found)
    assert found["database"].result == found["redis"].result == found["rpc:devnet#0"].result == "ok"

    monkeypatch.setenv("PAYWATCH_PORT", "8000")
    monkeypatch.setenv("PAYWATCH_DATABASE_URL", "mysql://u:hunter2@host/x")
    found = await diagnosed()
    assert_named(found, "settings", "PAYWATCH_DATABASE_URL", "mend")
    assert found["schema"].found == "not checked: PAYWATCH_DATABASE_URL is wrong"
    assert "hunter2" not in str(found)

    monkeypatch.setenv("PAYWATCH_DATABASE_URL", system.settings.database_url)
    (tmp_path / "chains.yaml").write_text("chains: nonsense")
    found = await diagnosed()
    assert_named(found, "chains.yaml", "must be a list", "mend chains.yaml")
    assert found["rpc"].found == "not checked: chains.yaml is wrong"
    assert found["database"].result == found["amounts"].result == "ok"

    monkeypatch.setenv("PAYWATCH_SECRET_KEY_FILE", str(tmp_path / "missing"))
    patient, findings = admit()
    assert patient is None
    assert (findings[0].check, "cannot be read" in findings[0].found) == ("settings", True)


async def diagnosed() -> dict[str, Finding]:
    patient, findings = admit()
    assert patient is not None
    try:
        return {finding.check: finding for finding in [*findings, *await examine(patient)]}
    finally:
        await patient.context.close()


async def test_embedded_mode_without_a_server_says_to_start_it(tmp_path: Path, system: System) -> None:
    system.configure(redis_url="", database_url=f"sqlite+aiosqlite:///{tmp_path}/data/paywatch.db", secret_key=None)
    patient = make_patient(system.settings, system.chains)
    found = {finding.check: finding for finding in await examine(patient)}
    await patient.context.close()
    assert_named(found, "redis", "no server runs in this folder", "python server.py")
    assert_named(found, "database", "is not there", "python server.py")


async def test_what_is_paused_is_a_warning_that_names_its_end(system: System) -> None:
    await pauses.pause(system.watch.context, pauses.WEBHOOKS, "a receiver moves", "ada")
    assert_named(await system.examine(), "pause:webhooks", "by ada since 20", "paywatch webhooks resume", "warning")


async def test_a_receiver_that_fails_is_told_by_its_last_answer(system: System) -> None:
    await delivery(system, id="dlv_a", url="https://shop.example.com/hook?key=of-the-shop", next_attempt_at=utc_now())
    async with system.watch.context.db.write() as session:
        for error in ("http_500", "http_401"):
            session.add(WebhookAttempt(delivery_id="dlv_a", at=utc_now(), duration_ms=1, error=error, manual=False))
            await session.flush()
    found = await system.examine()
    assert_named(
        found, "webhook receivers", "https://shop.example.com: http_401", "paywatch webhooks secret", "warning"
    )
    assert "http_500" not in found["webhook receivers"].found
    assert "of-the-shop" not in str(found)

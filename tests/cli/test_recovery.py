"""Goal: each recovery is one command that says what it will do, does it once, and leaves its trace."""

import csv
import io
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from app.core import limits
from app.core.clock import utc_now
from app.core.secrets import hash_api_key
from app.db.models import ApiKey, Event, PaymentOption, Sweep, Transaction, WebhookDelivery
from app.db.repositories import merchants
from app.services.keys import SETTINGS_KEY, create_key
from tests.cli.test_cli import names_in
from tests.cli.test_sweep import run as run_apart
from tests.services.blockchain.conftest import OpenWatch
from tests.services.blockchain.sweeping import WORDS, OpenSwept, Swept
from tests.services.blockchain.watch import Watch
from tests.support.anvil import MNEMONIC
from tests.support.operator import Told, command
from tests.support.postgres import Postgres
from tests.support.secrets import SECRET_KEY

ELSEWHERE = "0x000000000000000000000000000000000000dEaD"


async def paywatch(watch: Watch, *arguments: str, words: str = MNEMONIC) -> Told:
    """The command in the installation of `watch`."""
    return await command(
        *arguments,
        PAYWATCH_DATABASE_URL=watch.context.settings.database_url,
        PAYWATCH_CHAINS_FILE=str(watch.context.chains.path),
        PAYWATCH_MNEMONIC=words,
        PAYWATCH_SECRET_KEY=SECRET_KEY,
    )


async def done(watch: Watch, *arguments: str) -> str:
    """Shown first, which changes nothing; then done, with a word in the log; then done again, which changes nothing."""
    before = await watch.dump()
    shown = await paywatch(watch, *arguments, "--dry-run")
    assert (shown.code, shown.out.startswith("would ")) == (0, True), shown
    refused = await paywatch(watch, *arguments)
    assert (refused.code, "add --yes" in refused.error) == (1, True), refused
    assert await watch.dump() == before
    answer = await paywatch(watch, *arguments, "--yes")
    assert answer.code == 0, answer
    assert [line for line in answer.log if line.get("operator")]
    after = await watch.dump()
    assert after != before
    again = await paywatch(watch, *arguments, "--yes")
    assert (again.code, again.out.startswith("nothing to do")) == (0, True), again
    assert await watch.dump() == after
    return answer.out


# --- chains


async def test_a_chain_is_halted_and_resumed(watch: Watch) -> None:
    assert await done(watch, "chain", "halt", "devnet", "--reason", "its node moves") == "halted devnet\n"
    assert "its node moves; `paywatch chain resume devnet`" in (await paywatch(watch, "status")).out
    assert await done(watch, "chain", "resume", "devnet") == "resumed devnet\n"
    assert (await paywatch(watch, "chain", "halt", "nowhere", "--reason", "x")).code == 1


async def test_a_cursor_is_set_back(watch: Watch) -> None:
    first = (await watch.state()).last_scanned_block
    await watch.mine_and_scan(4)
    said = await done(watch, "chain", "reset", "devnet", "--to", str(first))
    assert said == f"set the cursor of devnet to block {first}; 4 blocks are read again\n"
    await watch.scan()
    refused = await paywatch(watch, "chain", "reset", "devnet", "--to", "99", "--yes")
    assert (refused.code, "would leave blocks out" in refused.error) == (1, True)


async def test_a_rescan_shows_what_is_missing_before_it_is_credited(watch: Watch) -> None:
    """It only adds, so a script need not say --yes."""
    payment = await watch.create()
    await watch.pay(payment)
    await watch.mine_and_scan()
    async with watch.context.db.write() as session:
        await session.execute(delete(Transaction))
    before = await watch.dump()
    rescan = ("rescan", "--chain", "devnet", "--from", "1")
    shown = await paywatch(watch, *rescan, "--dry-run")
    assert shown.out.endswith("1 transfers had been missed, and nothing was credited\n")
    assert await watch.dump() == before
    answer = await paywatch(watch, *rescan)
    assert answer.out.endswith("1 transfers had been missed\n")
    assert [line["event"] for line in answer.log if line.get("operator")] == ["rescan by an operator"]
    assert (await paywatch(watch, *rescan)).out.endswith("0 transfers had been missed\n")
    nothing = await paywatch(watch, "rescan", "--chain", "devnet", "--from", "2", "--to", "1")
    assert (nothing.code, nothing.out) == (2, "")


async def test_a_rescan_that_takes_something_back_wants_a_word(opened: OpenWatch) -> None:
    async with opened(finality={"depth": 2}) as watch:
        await watch.mine_and_scan(6)
        await watch.anvil.reorg(4)
        await watch.anvil.mine()
        for _ in range(3):
            await watch.step()
        assert (await watch.state()).halt_code == "reorg"
        rescan = ("rescan", "--chain", "devnet", "--from", "1")
        refused = await paywatch(watch, *rescan)
        assert (refused.code, "taking back what is not in its node's chain" in refused.error) == (1, True)
        assert (await paywatch(watch, *rescan, "--dry-run")).out.startswith("would read blocks 1 to ")
        assert (await watch.state()).halt_code == "reorg"
        assert (await paywatch(watch, *rescan, "--yes")).code == 0
        assert (await watch.state()).halt_code is None


# --- sweeping


async def test_sweeping_is_paused_on_one_chain_and_on_all(open_swept: OpenSwept) -> None:
    async with open_swept() as swept:
        watch = swept.watch
        one = await done(watch, "sweep", "pause", "--chain", "devnet", "--reason", "the treasury moves")
        assert one == "sweeping of devnet is paused\n"
        assert await done(watch, "sweep", "pause", "--reason", "an audit") == "sweeping of all chains is paused\n"
        told = (await paywatch(watch, "status")).out
        assert "sweep:devnet: paused by " in told
        assert "an audit; `paywatch sweep resume` ends it" in told
        ended = await paywatch(watch, "sweep", "resume", "--yes")
        assert ended.out.startswith("the pause of sweeping of all chains has ended\nsweep:devnet: paused by ")
        assert "sweep:devnet: paused by " in (await paywatch(watch, "sweep", "--dry-run", words=WORDS)).out
        await done(watch, "sweep", "resume", "--chain", "devnet")
        payment = await swept.confirmed()
        await swept.settle(payment)
        unknown = await paywatch(watch, "sweep", "resume", "--chain", "nowhere", "--yes")
        assert (unknown.code, "there is no chain 'nowhere'" in unknown.error) == (1, True)


# --- webhooks


async def dead_deliveries(watch: Watch, count: int) -> list[str]:
    for _ in range(count):
        await watch.create()
    async with watch.context.db.write() as session:
        dead = {"status": "dead", "dead_reason": "attempts_used_up", "next_attempt_at": None}
        await session.execute(update(WebhookDelivery).values(**dead))
    return sorted(row.id for row in await watch.rows(WebhookDelivery))


async def test_one_delivery_is_replayed(watch: Watch) -> None:
    first, second = await dead_deliveries(watch, 2)
    assert await done(watch, "webhooks", "replay", first) == f"{first} is sent again\n"
    statuses = {row.id: (row.status, row.manual) for row in await watch.rows(WebhookDelivery)}
    assert statuses == {first: ("pending", True), second: ("dead", False)}
    async with watch.context.db.write() as session:
        delivered = {"status": "delivered", "manual": False, "delivered_at": utc_now()}
        await session.execute(update(WebhookDelivery).where(WebhookDelivery.id == first).values(**delivered))
    assert (await paywatch(watch, "webhooks", "replay", first, "--yes")).out.startswith("nothing to do: ")
    assert (await paywatch(watch, "webhooks", "replay", first, "--again", "--yes")).out == f"{first} is sent again\n"
    assert (await paywatch(watch, "webhooks", "replay", "dlv_unknown", "--yes")).code == 1
    assert (await paywatch(watch, "webhooks", "replay")).code == 2


async def test_all_dead_ones_since_a_time_are_replayed(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WEBHOOK_REPLAY_ROWS", 2)  # more than one call's worth
    old, *new = await dead_deliveries(watch, 6)
    async with watch.context.db.write() as session:
        last_year = utc_now() - timedelta(days=365)
        await session.execute(update(WebhookDelivery).where(WebhookDelivery.id == old).values(created_at=last_year))
    since = (utc_now() - timedelta(hours=1)).isoformat()
    assert await done(watch, "webhooks", "replay", "--since", since) == "5 deliveries of default are sent again\n"
    assert {row.id for row in await watch.rows(WebhookDelivery) if row.status == "pending"} == set(new)
    nobody = await paywatch(watch, "webhooks", "replay", "--since", since, "--merchant", "nobody", "--yes")
    assert (nobody.code, "there is no merchant 'nobody'" in nobody.error) == (1, True)
    assert (await paywatch(watch, "webhooks", "replay", "--since", "yesterday")).code == 2


# --- payments


async def test_a_payment_is_shown_with_all_that_is_known(open_swept: OpenSwept) -> None:
    async with open_swept() as swept:
        payment = await swept.confirmed(order_id="A-1")
        await swept.settle(payment)
        found = json.loads((await paywatch(swept.watch, "payments", "show", payment.id, "--json")).out)
        assert (found["merchant"], found["payment"]["status"]) == ("default", "settled")
        assert found["address_path"].startswith("m/44'/60'/0'/1/")
        assert [each["type"] for each in found["events"]] == [
            f"payment.{name}" for name in ("created", "detected", "confirmed", "settled")
        ]
        assert found["events"][1]["cause"]["kind"] == "transfer"
        [transaction] = found["payment"]["transactions"]
        assert transaction["confirmations"] >= 3
        assert "from" in transaction
        assert [each["event_type"] for each in found["deliveries"]] == [each["type"] for each in found["events"]]
        sweeps = {each["id"] for each in found["sweeps"]}
        assert {each["sweep_id"] for each in found["payment"]["sweeps"]} <= sweeps

        told = (await paywatch(swept.watch, "payments", "show", payment.id)).out
        for part in (
            *(f"{payment.id}: settled, version 4", "merchant default, order A-1", payment.address),
            *(transaction["tx_hash"], "payment.confirmed", '"kind": "block"', *sweeps),
            *(each["id"] for each in found["deliveries"]),
        ):
            assert part in told
        assert (await paywatch(swept.watch, "payments", "show", "pay_unknown")).code == 1


async def taken_by_hand(swept: Swept, payment: Any) -> None:
    """As somebody with the key would: all that the address holds goes elsewhere than to the treasury."""
    node = swept.watch.anvil
    await node.rpc("anvil_impersonateAccount", payment.address)
    await node.set_balance(payment.address, 2 * 10**18)
    await node.rpc("eth_sendTransaction", {"from": payment.address, "to": ELSEWHERE, "value": hex(19 * 10**17)})
    await swept.watch.mine_and_scan(3)


async def test_money_that_was_taken_by_hand_settles_its_payment_for_good(open_swept: OpenSwept) -> None:
    async with open_swept() as swept:
        watch = swept.watch
        payment = await swept.confirmed("ETH", "1")
        mark = ("payments", "mark-settled", payment.id, "--reason", "moved to the cold wallet")
        refused = await paywatch(watch, *mark, "--yes")
        assert (refused.code, "still holds 1 ETH: the sweeper takes it" in refused.error) == (1, True)
        await taken_by_hand(swept, payment)
        assert (await watch.get(payment)).status == "confirmed"
        assert await done(watch, *mark) == f"{payment.id} is settled\n"
        [event] = await watch.rows(Event, Event.payment_id == payment.id, Event.type == "payment.settled")
        assert (event.cause["kind"], event.cause["reason"]) == ("operator", "moved to the cold wallet")
        assert (event.version, event.data["status"]) == (4, "settled")
        [delivery] = await watch.rows(WebhookDelivery, WebhookDelivery.event_id == event.id)
        assert delivery.status == "pending"

        await watch.mine_and_scan(3)  # and the scanner, which decides again, leaves it so
        await watch.pay(payment, 5 * 10**17)
        await watch.mine_and_scan(3)
        shown = await watch.get(payment)
        assert (shown.status, shown.flags) == ("settled", ["overpaid"])
        assert await watch.told(payment) == "created detected confirmed settled overpaid"


async def test_a_reorg_that_takes_the_payment_back_reverts_it_though_it_was_marked(open_swept: OpenSwept) -> None:
    async with open_swept() as swept:
        watch = swept.watch
        payment = await swept.confirmed("ETH", "1")
        await taken_by_hand(swept, payment)
        answer = await paywatch(watch, "payments", "mark-settled", payment.id, "--reason", "cold wallet", "--yes")
        assert answer.code == 0, answer
        await watch.anvil.reorg(6)
        await watch.mine_and_scan()
        assert (await watch.get(payment)).status == "pending"
        assert (await watch.told(payment)).endswith("settled reverted")


async def test_mark_settled_is_refused_where_it_makes_no_sense(open_swept: OpenSwept, opened: OpenWatch) -> None:
    async def refusal(watch: Watch, payment_id: str) -> str:
        before = await watch.dump()
        answer = await paywatch(watch, "payments", "mark-settled", payment_id, "--reason", "because", "--yes")
        assert (answer.code, await watch.dump()) == (1, before)
        return answer.error

    async with open_swept() as swept:
        watch = swept.watch
        assert "there is no payment 'pay_unknown'" in await refusal(watch, "pay_unknown")
        pending = await watch.create()
        assert "the payment is pending; only a confirmed one" in await refusal(watch, pending.id)
        payment = await swept.confirmed("ETH", "1")
        await swept.round()
        [sweep] = await watch.rows(Sweep)
        assert f"a sweep of its address is under way: {sweep.id} (signed)" in await refusal(watch, payment.id)
    async with opened() as watch:
        payment = await watch.create()
        await watch.pay(payment)
        await watch.mine_and_scan(3)
        assert (await watch.get(payment)).status == "confirmed"
        assert "is not swept: the payment settles by itself" in await refusal(watch, payment.id)


# --- keys


async def test_a_key_is_rotated(watch: Watch) -> None:
    context = watch.context
    async with context.db.write() as session:
        old = await create_key(session, watch.merchant_id, "till", ["payments:read", "webhooks:write"])

    async def works(key: str, in_s: float = 0) -> bool:
        async with context.db.read() as session:
            moment = utc_now() + timedelta(seconds=in_s)
            return await merchants.by_key_hash(session, hash_api_key(key), moment) is not None

    shown = await paywatch(watch, "keys", "rotate", old.id, "--dry-run")
    assert shown.out == f"would make a new key for 'till' (payments:read, webhooks:write), and end {old.id} in 3600 s\n"
    assert (await paywatch(watch, "keys", "rotate", old.id)).code == 1
    answer = await paywatch(watch, "keys", "rotate", old.id, "--yes")
    assert answer.code == 0, answer
    new = answer.out.strip()
    assert [await works(key) for key in (old.key, new)] == [True, True]
    assert [await works(key, in_s=3601) for key in (old.key, new)] == [False, True]
    again = await paywatch(watch, "keys", "rotate", old.id, "--yes")
    assert (again.code, again.out, "there is nothing to rotate" in again.error) == (1, "", True)
    assert "`paywatch keys create` makes another" in again.error
    [made] = await watch.rows(ApiKey, ApiKey.key_hash == hash_api_key(new))
    assert (made.name, made.scopes, made.merchant_id) == (
        "till",
        ["payments:read", "webhooks:write"],
        watch.merchant_id,
    )
    assert new not in str(answer.log) + answer.error

    before = await watch.dump()
    shown = await paywatch(watch, "keys", "revoke", old.id, "--dry-run")
    assert shown.out == f"would end 'till' (payments:read, webhooks:write), {old.id}, at once\n"
    assert await watch.dump() == before
    ended = await paywatch(watch, "keys", "revoke", old.id)  # its grace ends with that
    assert (ended.code, [line["event"] for line in ended.log]) == (0, ["key revoked by an operator"])
    assert not await works(old.key)
    again = await paywatch(watch, "keys", "revoke", old.id)
    assert (again.code, again.out) == (0, f"nothing to do: {old.id} is revoked already\n")
    third = await paywatch(watch, "keys", "rotate", made.id, "--grace", "0", "--yes")
    assert [await works(key) for key in (new, third.out.strip())] == [False, True]
    assert len(await watch.rows(ApiKey)) == 3


async def test_a_key_is_made_when_it_is_meant(watch: Watch) -> None:
    create = ("keys", "create", "--name", "till", "--scope", "payments:read")
    before = await watch.dump()
    shown = await paywatch(watch, *create, "--dry-run")
    assert shown.out == "would make an API key 'till' (payments:read) of the first merchant\n"
    assert await watch.dump() == before
    made = await paywatch(watch, *create)
    assert (made.code, [line["event"] for line in made.log]) == (0, ["key made by an operator"])
    assert made.out.strip() not in str(made.log)


async def test_the_settings_key_is_left_alone_where_the_setting_is_not_seen(watch: Watch) -> None:
    """The shell of an operator or worker; the server's next start would bring the old key back and end the new one."""
    key = ApiKey(
        id="key_1",
        merchant_id=watch.merchant_id,
        name=SETTINGS_KEY,
        key_hash=b"1" * 32,
        scopes=[],
        created_at=utc_now(),
    )
    async with watch.context.db.write() as session:
        session.add(key)
    for arguments in (("rotate", "key_1", "--yes"), ("revoke", "key_1", "--yes")):
        refused = await paywatch(watch, "keys", *arguments)
        assert (refused.code, "change it there" in refused.error) == (1, True), refused


# --- events


async def test_events_are_exported_page_by_page(watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPORT_ROWS", 2)
    payments = [await watch.create(order_id=order) for order in ("A-1", "=1+1", 'a "b", c', "ü", "A-5")]
    await watch.pay(payments[0])
    await watch.mine_and_scan(3)
    events = sorted(await watch.rows(Event), key=lambda event: event.id)

    lines = [
        json.loads(line) for line in (await paywatch(watch, "events", "export", "--format", "jsonl")).out.splitlines()
    ]
    assert [line["id"] for line in lines] == [event.id for event in events]
    assert [line["data"] for line in lines] == [event.data for event in events]

    file = tmp_path / "events.csv"
    answer = await paywatch(watch, "events", "export", "--format", "csv", str(file))
    assert (answer.code, answer.out, file.stat().st_mode & 0o777) == (0, "", 0o600)
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["id"] for row in rows] == [event.id for event in events]
    assert [row["order_id"] for row in rows[:5]] == ["A-1", "'=1+1", 'a "b", c', "ü", "A-5"]
    assert (rows[-1]["type"], rows[-1]["status"], rows[-1]["amount_received"]) == (
        "payment.confirmed",
        "confirmed",
        "25",
    )
    again = await paywatch(watch, "events", "export", "--format", "csv", str(file))
    assert (again.code, again.error) == (1, f"{file} exists already\n")


async def test_an_export_is_narrowed_by_time_and_merchant(watch: Watch, tmp_path: Path) -> None:
    for _ in range(3):
        await watch.create()
    ids = sorted(event.id for event in await watch.rows(Event))
    async with watch.context.db.write() as session:
        for number, event_id in enumerate(ids):
            moment = utc_now() - timedelta(days=number)
            await session.execute(update(Event).where(Event.id == event_id).values(created_at=moment))
    export = ("events", "export", "--format", "jsonl")

    async def exported(*narrowed: str) -> list[str]:
        answer = await paywatch(watch, *export, *narrowed)
        assert answer.code == 0, answer
        return [json.loads(line)["id"] for line in answer.out.splitlines()]

    between = (utc_now() - timedelta(hours=36)).isoformat(), (utc_now() - timedelta(hours=12)).isoformat()
    assert await exported("--since", between[0], "--until", between[1]) == [ids[1]]
    assert await exported("--merchant", "default", "--since", "2020-01-01") == ids
    part = tmp_path / "x.csv"
    nobody = await paywatch(watch, *export, str(part), "--merchant", "nobody")
    assert (nobody.code, [name for name in names_in(tmp_path) if name.startswith("x.csv")]) == (1, [])


async def test_the_commands_are_there_from_a_shell(open_swept: OpenSwept, tmp_path: Path) -> None:
    """Once as an operator starts it: the exit code and the log are the process's own."""
    async with open_swept() as swept:
        answer = await run_apart(swept, tmp_path, "chain", "halt", "devnet", "--reason", "a test", "--yes")
        assert (answer.code, answer.out) == (0, "halted devnet\n")
        assert '"event": "chain halted by an operator"' in answer.error


# --- the whole database


async def test_a_restore_is_checked_before_anything_starts(
    watch: Watch, database_backend: Postgres | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database_backend is not None and database_backend.tools is not None:
        monkeypatch.setenv("PATH", f"{database_backend.tools}{os.pathsep}{os.environ['PATH']}")
    await watch.pay(await watch.create())
    await watch.mine_and_scan()
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    assert (await paywatch(watch, "backup", good)).code == 0
    async with watch.context.db.write() as session:
        await session.execute(update(PaymentOption).values(received_units=1))
    assert (await paywatch(watch, "backup", bad)).code == 0
    await watch.context.db.close()
    answer = await paywatch(watch, "restore", bad, "--replace", "--yes")
    assert (answer.code, "amounts: " in answer.error) == (1, True), answer
    assert [line for line in answer.log if line.get("operator") and line["file"] == bad]
    answer = await paywatch(watch, "restore", good, "--replace", "--yes")
    assert (answer.code, answer.error) == (0, ""), answer
    assert answer.out.endswith("nothing is wrong with it: start server and workers.\n")

"""Goal: a backup is the database, a restore is the backup, and no address is ever given out twice."""

import asyncio
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update

from app.core import limits
from app.core.secrets import rotated
from app.db import dump, dump_postgres, dump_sqlite, schema
from app.db.dump import DumpError
from app.db.engine import Database
from app.db.models import (
    ApiKey,
    ChainState,
    DepositAddress,
    Event,
    Merchant,
    Payment,
    WebhookDelivery,
    WebhookEndpoint,
)
from app.db.repositories import pauses, webhook_claims
from app.db.repositories.addresses import Indexes
from app.db.schema import SchemaError
from tests.db.rows import NOW, insert_merchant, insert_payment
from tests.db.test_schema import execute, postgres_only, sqlite_only
from tests.support.postgres import Postgres


@pytest.fixture(autouse=True)
def tools(database_backend: Postgres | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's tools of the tests' own server: others may be too old for it."""
    if database_backend is not None and database_backend.tools is not None:
        monkeypatch.setenv("PATH", f"{database_backend.tools}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
async def older_server_url(database_backend: Postgres) -> AsyncIterator[str]:
    """A database of a server of version 16; the tools are of the newest that the wheel has."""
    if database_backend.is_external:
        pytest.skip("PATH has the tools, and nobody knows of which version")
    with Postgres(version=16) as server:
        url = await server.create_database()
        await schema.upgrade(url)
        yield url


async def fill(url: str, payments: int) -> None:
    db = Database(url)
    try:
        async with db.write() as session:
            if await session.get(Merchant, "mer_1") is None:
                await insert_merchant(session)
            for _ in range(payments):
                await insert_payment(session)
    finally:
        await db.close()


async def payments_and_next_index(url: str) -> tuple[int, int]:
    db = Database(url)
    try:
        async with db.write() as session:
            return await session.scalar(select(func.count()).select_from(Payment)) or 0, await Indexes().next(session)
    finally:
        await db.close()


async def addresses(url: str) -> list[int]:
    """The HD indexes of the payments, in their order."""
    db = Database(url)
    try:
        async with db.read() as session:
            return list(await session.scalars(select(DepositAddress.id).order_by(DepositAddress.id)))
    finally:
        await db.close()


def key(name: str) -> ApiKey:
    hashed = hashlib.sha256(name.encode()).digest()
    return ApiKey(id=name, merchant_id="mer_1", name=name, key_hash=hashed, scopes=["admin"], created_at=NOW)


def chain(chain_id: int) -> ChainState:
    zeros = dict.fromkeys(
        ("last_scanned_block", "first_block", "highest_block", "finalized_block", "head_block", "backup_block"), 0
    )
    return ChainState(
        **zeros,
        chain_id=chain_id,
        name=f"chain{chain_id}",
        last_scanned_hash=b"\x01" * 32,
        last_scanned_time=NOW,
        head_seen_at=NOW,
        rotated_address_id=0,
    )


async def log_of_a_killed_server(url: str, database: Path) -> bytes:
    """Leave a -wal with many addresses beside the database, as a server that was killed does; returns it."""
    await schema.upgrade(url)
    db = Database(url)
    async with db.write() as session:
        if await session.get(Merchant, "mer_1") is None:
            await insert_merchant(session)
        for _ in range(30):
            await insert_payment(session)
    wal = database.with_name(f"{database.name}-wal")
    log = wal.read_bytes()
    await db.close()
    wal.write_bytes(log)
    return log


async def test_a_restored_database_is_the_backup_with_its_addresses_moved_on(db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await fill(db_url, 3)
    await dump.dump(db_url, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    _, first_given_after = await payments_and_next_index(db_url)
    await fill(db_url, 2)
    kept = (await dump.restore(db_url, file, replace=True)).kept
    assert await schema.check(db_url) == ()
    payments, index = await payments_and_next_index(db_url)
    assert payments == 3
    assert index >= first_given_after + limits.RESTORE_INDEX_GAP
    assert index < first_given_after + limits.RESTORE_INDEX_GAP + 10 * limits.INDEX_BLOCK
    for path in kept:
        assert (await payments_and_next_index(f"sqlite+aiosqlite:///{path}"))[0] == 5, "what was there before is kept"


async def test_the_same_backup_restored_again_gives_out_other_addresses(db_url: str, tmp_path: Path) -> None:
    """What was given out between two restores is as unknown to the backup as what was given out before the first."""
    file = tmp_path / "backup"
    await fill(db_url, 1)
    await dump.dump(db_url, file)
    highest = 0
    for _ in range(3):
        await dump.restore(db_url, file, replace=True)
        await fill(db_url, 3)
        given_out = await addresses(db_url)
        assert len(given_out) == 4
        assert given_out[1] > highest + limits.RESTORE_INDEX_GAP
        highest = given_out[-1]
    await dump.restore(db_url, file, replace=True, skip=5_000_000)
    assert (await payments_and_next_index(db_url))[1] > highest + 5_000_000


@sqlite_only
async def test_each_restore_keeps_the_file_that_it_replaces(db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await dump.dump(db_url, file)
    kept = []
    for payments in (1, 2):
        await fill(db_url, payments)
        kept += (await dump.restore(db_url, file, replace=True)).kept
    counts = [(await payments_and_next_index(f"sqlite+aiosqlite:///{path}"))[0] for path in kept]
    assert counts == [1, 2]


async def test_what_was_stopped_or_revoked_since_the_backup_stays_so(db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    db = Database(db_url)
    async with db.write() as session:
        await insert_merchant(session)
        session.add_all(key(name) for name in ("kept", "revoked", "rotated", "ended before"))
        session.add_all(chain(number) for number in (1, 2))
        await pauses.add(session, pauses.WEBHOOKS, "before", "op", NOW)
    async with db.write() as session:
        await session.execute(update(ApiKey).where(ApiKey.id == "ended before").values(revoked_at=NOW))
    await db.close()
    await dump.dump(db_url, file)
    async with db.write() as session:
        await session.execute(update(ApiKey).where(ApiKey.id != "kept").values(revoked_at=NOW + timedelta(days=1)))
        session.add(key("successor"))
        await session.execute(
            update(ChainState).where(ChainState.chain_id == 1).values(halt_code="operator", halt_detail="the node lies")
        )
        await session.execute(update(ChainState).where(ChainState.chain_id == 2).values(halt_code="config"))
        await pauses.add(session, pauses.SWEEPING, "the treasury moves", "op", NOW)
    await db.close()

    assert (await dump.restore(db_url, file, replace=True)).stops == "taken over"
    async with db.read() as session:
        ended = {row.id: row.revoked_at for row in await session.scalars(select(ApiKey))}
        halted = {row.chain_id: (row.halt_code, row.halt_detail) for row in await session.scalars(select(ChainState))}
        paused = {row.what: (row.reason, row.since) for row in await pauses.list_pauses(session)}
    await db.close()
    later = NOW + timedelta(days=1)
    assert ended == {"kept": None, "revoked": later, "rotated": later, "ended before": NOW, "successor": None}
    assert halted == {1: ("operator", "the node lies"), 2: (None, None)}
    assert paused == {pauses.WEBHOOKS: ("before", NOW), pauses.SWEEPING: ("the treasury moves", NOW)}


@dataclass
class Rows:
    """A merchant with two endpoints, each of which is owed an event."""

    db: Database

    async def make(self) -> None:
        async with self.db.write() as session:
            await insert_merchant(session)
            payment_id = await insert_payment(session)
            session.add(
                Event(
                    id="evt_1",
                    merchant_id="mer_1",
                    payment_id=payment_id,
                    type="payment.created",
                    version=1,
                    cause={},
                    data={},
                    created_at=NOW,
                )
            )
            session.add_all(
                WebhookEndpoint(id=name, merchant_id="mer_1", url="https://x", secret=b"first", created_at=NOW)
                for name in ("whe_1", "whe_2", "whe_3")
            )
            await session.flush()
            session.add_all(
                WebhookDelivery(
                    id=name,
                    merchant_id="mer_1",
                    payment_id=payment_id,
                    event_id="evt_1",
                    event_version=1,
                    endpoint_id=name,
                    url="https://x",
                    receiver=name,
                    status="pending",
                    attempt_count=0,
                    next_attempt_at=NOW,
                    created_at=NOW,
                )
                for name in ("whe_1", "whe_2", "whe_3")
            )

    async def change(self, id_: str, **values: Any) -> None:
        async with self.db.write() as session:
            await session.execute(update(WebhookEndpoint).where(WebhookEndpoint.id == id_).values(**values))

    async def rotate(self, at: datetime, secret: bytes) -> None:
        """The secrets of the first endpoint and of the merchant."""
        async with self.db.write() as session:
            endpoint, merchant = (
                await session.get_one(WebhookEndpoint, "whe_1"),
                await session.get_one(Merchant, "mer_1"),
            )
            until = at + timedelta(days=1)
            endpoint.old_secrets = rotated(endpoint.secret, endpoint.old_secrets, at, until)
            merchant.old_webhook_secrets = rotated(merchant.webhook_secret, merchant.old_webhook_secrets, at, until)
            endpoint.secret = merchant.webhook_secret = secret

    async def secrets(self) -> list[tuple[bytes, list[str]]]:
        async with self.db.read() as session:
            endpoint, merchant = (
                await session.get_one(WebhookEndpoint, "whe_1"),
                await session.get_one(Merchant, "mer_1"),
            )
            return [
                (endpoint.secret, [one["secret"] for one in endpoint.old_secrets]),
                (merchant.webhook_secret, [one["secret"] for one in merchant.old_webhook_secrets]),
            ]


@pytest.fixture
async def rows(db_url: str) -> AsyncIterator[Rows]:
    made = Rows(Database(db_url))
    await made.make()
    yield made
    await made.db.close()


async def test_an_endpoint_that_ended_since_the_backup_gets_nothing(rows: Rows, db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await dump.dump(db_url, file)
    await rows.change("whe_1", deleted_at=NOW)
    await rows.change("whe_2", disabled_at=NOW, disabled_reason="gone")
    await rows.db.close()
    await dump.restore(db_url, file, replace=True)
    async with rows.db.write() as session:
        ended = {
            row.id: (row.deleted_at, row.disabled_at, row.disabled_reason)
            for row in await session.scalars(select(WebhookEndpoint))
        }
        due = await webhook_claims.claim_due(session, NOW, NOW + timedelta(minutes=1), 10)
    assert ended == {"whe_1": (NOW, None, None), "whe_2": (None, NOW, "gone"), "whe_3": (None, None, None)}
    assert [each.endpoint_id for each in due] == ["whe_3"]


@pytest.mark.parametrize("before", [0, 1])
async def test_a_secret_that_was_rotated_away_does_not_come_back(
    rows: Rows, db_url: str, tmp_path: Path, before: int
) -> None:
    """Whether or not it was rotated before the backup too."""
    file = tmp_path / "backup"
    if before:
        await rows.rotate(NOW, b"second")
    await rows.db.close()
    await dump.dump(db_url, file)
    await rows.rotate(NOW + timedelta(hours=1), b"third")
    expected = await rows.secrets()
    await rows.db.close()
    await dump.restore(db_url, file, replace=True)
    assert await rows.secrets() == expected
    assert expected[0] == (b"third", ["second", "first"] if before else ["first"])


async def test_a_newer_secret_of_the_backup_is_kept(rows: Rows, db_url: str, tmp_path: Path) -> None:
    """An older backup was restored first: what it replaces is older than itself."""
    older, newer = tmp_path / "older", tmp_path / "newer"
    await dump.dump(db_url, older)
    await rows.rotate(NOW, b"second")
    await dump.dump(db_url, newer)
    expected = await rows.secrets()
    await rows.db.close()
    await schema.downgrade(db_url, "base")
    await dump.restore(db_url, older)
    await dump.restore(db_url, newer, replace=True)
    assert await rows.secrets() == expected
    assert expected[0] == (b"second", ["first"])


@pytest.mark.parametrize("new_one", [False, True])
async def test_where_the_stops_cannot_be_known_sweeping_starts_paused(
    db_url: str, tmp_path: Path, new_one: bool
) -> None:
    """Into no database, or into the one that a start on a new machine has made."""
    file = tmp_path / "backup"
    await fill(db_url, 1)
    await dump.dump(db_url, file)
    await schema.downgrade(db_url, "base")
    if new_one:
        await schema.upgrade(db_url)
    assert (await dump.restore(db_url, file, replace=new_one)).stops == "sweeping paused"
    db = Database(db_url)
    async with db.read() as session:
        (pause,) = await pauses.list_pauses(session)
    await db.close()
    assert (pause.what, pause.paused_by) == (pauses.SWEEPING, "paywatch restore")


async def test_a_backup_from_before_the_pauses_says_that_they_are_lost(db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await schema.downgrade(db_url, "0001")
    await dump.dump(db_url, file)
    await schema.upgrade(db_url)
    assert (await dump.restore(db_url, file, replace=True)).stops == "lost"
    await schema.upgrade(db_url)
    assert await schema.check(db_url) == ()


@sqlite_only
async def test_a_damaged_database_is_replaced_with_its_log(db_url: str, tmp_path: Path) -> None:
    """The log of the old file must not be played into the new one, and both are kept."""
    file, database = tmp_path / "backup", tmp_path / "paywatch.db"
    await fill(db_url, 2)
    await dump.dump(db_url, file)
    log = await log_of_a_killed_server(db_url, database)
    database.write_bytes(b"noise" * 2000)
    with pytest.raises(DumpError, match="replacing a damaged database must be asked for"):
        await dump.restore(db_url, file)
    replaced = await dump.restore(db_url, file, replace=True)
    assert replaced.stops == "sweeping paused"
    assert [path.read_bytes() for path in replaced.kept[:2]] == [b"noise" * 2000, log]
    assert len(await addresses(db_url)) == 2


@sqlite_only
async def test_the_log_of_a_removed_database_is_moved_away(db_url: str, tmp_path: Path) -> None:
    file, database = tmp_path / "backup", tmp_path / "paywatch.db"
    await fill(db_url, 2)
    await dump.dump(db_url, file)
    log = await log_of_a_killed_server(db_url, database)
    database.unlink()
    replaced = await dump.restore(db_url, file)
    assert replaced.kept[0].read_bytes() == log
    assert len(await addresses(db_url)) == 2


@sqlite_only
@pytest.mark.parametrize("step", ["replace", "rename"])
async def test_a_restore_that_is_killed_leaves_nothing_that_a_server_would_start_on(
    db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed before any of its changes of names: the damaged database, or none; and the next restore works."""
    file, database = tmp_path / "backup", tmp_path / "paywatch.db"
    await fill(db_url, 2)
    await dump.dump(db_url, file)
    real, left = getattr(Path, step), 0

    def killed(path: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return real(path, target)

    for survived in range(2):
        left = survived
        database.unlink()
        await log_of_a_killed_server(db_url, database)
        database.write_bytes(b"noise" * 2000)
        with monkeypatch.context() as patched:
            patched.setattr(Path, step, killed)
            with pytest.raises(KeyboardInterrupt):
                dump_sqlite.restore(file, database, limits.RESTORE_INDEX_GAP)
        with pytest.raises(SchemaError):
            await schema.current(db_url)
        await dump.restore(db_url, file, replace=True)
        assert len(await addresses(db_url)) == 2


@sqlite_only
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("was", ["whole", "damaged", "removed"])
async def test_root_restores_for_the_service(db_url: str, tmp_path: Path, was: str) -> None:
    """Its file keeps owner and mode; a new one is for whoever owns the folder."""
    file, folder = tmp_path / "backup", tmp_path / "data"
    await dump.dump(db_url, file)
    folder.mkdir()
    os.chown(folder, 1234, 1235)
    database = folder / "paywatch.db"
    url = f"sqlite+aiosqlite:///{database}"
    if was != "removed":
        shutil.copyfile(file, database)
        database.chmod(0o640)
        os.chown(database, 1236, 1237)
    if was == "damaged":
        await log_of_a_killed_server(url, database)
        database.write_bytes(b"noise" * 2000)
    await dump.restore(url, file, replace=was != "removed")
    found = database.stat()
    expected = (1234, 1235, 0o600) if was == "removed" else (1236, 1237, 0o640)
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == expected


@sqlite_only
async def test_a_damaged_database_that_a_server_has_open_is_not_replaced(db_url: str, tmp_path: Path) -> None:
    file, database = tmp_path / "backup", tmp_path / "paywatch.db"
    await dump.dump(db_url, file)
    hold = (
        f"import sqlite3; c = sqlite3.connect({str(database)!r}); c.execute('PRAGMA journal_mode=WAL').fetchall(); "
        "c.execute('SELECT count(*) FROM payments').fetchall(); print('open', flush=True); input()"
    )
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", hold), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"open\n"
    with database.open("rb+") as opened:
        opened.write(b"noise" * 20)
    with pytest.raises(DumpError, match="is in use"):
        await dump.restore(db_url, file, replace=True)
    await server.communicate(b"\n")
    await dump.restore(db_url, file, replace=True)


@postgres_only
async def test_a_backup_is_read_back_to_its_end(
    db_url: str, database_backend: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is lost on the disk, and its list of tables is whole."""
    tool, file = tmp_path / "pg_dump", tmp_path / "backup"
    real = shutil.which("pg_dump")
    tool.write_text(f'#!/bin/sh\n"{real}" "$@" && for last; do :; done && truncate --size=-500 "${{last#--file=}}"\n')
    tool.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    await fill(db_url, 50)
    with pytest.raises(DumpError, match="pg_restore: "):
        await dump.dump(db_url, file)
    assert not file.exists()


@postgres_only
async def test_half_a_backup_is_never_committed(db_url: str, tmp_path: Path) -> None:
    """It is told to psql as it is unpacked, and ends in the middle."""
    file = tmp_path / "backup"
    await fill(db_url, 50)
    await dump.dump(db_url, file)
    await fill(db_url, 1)
    content = file.read_bytes()
    for part in (content[: len(content) - 500], content[: len(content) * 2 // 3]):
        file.write_bytes(part)
        with pytest.raises(DumpError, match="pg_restore: "):
            await dump.restore(db_url, file, replace=True)
        assert (await payments_and_next_index(db_url))[0] == 51


@postgres_only
async def test_tools_that_are_newer_than_the_server_restore_into_it(older_server_url: str, tmp_path: Path) -> None:
    """They begin with a setting that PostgreSQL has since version 17."""
    file = tmp_path / "backup"
    await fill(older_server_url, 3)
    await dump.dump(older_server_url, file)
    await fill(older_server_url, 1)
    await dump.restore(older_server_url, file, replace=True)
    assert await schema.check(older_server_url) == ()
    assert (await payments_and_next_index(older_server_url))[0] == 3


async def test_an_empty_database_is_restored_into_and_a_used_one_only_when_told(db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await fill(db_url, 1)
    await dump.dump(db_url, file)
    with pytest.raises(DumpError, match="not empty"):
        await dump.restore(db_url, file)
    await schema.downgrade(db_url, "base")
    await dump.restore(db_url, file)
    assert (await payments_and_next_index(db_url))[0] == 1


async def test_a_table_newer_than_the_backup_does_not_stay_behind(db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await execute(db_url, "DROP TABLE webhook_attempts")
    await dump.dump(db_url, file)
    await execute(db_url, "CREATE TABLE webhook_attempts (id INTEGER PRIMARY KEY)")
    await dump.restore(db_url, file, replace=True)
    assert any("webhook_attempts" in problem for problem in await schema.check(db_url))


async def test_nothing_is_restored_under_a_running_server(
    db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RESTORE_LEAVING_S", 0.2)
    file = tmp_path / "backup"
    await dump.dump(db_url, file)
    await fill(db_url, 1)
    running = Database(db_url)
    try:
        async with running.read() as session:
            await session.execute(text("SELECT 1"))
        with pytest.raises(DumpError, match="stop the server and the workers"):
            await dump.restore(db_url, file, replace=True)
    finally:
        await running.close()
    assert (await payments_and_next_index(db_url))[0] == 1


@postgres_only
async def test_what_a_stopped_server_has_left_open_is_waited_for(
    db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends a connection a moment after its client has."""
    monkeypatch.setattr(limits, "RESTORE_LEAVING_S", 60.0)
    file = tmp_path / "backup"
    await dump.dump(db_url, file)
    stopped = Database(db_url)
    async with stopped.read() as session:
        await session.execute(text("SELECT 1"))
    look = dump_postgres._require_nobody_else

    async def stops(url: str) -> None:
        try:
            await look(url)
        finally:
            await stopped.close()

    monkeypatch.setattr(dump_postgres, "_require_nobody_else", stops)
    await dump.restore(db_url, file, replace=True)


async def test_a_backup_overwrites_nothing_and_leaves_nothing_half(db_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    taken = folder / "backup"
    taken.write_text("another one")
    with pytest.raises(DumpError, match="exists"):
        await dump.dump(db_url, taken)
    assert taken.read_text() == "another one"
    with pytest.raises(DumpError):
        await dump.dump(db_url, folder / "missing" / "backup")
    assert os.listdir(folder) == ["backup"]  # noqa: PTH208


async def test_a_database_without_a_schema_is_no_backup(database_url: str, tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="nothing to back up"):
        await dump.dump(database_url, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no backup"),
        (b"-- a script", "no backup"),
        (b"SQLite format 3\x00 and then noise", "malformed|not a database|encrypted"),
        (b"PGDMP and then noise", "pg_restore: "),
    ],
)
async def test_a_file_that_is_no_whole_backup_changes_nothing(
    db_url: str, database_backend: object, tmp_path: Path, content: bytes, problem: str
) -> None:
    file = tmp_path / "backup"
    file.write_bytes(content)
    await fill(db_url, 1)
    other = content.startswith(b"PGDMP" if database_backend is None else b"SQLite")
    with pytest.raises(DumpError, match="is a backup of" if other else problem):
        await dump.restore(db_url, file, replace=True)
    assert (await payments_and_next_index(db_url))[0] == 1


@sqlite_only
async def test_a_damaged_sqlite_backup_is_refused(db_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    await fill(db_url, 50)
    await dump.dump(db_url, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    file.write_bytes(content)
    with pytest.raises(DumpError):
        await dump.restore(db_url, file, replace=True)
    assert (await payments_and_next_index(db_url))[0] == 50


@postgres_only
async def test_a_missing_tool_is_named(db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DumpError, match="pg_dump is not installed; it comes with"):
        await dump.dump(db_url, tmp_path / "backup")


@sqlite_only
async def test_an_operator_backs_up_and_restores_by_command(db_url: str, tmp_path: Path) -> None:
    async def paywatch(*arguments: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", *arguments),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PAYWATCH_DATABASE_URL": db_url},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    await fill(db_url, 1)
    code, out, err = await paywatch("backup", "today.backup")
    assert (code, err) == (0, "")
    assert "bytes in today.backup, mode 0600" in out
    code, _, err = await paywatch("restore", "today.backup")
    assert code == 1
    assert "not empty" in err
    code, out, err = await paywatch("restore", "today.backup", "--replace", "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("would replace SQLite database ")
    code, _, err = await paywatch("restore", "today.backup", "--replace")
    assert code == 1
    assert "nothing was done; add --yes" in err
    code, out, err = await paywatch("restore", "today.backup", "--replace", "--yes")
    assert "HD indexes go on 100000 later" in out
    assert "What was there before is " in out
    assert "database restored by an operator" in err
    assert code == 1, "its rows are invented, and it is told so"
    assert "payment states: 1 cannot be" in err
    db = Database(db_url)
    async with db.read() as session:
        assert (await session.scalar(select(func.count()).select_from(DepositAddress))) == 1
    await db.close()

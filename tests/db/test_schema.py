"""Goal: the schema gets to head whole or stays as it was, on both databases, whoever else is at it."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.errors import ConfigError
from app.db import schema, schema_connection
from app.db.engine import Database, create_engine
from app.db.models import Base, DepositAddress, Payment
from app.db.repositories import pauses
from app.db.schema import SchemaError
from app.db.schema_script import destroyed
from tests.db.rows import NOW, insert_address, insert_merchant, insert_payment

sqlite_only = pytest.mark.parametrize("database_backend", ["sqlite"], indirect=True)
postgres_only = pytest.mark.parametrize("database_backend", ["postgres"], indirect=True)

HEADER = """
import sqlalchemy as sa
from alembic import op

revision = "{id}"
down_revision = "{parent}"


def upgrade():
"""


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[AsyncConnection]:
    engine = create_engine(url).execution_options(paywatch_write=True)
    try:
        async with engine.begin() as opened:
            yield opened
    finally:
        await engine.dispose()


async def execute(url: str, statement: str) -> None:
    async with connection(url) as opened:
        await opened.execute(text(statement))


async def tables(url: str) -> set[str]:
    async with connection(url) as opened:
        return set(await opened.run_sync(lambda sync: inspect(sync).get_table_names()))


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of migrations/versions that the test may add to; `head` below is then not the newest."""
    shutil.copytree(schema.ALEMBIC_INI.parent / "migrations", tmp_path / "migrations")
    shutil.copy(schema.ALEMBIC_INI, tmp_path)
    monkeypatch.setattr(schema, "ALEMBIC_INI", tmp_path / "alembic.ini")
    return tmp_path / "migrations" / "versions"


def head(versions: Path) -> str:
    return max(path.name for path in versions.glob("*.py")).partition("_")[0]


def add_revision(versions: Path, *body: str, downgrade: str = "pass") -> str:
    parent = head(versions)
    revision = f"{int(parent) + 1:04d}"
    source = HEADER.format(id=revision, parent=parent) + "".join(f"    {line}\n" for line in body)
    (versions / f"{revision}_test.py").write_text(f"{source}\n\ndef downgrade():\n    {downgrade}\n")
    return revision


def test_each_revision_has_its_own_number_and_they_stand_in_one_line() -> None:
    names = sorted(path.name for path in (schema.ALEMBIC_INI.parent / "migrations" / "versions").glob("*.py"))
    assert [name.partition("_")[0] for name in names] == [f"{number + 1:04d}" for number in range(len(names))]


async def test_an_empty_database_gets_what_the_models_say(database_url: str) -> None:
    assert "has no schema yet: run `python migrate.py upgrade`" in str(await schema.schema_problem(database_url))
    change = await schema.upgrade(database_url)
    assert (change.before, change.after) == (None, change.steps[-1].id)
    assert await schema.check(database_url) == ()
    assert await schema.schema_problem(database_url) is None
    assert await tables(database_url) == {*Base.metadata.tables, "alembic_version"}


async def test_asking_does_not_make_a_database(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'folder' / 'paywatch.db'}"
    assert await schema.current(url) is None
    assert len(await schema.check(url)) == 1
    assert not (tmp_path / "folder").exists()


async def test_a_database_that_others_write_to_can_be_checked(db_url: str) -> None:
    """The writer holds SQLite's one place until the check is done: the check must not want it."""
    async with connection(db_url) as writer:
        await writer.execute(text("DELETE FROM tokens"))
        assert await schema.check(db_url) == ()


async def test_going_down_to_nothing_and_up_again_works_with_rows_there(db_url: str) -> None:
    db = Database(db_url)
    async with db.write() as session:
        await insert_merchant(session)
        await insert_payment(session)
    await db.close()
    down = await schema.downgrade(db_url, "base")
    assert down.after is None
    assert await tables(db_url) == {"alembic_version"}
    up = await schema.upgrade(db_url)
    assert [step.id for step in up.steps] == [step.id for step in reversed(down.steps)]
    assert await schema.check(db_url) == ()


async def test_the_pauses_come_and_go_beside_rows_that_stay(db_url: str) -> None:
    """Going back to 0001 ends every pause, for its code knows none; payments are not touched."""
    db = Database(db_url)
    async with db.write() as session:
        await insert_merchant(session)
        payment_id = await insert_payment(session)
        await pauses.add(session, pauses.WEBHOOKS, "the receiver moves", "op", NOW)
    await schema.downgrade(db_url, "0001")
    assert "pauses" not in await tables(db_url)
    await schema.upgrade(db_url)
    assert await schema.check(db_url) == ()
    async with db.write() as session:
        assert await pauses.list_pauses(session) == []
        assert await session.scalar(select(Payment.id)) == payment_id
        assert await pauses.add(session, pauses.WEBHOOKS, "again", "op", NOW)
    await db.close()


async def test_upgrading_at_head_does_nothing(db_url: str) -> None:
    change = await schema.upgrade(db_url)
    assert (change.before, change.steps) == (change.after, ())


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            "ALTER TABLE payments ADD COLUMN extra INTEGER",
            "column payments.extra is in the database and not in the",
        ),
        ("ALTER TABLE payments DROP COLUMN description", "column payments.description is in the models and not in the"),
        ("DROP INDEX uq_payments_open_order", "index payments.uq_payments_open_order is in the models"),
        ("DROP TABLE webhook_attempts", "table webhook_attempts is in the models and not in the database"),
        ("CREATE TABLE other (id INTEGER)", "table other is in the database and not in the models"),
    ],
)
async def test_a_difference_is_told(db_url: str, statement: str, problem: str) -> None:
    await execute(db_url, statement)
    assert any(found.startswith(problem) for found in await schema.check(db_url))


@postgres_only
@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("ALTER COLUMN amount_units TYPE NUMERIC(20, 0)", "column payment_options.amount_units: type is NUMERIC"),
        ("ALTER COLUMN chain DROP NOT NULL", "column payment_options.chain: nullable is True"),
        ("ALTER COLUMN chain SET DEFAULT 'x'", "column payment_options.chain: default is"),
        ("DROP CONSTRAINT uq_payment_options_payment_id_position", "constraint payment_options.uq_payment_options_pay"),
        ("DROP CONSTRAINT fk_payment_options_payment_id_payments", "fk payment_options.fk_payment_options_payment_id"),
    ],
)
async def test_a_changed_column_or_constraint_is_told(db_url: str, statement: str, problem: str) -> None:
    await execute(db_url, f"ALTER TABLE payment_options {statement}")
    (found,) = await schema.check(db_url)
    assert found.startswith(problem)


async def test_a_database_that_is_behind_or_ahead_is_told(db_url: str, versions: Path) -> None:
    old = head(versions)
    new = add_revision(versions, "pass")
    assert f"is at revision {old}, and this version of Paywatch needs {new}" in str(await schema.schema_problem(db_url))
    await execute(db_url, "UPDATE alembic_version SET version_num = 'ffff'")
    (found,) = await schema.check(db_url)
    assert "is at revision ffff, which this version of Paywatch does not know" in found
    assert not any(revision.applied for revision in await schema.history(db_url))
    with pytest.raises(SchemaError, match="Can't locate revision"):
        await schema.upgrade(db_url)


async def test_stamping_replaces_even_an_unknown_revision_and_touches_no_table(db_url: str) -> None:
    before = await tables(db_url)
    await execute(db_url, "UPDATE alembic_version SET version_num = 'ffff'")
    change = await schema.stamp(db_url, "head")
    assert (change.before, change.steps) == ("ffff", ())
    assert await schema.check(db_url) == ()
    assert (await schema.stamp(db_url, "base")).after is None
    assert await tables(db_url) == before
    with pytest.raises(SchemaError, match=r"already exists; .* see 'stamp' in MIGRATIONS\.md"):
        await schema.upgrade(db_url)


async def test_history_tells_what_is_applied(db_url: str, versions: Path) -> None:
    add_revision(versions, "pass")
    *applied, newest = await schema.history(db_url)
    assert all(revision.applied for revision in applied)
    assert not newest.applied


async def test_of_several_revisions_all_are_applied_or_none(db_url: str, versions: Path) -> None:
    before = await schema.current(db_url)
    add_revision(versions, "op.create_table('made', sa.Column('id', sa.Integer(), primary_key=True))")
    add_revision(versions, "op.execute('SELECT * FROM nowhere')")
    with pytest.raises(SchemaError, match="nowhere"):
        await schema.upgrade(db_url)
    assert await schema.current(db_url) == before
    assert "made" not in await tables(db_url)


async def test_a_cancelled_upgrade_changes_nothing_and_holds_no_lock(database_url: str) -> None:
    for delay_s in (0.01, 0.03, 0.06, 0.1):
        task = asyncio.create_task(schema.upgrade(database_url))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await tables(database_url) in (set(), {*Base.metadata.tables, "alembic_version"})
    async with asyncio.timeout(60):
        await schema.upgrade(database_url)
    assert await schema.check(database_url) == ()


async def test_two_upgrades_in_one_process_take_turns(database_url: str) -> None:
    first, second = await asyncio.gather(schema.upgrade(database_url), schema.upgrade(database_url))
    assert min(len(first.steps), len(second.steps)) == 0
    assert await schema.check(database_url) == ()


@postgres_only
async def test_an_upgrade_waits_for_another_ones_lock_but_not_for_good(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_connection, "LOCK_WAIT_S", 0.5)
    async with connection(database_url) as other:
        await other.execute(text(f"SELECT pg_advisory_lock({schema_connection.ADVISORY_LOCK})"))
        with pytest.raises(SchemaError, match="another migration was still running"):
            await schema.upgrade(database_url)
    await schema.upgrade(database_url)


@sqlite_only
async def test_an_upgrade_waits_for_a_writer_but_not_for_good(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_connection, "LOCK_WAIT_S", 0.5)
    async with connection(database_url):
        with pytest.raises(SchemaError, match="another process still wrote to it"):
            await schema.upgrade(database_url)
    await schema.upgrade(database_url)


@postgres_only
async def test_a_table_in_use_is_not_waited_for_forever(
    db_url: str, versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_connection, "DDL_LOCK_WAIT_S", 0.3)
    add_revision(versions, "op.add_column('merchants', sa.Column('extra', sa.Integer()))")
    async with connection(db_url) as other:
        await other.execute(text("SELECT * FROM merchants"))
        with pytest.raises(SchemaError, match="a running transaction held a table"):
            await schema.upgrade(db_url)


@postgres_only
async def test_a_migration_may_run_longer_than_a_query_and_leave_its_transaction(
    db_url: str, versions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.limits.DB_COMMAND_TIMEOUT_S", 0.2)
    add_revision(
        versions,
        "op.execute('SELECT pg_sleep(0.5)')",
        "with op.get_context().autocommit_block():",
        "    op.create_index('ix_extra', 'merchants', ['name'], postgresql_concurrently=True)",
    )
    first, second = await asyncio.gather(schema.upgrade(db_url), schema.upgrade(db_url))
    assert len(first.steps) + len(second.steps) == 1


async def test_batch_mode_keeps_rows_references_and_the_hd_counter(db_url: str, versions: Path) -> None:
    db = Database(db_url)
    async with db.write() as session:
        await insert_merchant(session)
        await insert_payment(session)
        last = await insert_address(session)
        await session.execute(DepositAddress.__table__.delete().where(DepositAddress.id == last))  # type: ignore[attr-defined]
    add_revision(
        versions,
        "kept = {'sqlite_autoincrement': True}",
        "with op.batch_alter_table('deposit_addresses', table_kwargs=kept) as batch:",
        "    batch.alter_column('branch', type_=sa.Integer(), existing_nullable=False)",
        "with op.batch_alter_table('merchants') as batch:",
        "    batch.alter_column('name', type_=sa.String(300), existing_nullable=False)",
    )
    await schema.upgrade(db_url)
    async with db.write() as session:
        assert await session.scalar(select(func.count()).select_from(Payment)) == 1
        assert await insert_address(session) > last
    await db.close()


@sqlite_only
async def test_a_migration_that_loses_autoincrement_is_refused(db_url: str, versions: Path) -> None:
    add_revision(
        versions,
        "with op.batch_alter_table('deposit_addresses') as batch:",
        "    batch.alter_column('branch', type_=sa.Integer(), existing_nullable=False)",
    )
    with pytest.raises(SchemaError, match="loses AUTOINCREMENT of deposit_addresses"):
        await schema.upgrade(db_url)
    assert str(await schema.schema_problem(db_url)).endswith("upgrade`")


async def test_a_migration_that_leaves_rows_without_their_parent_is_refused(db_url: str, versions: Path) -> None:
    db = Database(db_url)
    async with db.write() as session:
        await insert_merchant(session)
        await insert_payment(session)
    await db.close()
    add_revision(versions, "op.execute('DELETE FROM merchants')")
    with pytest.raises(SchemaError, match="foreign key"):
        await schema.upgrade(db_url)


async def test_a_written_revision_leads_to_the_models_and_names_no_code_of_ours(db_url: str, versions: Path) -> None:
    await execute(db_url, "ALTER TABLE payments DROP COLUMN settled_at")
    await execute(db_url, "ALTER TABLE payments DROP COLUMN description")
    await execute(db_url, "DROP INDEX uq_payments_open_order")
    path = await schema.revision(db_url, "what is missing")
    assert path is not None
    assert path.name == f"{head(versions)}_what_is_missing.py"
    source = path.read_text()
    assert "app" not in source
    assert "TIME" in source
    await schema.upgrade(db_url)
    assert await schema.check(db_url) == ()
    await schema.downgrade(db_url, "-1")
    await schema.upgrade(db_url)
    assert await schema.check(db_url) == ()


async def test_no_revision_is_written_when_nothing_differs_unless_an_empty_one_is_asked_for(
    db_url: str, versions: Path
) -> None:
    newest = head(versions)
    assert await schema.revision(db_url, "nothing") is None
    assert head(versions) == newest
    assert await schema.revision(db_url, "by hand", autogenerate=False) is not None
    with pytest.raises(SchemaError, match="is not at"):
        await schema.revision(db_url, "too early")


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("op.drop_column('payments', 'description')", "column payments.description and what it holds"),
        (
            "op.alter_column('payments', 'description', type_=sa.String(9))",
            "column payments.description: what",
        ),
        ("op.drop_table('webhook_attempts')", "table webhook_attempts and all its rows"),
        ("op.execute('DELETE FROM events WHERE version = 1')", "rows of table events"),
        ("op.execute('delete from events')", "rows of table events"),
        ("op.execute('\\n    DELETE\\n    FROM events\\n    WHERE version = 1\\n')", "rows of table events"),
        (
            "op.execute('\\n  truncate events, webhook_attempts\\n  restart identity')",
            "rows of table events, webhook",
        ),
        ("op.execute('SELECT 1; TRUNCATE TABLE events')", "rows of table events"),
        ("op.execute('  drop table if exists events')", "table events and all its rows"),
        ("op.execute('alter table payments\\n  drop column description')", "column payments.description and what"),
        ("op.execute('\\n  UPDATE payments\\nSET order_id = NULL\\n')", "values of column payments.order_id"),
        ("op.execute('update payments as p\\n set order_id = NULL')", "values of column payments.order_id"),
    ],
)
async def test_what_a_revision_destroys_is_known_before_it_runs(
    db_url: str, versions: Path, statement: str, lost: str
) -> None:
    add_revision(versions, statement)
    [phrase] = await destroyed(db_url, "upgrade", "head")
    assert phrase.startswith(lost)
    assert await destroyed(db_url, "downgrade", "base") != (), "the way down of what is applied now, not of that"


async def test_going_below_0003_may_cost_orders_their_names(db_url: str) -> None:
    assert any("payments.order_id" in lost for lost in await destroyed(db_url, "downgrade", "0002"))


async def test_adding_destroys_nothing(db_url: str, versions: Path) -> None:
    add_revision(
        versions,
        "op.add_column('payments', sa.Column('note', sa.Text()))",
        "op.execute(\"UPDATE payments SET note = ''\")",
        "op.create_index('i', 'events', ['type'])",
    )
    assert await destroyed(db_url, "upgrade", "head") == ()


async def test_two_heads_are_an_error_with_a_name(db_url: str, versions: Path) -> None:
    parent = head(versions)
    add_revision(versions, "pass")
    (versions / "9999_other.py").write_text(HEADER.format(id="9999", parent=parent) + "    pass\n")
    with pytest.raises(SchemaError, match="Multiple head revisions"):
        await schema.schema_problem(db_url)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql+asyncpg://u:hunter2@127.0.0.1:1/x", "PostgreSQL database x at 127.0.0.1:1: .*Connect call failed"),
        ("postgresql+asyncpg://u:hunter2@127.0.0.1:1/x?sslmode=require", "unexpected .*sslmode.*PAYWATCH_DATABASE_URL"),
        ("postgresql+asyncpg://u:hunter2@127.0.0.1:port/x", "^the database: PAYWATCH_DATABASE_URL cannot be read$"),
        ("postgresql+asyncpg://u:a@b:hunter2@127.0.0.1/x", "^the database: PAYWATCH_DATABASE_URL cannot be read$"),
        ("sqlite+aiosqlite:////proc/nowhere/x.db", "No such file"),
        ("sqlite+aiosqlite:////tmp", "unable to open"),
    ],
)
async def test_a_database_that_cannot_be_reached_is_named_without_its_password(url: str, problem: str) -> None:
    with pytest.raises((SchemaError, ConfigError), match=problem) as caught:
        await schema.upgrade(url)
    assert "hunter2" not in str(caught.value)

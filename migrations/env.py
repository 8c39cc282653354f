"""What Alembic runs for every command: compares and migrates the models' tables on one connection.

`app.db.schema` hands that connection over, with its lock taken. Alembic's own command comes here too, through
`schema.run_environment`, so that it takes the same lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import CreateIndexOp, DropIndexOp, DropTableOp, MigrationScript, ModifyTableOps
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.types import TypeDecorator

from app.db import models, schema, types
from app.db.schema_connection import ADVISORY_LOCK, DDL_LOCK_WAIT_S

# Revisions spell plain SQLAlchemy types under names of their own, so that no later change of the code changes them.
UNITS = 'UNITS = sa.String(78).with_variant(sa.Numeric(78, 0), "postgresql")'
TIME = "TIME = sa.DateTime(timezone=True)"
BIG_ID = 'BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")'


def render_plain_type(kind: str, item: Any, autogenerate: AutogenContext) -> str | Literal[False]:
    """How a revision spells a type of `app.db.types`; False leaves it to Alembic."""
    if kind != "type":
        return False
    if isinstance(item, types.Units):
        definition = UNITS
    elif isinstance(item, types.UtcDateTime):
        definition = TIME
    elif item is types.BigId:
        definition = BIG_ID
    elif isinstance(item, TypeDecorator):
        raise CommandError(f"tell migrations/env.py how revisions spell the type {type(item).__name__}")
    else:
        return False
    autogenerate.imports.add(definition)
    return definition.partition(" ")[0]


def tidy(_context: Any, _revision: Any, scripts: list[MigrationScript]) -> None:
    """Indexes need no batch, and go with their tables: less to read in a revision."""
    for script in scripts:
        for operations in (*script.upgrade_ops_list, *script.downgrade_ops_list):
            dropped = {op.table_name for op in operations.ops if isinstance(op, DropTableOp)}
            kept: list[Any] = []
            for op in operations.ops:
                if not isinstance(op, ModifyTableOps) or not all(
                    isinstance(part, CreateIndexOp | DropIndexOp) for part in op.ops
                ):
                    kept.append(op)
                elif op.table_name not in dropped:
                    kept.extend(op.ops)
            operations.ops = kept


def run(connection: Connection) -> None:
    report: schema.Report = context.config.attributes.setdefault("report", schema.Report())
    context.configure(
        connection=connection,
        target_metadata=models.Base.metadata,
        # Batch operations are plain ALTERs on PostgreSQL; a revision generated on either database fits both.
        render_as_batch=True,
        process_revision_directives=tidy,
        render_item=render_plain_type,
        compare_type=True,
        compare_server_default=True,
        # Alembic thinks that SQLite cannot, because of the driver's own BEGIN, which app.db.engine switched off.
        transactional_ddl=True,
        # One transaction for all revisions: a run that fails leaves nothing half done.
        transaction_per_migration=False,
        on_version_apply=report.add_step,
    )
    with context.begin_transaction():
        report.before = schema.read_revision(connection)
        if connection.dialect.name == "sqlite":
            with kept_autoincrements(connection):
                context.run_migrations()
            if report.steps:  # a look at the schema answers for no rows
                refuse_broken_references(connection)
        else:
            context.run_migrations()
        report.after = schema.read_revision(connection)


@contextmanager
def kept_autoincrements(connection: Connection) -> Iterator[None]:
    """Batch mode makes a table anew, and its AUTOINCREMENT counter with it: the ids of deleted rows would come again.

    deposit_addresses counts HD indexes: one used twice gives one customer's money to another's order.
    """
    before = _read_counters(connection)
    yield
    after = _read_counters(connection)
    remaining = set(connection.scalars(text("SELECT name FROM sqlite_master WHERE type = 'table'")))
    for table in sorted(before.keys() & remaining):
        if table not in after:
            raise CommandError(
                f"the migration loses AUTOINCREMENT of {table}: give batch_alter_table "
                "table_kwargs={'sqlite_autoincrement': True}"
            )
        if after[table] >= before[table]:
            continue  # nothing to write, so that `check` can look at a database that others write to
        counter = {"name": table, "seq": before[table]}
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), counter)
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"), counter)


def _read_counters(connection: Connection) -> dict[str, int]:
    """The AUTOINCREMENT tables and the highest id that each has ever given."""
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND upper(sql) LIKE '%AUTOINCREMENT%'"
    tables = list(connection.scalars(text(query)))
    if not tables:
        return {}
    counts = {name: seq for name, seq in connection.execute(text("SELECT name, seq FROM sqlite_sequence"))}
    return {table: counts.get(table, 0) for table in tables}


def refuse_broken_references(connection: Connection) -> None:
    """Foreign keys are off while SQLite migrates (see `schema`); what they would have refused is looked for here."""
    broken = {f"{row[0]} to {row[2]}" for row in connection.execute(text("PRAGMA foreign_key_check"))}
    if broken:
        raise CommandError(f"the migration leaves foreign keys without their rows: {', '.join(sorted(broken))}")


def write() -> None:
    """The revisions as a script for psql, with what `app.db.schema_connection.lock` does for a real run."""
    context.configure(dialect_name="postgresql", literal_binds=True, render_as_batch=True, transactional_ddl=True)
    with context.begin_transaction():
        context.execute(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
        context.execute(f"SET LOCAL lock_timeout = '{DDL_LOCK_WAIT_S}s'")
        context.run_migrations()


if context.is_offline_mode():
    if "printing" not in context.config.attributes:
        raise CommandError("run `python migrate.py upgrade --sql`: it knows the database and where it is")
    write()
elif (shared := context.config.attributes.get("connection")) is not None:
    run(shared)
else:
    schema.run_environment(run)

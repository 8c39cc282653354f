"""Goal: an operator's `python migrate.py` does what it says, says what it did, and fails without a traceback."""

import asyncio
import os
import pty
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from app.db import schema
from tests.db.test_schema import execute, postgres_only, sqlite_only
from tests.support.forks import python

MIGRATE = Path(__file__).parents[2] / "migrate.py"
STATE = """
    INSERT INTO chain_states (chain_id, name, last_scanned_block, last_scanned_hash, last_scanned_time, first_block,
        highest_block, finalized_block, head_block, head_seen_at, backup_block, missed_transfers, rotated_address_id)
    VALUES ({chain_id}, '{name}', 0, '', '2026-01-01 00:00:00', 0, 0, 0, 0, '2026-01-01 00:00:00', 0, 0, 0)
"""
ADDRESS = """
    INSERT INTO deposit_addresses (branch, address, created_at)
    VALUES (0, '12345678901234567890', '2026-01-01 00:00:00')
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


async def migrate(url: str, folder: Path, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL) -> Outcome:
    """Run the command in `folder`, which is not the checkout."""
    env = {"PATH": os.environ["PATH"], "PAYWATCH_DATABASE_URL": url}
    if stdin == asyncio.subprocess.DEVNULL:
        answer = await python(str(MIGRATE), *arguments, cwd=folder, env=env)
        return Outcome(answer.code, answer.out, answer.error)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(MIGRATE), *arguments),
        cwd=folder,
        env=env,
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


async def run_script(url: str, sql: str) -> None:
    """As an operator would, with psql."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def test_a_whole_life_is_told_in_sentences(database_url: str, tmp_path: Path) -> None:
    done = await migrate(database_url, tmp_path, "upgrade")
    assert (done.code, done.err) == (0, "")
    assert "Applied 0001: " in done.out
    assert "Schema: no revision → " in done.out
    assert "Nothing to do" in (await migrate(database_url, tmp_path, "upgrade")).out
    assert (await migrate(database_url, tmp_path, "check")).code == 0
    assert "That is the newest revision." in (await migrate(database_url, tmp_path, "current")).out
    assert "0001  applied" in (await migrate(database_url, tmp_path, "history")).out
    assert "Undid 0001: " in (await migrate(database_url, tmp_path, "downgrade", "base")).out
    behind = await migrate(database_url, tmp_path, "check")
    assert (behind.code, "run `python migrate.py upgrade`" in behind.out) == (1, True)
    assert "Applied 0001: " in (await migrate(database_url, tmp_path, "upgrade", "+1")).out
    assert "→ no revision. No table was touched." in (await migrate(database_url, tmp_path, "stamp", "base")).out


async def test_output_that_nobody_reads_is_no_traceback(database_url: str, tmp_path: Path) -> None:
    """As under `| head`, which has ended."""
    read, write = os.pipe()
    os.close(read)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(MIGRATE), "history"),
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PAYWATCH_DATABASE_URL": database_url},
            stdout=write,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(write)
    _, err = await process.communicate()
    told = b"migrate.py: its output was not read; `current` tells where the schema is\n"
    assert (process.returncode, err) == (1, told)


async def test_a_terminal_of_few_characters_hides_no_success(database_url: str, tmp_path: Path) -> None:
    """What was done is told with exit code 0, though the terminal has no arrow."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(MIGRATE), "upgrade"),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PAYWATCH_DATABASE_URL": database_url, "PYTHONIOENCODING": "latin-1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"Schema: no revision \\u2192 " in out


async def test_check_exits_1_when_models_and_schema_differ(db_url: str, tmp_path: Path) -> None:
    await execute(db_url, "DROP INDEX uq_payments_open_order")
    found = await migrate(db_url, tmp_path, "check")
    assert (found.code, found.err) == (1, "")
    assert "- index payments.uq_payments_open_order is in the models and not in the database" in found.out


async def test_several_at_once_on_an_empty_database_all_succeed(database_url: str, tmp_path: Path) -> None:
    done = await asyncio.gather(*(migrate(database_url, tmp_path, "upgrade") for _ in range(4)))
    assert [(one.code, one.err) for one in done] == [(0, "")] * 4
    assert sum("Applied 0001" in one.out for one in done) == 1
    assert await schema.check(database_url) == ()


@pytest.mark.parametrize(
    ("url", "arguments", "problem"),
    [
        ("mysql://u:hunter2@h/x", ["upgrade"], "PAYWATCH_DATABASE_URL: must begin with"),
        ("postgresql+asyncpg://u:hunter2@127.0.0.1:1/x", ["check"], "PostgreSQL database x at 127.0.0.1:1: "),
        ("sqlite+aiosqlite:///x.db", ["upgrade", "nonsense"], "Can't locate revision identified by 'nonsense'"),
        ("sqlite+aiosqlite:///x.db", ["downgrade", "-1"], "didn't produce 1 migrations"),
        ("sqlite+aiosqlite:///x.db", ["stamp", "nonsense"], "Can't locate revision identified by 'nonsense'"),
    ],
)
async def test_an_operators_error_is_one_line_and_exit_code_1(
    url: str, arguments: list[str], problem: str, tmp_path: Path
) -> None:
    failed = await migrate(url, tmp_path, *arguments)
    assert failed.code == 1
    assert failed.err.startswith("migrate.py: ")
    assert failed.err.count("\n") == 1
    assert problem in failed.err
    assert "hunter2" not in failed.out + failed.err


@sqlite_only
async def test_sql_is_printed_for_postgresql_alone(database_url: str, tmp_path: Path) -> None:
    refused = await migrate(database_url, tmp_path, "upgrade", "--sql")
    assert refused.code == 1
    assert "--sql is for PostgreSQL" in refused.err


@postgres_only
async def test_the_printed_sql_makes_the_schema_that_an_upgrade_makes(database_url: str, tmp_path: Path) -> None:
    printed = await migrate(database_url, tmp_path, "upgrade", "--sql")
    assert (printed.code, printed.err) == (0, "")
    assert await schema.current(database_url) is None, "printing changes nothing"
    await run_script(database_url, printed.out)
    assert await schema.check(database_url) == ()
    await run_script(database_url, (await migrate(database_url, tmp_path, "downgrade", "base", "--sql")).out)
    assert await schema.current(database_url) is None
    assert "CREATE TABLE payments" in (await migrate(database_url, tmp_path, "upgrade", "--sql")).out


async def test_what_a_downgrade_destroys_is_said_before_it_does(db_url: str, tmp_path: Path) -> None:
    done = await migrate(db_url, tmp_path, "downgrade", "base")
    assert done.code == 0
    assert "Warning: this destroys table payments and all its rows.\n" in done.err
    assert "alembic_version" not in done.err
    again = await migrate(db_url, tmp_path, "upgrade")
    assert (again.code, again.err) == (0, "")


async def test_going_down_to_nothing_names_the_addresses_that_come_again(db_url: str, tmp_path: Path) -> None:
    """At a terminal it asks; elsewhere it wants to be told."""
    await execute(db_url, ADDRESS)
    untold = await migrate(db_url, tmp_path, "downgrade", "base")
    assert (untold.code, "nothing was changed; add --yes" in untold.err, "Undid" in untold.out) == (1, True, False)
    assert await schema.check(db_url) == ()
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"n\n")
        refused = await migrate(db_url, tmp_path, "downgrade", "base", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (refused.code, "Nothing was changed." in refused.out) == (1, True), refused
    assert "1 addresses that customers have are given out again" in refused.err
    assert await schema.check(db_url) == ()
    assert (await migrate(db_url, tmp_path, "downgrade", "base", "--yes")).code == 0


async def test_a_database_of_other_chains_is_left_alone(db_url: str, tmp_path: Path) -> None:
    """Goal: the wrong .env beside the right chains.yaml, or the other way round, migrates nothing."""
    await execute(db_url, STATE.format(chain_id=1, name="devnet"))
    await execute(db_url, STATE.format(chain_id=5, name="retired"))
    (tmp_path / "chains.yaml").write_text('chains:\n  - {name: devnet, chain_id: 31337, rpc_url: "${NOT_SET}"}\n')
    for arguments in (("upgrade",), ("downgrade", "base"), ("stamp", "base")):
        refused = await migrate(db_url, tmp_path, *arguments)
        assert refused.code == 1
        assert "chain 'devnet' is 1 in " in refused.err
        assert " and 31337 in chains.yaml" in refused.err
        assert "retired" not in refused.err
    if "postgresql" in db_url:
        printed = await migrate(db_url, tmp_path, "downgrade", "base", "--sql")
        assert (printed.code, printed.out, "chain 'devnet' is 1 in " in printed.err) == (1, "", True)
    found = await migrate(db_url, tmp_path, "check")
    assert (found.code, found.err) == (1, "")
    assert "- chain 'devnet' is 1 in " in found.out
    await execute(db_url, "UPDATE chain_states SET chain_id = 31337 WHERE name = 'devnet'")
    assert (await migrate(db_url, tmp_path, "check")).code == 0


async def test_alembics_own_command_takes_the_same_road(database_url: str, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "alembic", "-c", str(schema.ALEMBIC_INI))
    for arguments, code in ((("upgrade", "head"), 0), (("check",), 0), (("upgrade", "head", "--sql"), 255)):
        process = await asyncio.create_subprocess_exec(
            *(*command, *arguments),
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PAYWATCH_DATABASE_URL": database_url},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == code
    assert await schema.check(database_url) == ()

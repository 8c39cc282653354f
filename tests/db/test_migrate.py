"""Goal: an operator's `python migrate.py` does what it says, says what it did, and fails without a traceback."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.db import schema
from tests.db.test_schema import execute

MIGRATE = Path(__file__).parents[2] / "migrate.py"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


async def migrate(url: str, folder: Path, *arguments: str) -> Outcome:
    """Run the command in `folder`, which is not the checkout."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(MIGRATE), *arguments),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PAYWATCH_DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return Outcome(process.returncode, out.decode(), err.decode())


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

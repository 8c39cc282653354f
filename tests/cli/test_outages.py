"""Goal: a command that meets an outage ends with one line, and one that meets our own mistake with a report."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import structlog
from sqlalchemy import text

from app import cli
from app.core import limits
from app.db.engine import Database
from app.services import pauses
from tests.cli.test_cli import CHAINS
from tests.db.test_schema import postgres_only


@pytest.fixture(autouse=True)
def logging_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def command(db_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`paywatch webhooks pause`, in this process, whose waits are short."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chains.yaml").write_text(CHAINS)
    monkeypatch.setenv("PAYWATCH_DATABASE_URL", db_url)
    monkeypatch.setattr(limits, "SQLITE_BUSY_TIMEOUT_S", 0.2)
    monkeypatch.setattr(limits, "DB_COMMAND_TIMEOUT_S", 1.0)
    monkeypatch.setattr(sys, "argv", ["paywatch", "webhooks", "pause", "--reason", "x", "--yes"])
    return sys.argv


@asynccontextmanager
async def written_to(url: str) -> AsyncIterator[Database]:
    """Somebody else has the pauses to himself."""
    db = Database(url)
    try:
        async with db.write() as session:
            await session.execute(text("SELECT 1" if db.is_sqlite else "LOCK TABLE pauses"))
            yield db
    finally:
        await db.close()


def one_line(said: str) -> bool:
    return said.count("\n") == 1 and said.startswith("the database is away or too busy: ") and "pauses" not in said


@pytest.mark.usefixtures("command")
async def test_a_busy_database_is_one_line_and_exit_code_1(db_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with written_to(db_url):
        assert await asyncio.to_thread(cli.main) == 1
    captured = capsys.readouterr()
    assert (captured.out, one_line(captured.err)) == ("", True), captured.err


@postgres_only
@pytest.mark.usefixtures("command")
async def test_a_database_that_goes_away_in_the_middle_is_one_line(
    db_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "DB_COMMAND_TIMEOUT_S", 30.0)
    ends = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with written_to(db_url) as db:
        running = asyncio.create_task(asyncio.to_thread(cli.main))
        while not running.done():
            async with db.read() as session:
                await session.execute(ends)
            await asyncio.sleep(0.05)
    captured = capsys.readouterr()
    assert (running.result(), captured.out, one_line(captured.err)) == (1, "", True), captured.err


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("silent", [False, True])
def test_what_nobody_foresaw_is_a_report_without_secrets(
    silent: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object) -> NoReturn:
        if silent:  # as the doctor
            logging.getLogger().setLevel("CRITICAL")
        raise RuntimeError("https://node.example/v2/KEY123 said no")

    monkeypatch.setattr(pauses, "active", broken)
    assert cli.main() == 1
    captured = capsys.readouterr()
    [line] = [json.loads(said) for said in captured.err.splitlines()]
    assert (line["event"], line["level"]) == ("unhandled error", "error")
    assert line["report"].startswith("rep_")
    assert "RuntimeError: https://node.example said no" in line["exception"]
    assert "KEY123" not in captured.err + captured.out

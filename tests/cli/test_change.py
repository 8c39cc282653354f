"""Goal: nothing is changed that was not asked for: a dry run only tells, a terminal is asked, a script says --yes."""

import asyncio
import os
import pty
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import typer

from app.cli import app, change
from tests.cli.test_cli import CHAINS
from tests.support.anvil import MNEMONIC
from tests.support.forks import Answer
from tests.support.operator import Told, command

PAUSE = ("webhooks", "pause", "--reason", "the receiver moves")
Paywatch = Callable[..., Awaitable[Told]]


@pytest.fixture
def folder(tmp_path: Path, sqlite_template: str) -> Path:
    """An installation on SQLite, as its server would find it there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "paywatch.db").write_bytes(Path(sqlite_template).read_bytes())
    (tmp_path / "chains.yaml").write_text(CHAINS)
    return tmp_path


@pytest.fixture
def paywatch(folder: Path) -> Paywatch:
    settings = {
        "PAYWATCH_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/data/paywatch.db",
        "PAYWATCH_CHAINS_FILE": str(folder / "chains.yaml"),
        "PAYWATCH_MNEMONIC": MNEMONIC,
    }
    return partial(command, **settings)


async def at_a_terminal(folder: Path, answer: str, *arguments: str) -> Answer:
    """Run the command with a terminal as its standard input, and type `answer`."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAYWATCH_")}
    try:
        os.write(ours, answer.encode())
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.cli", *arguments),
            cwd=folder,
            env=inherited | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, error = await process.communicate()
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode is not None
    return Answer(process.returncode, out.decode(), error.decode())


async def paused(paywatch: Paywatch) -> bool:
    return "webhooks: paused by" in (await paywatch("status")).out


async def test_a_terminal_of_few_characters_shows_what_it_can(folder: Path) -> None:
    """A chain without a cursor is shown as a dash that Latin-1 has not."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app.cli", "status"),
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "latin-1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"\\u2013" in out


async def test_a_dry_run_tells_and_changes_nothing(paywatch: Paywatch) -> None:
    answer = await paywatch(*PAUSE, "--dry-run", "--yes")
    assert (answer.code, answer.out) == (0, "would send no webhook any more\n")
    assert not await paused(paywatch)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--chain", "devnet", "pause", "--reason", "x", "--yes"),
        ("--dry-run", "resume", "--yes"),
        ("--dry-run", "release", "swp_1", "--yes"),
    ],
)
async def test_what_is_said_before_the_subcommand_is_not_passed_over(
    paywatch: Paywatch, arguments: tuple[str, ...]
) -> None:
    answer = await paywatch("sweep", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "come after it" in answer.error


def test_no_other_group_takes_options() -> None:
    """One that did would have to look for them as `sweep` does."""
    groups = (typer.main.get_command(app).commands).values()  # type: ignore[attr-defined]
    with_options = [group.name for group in groups if hasattr(group, "commands") and group.params]
    assert with_options == ["sweep"]


async def test_without_a_terminal_it_wants_yes(paywatch: Paywatch) -> None:
    answer = await paywatch(*PAUSE)
    assert (answer.code, answer.out) == (1, "")
    assert answer.error == (
        "this would send no webhook any more: nothing was done; add --yes, for there is no terminal to ask at\n"
    )
    assert not await paused(paywatch)


@pytest.mark.parametrize(("typed", "code", "done"), [("y\n", 0, True), ("\n", 1, False)])
async def test_at_a_terminal_it_asks(folder: Path, paywatch: Paywatch, typed: str, code: int, done: bool) -> None:
    answer = await at_a_terminal(folder, typed, *PAUSE)
    assert answer.code == code, answer.error
    assert "Send no webhook any more? [y/N]" in answer.error
    assert ('"event": "paused by an operator"' in answer.error) == done
    assert await paused(paywatch) == done


async def test_a_second_time_it_changes_nothing_and_says_so(paywatch: Paywatch) -> None:
    first = await paywatch(*PAUSE, "--yes")
    assert (first.code, first.out) == (0, "webhooks are paused\n")
    again = await paywatch("webhooks", "pause", "--reason", "another", "--yes")
    assert again.code == 0
    assert again.out.startswith("nothing to do: webhooks: paused by ")
    assert ": the receiver moves; `paywatch webhooks resume` ends it" in again.out
    assert [(await paywatch("webhooks", "resume", "-y")).out for _ in range(2)] == [
        "webhooks are sent again\n",
        "nothing to do: webhooks are not paused\n",
    ]


async def test_what_was_done_is_logged_with_who_and_why(paywatch: Paywatch) -> None:
    answer = await paywatch(*PAUSE, "--yes", SUDO_USER="ada")
    [line] = [line for line in answer.log if line["event"] == "paused by an operator"]
    assert (line["what"], line["reason"], line["operator"]) == ("webhooks", "the receiver moves", "ada")


@pytest.mark.parametrize("reason", ["", "   ", "a\nb", "x" * 301])
async def test_a_reason_is_a_sentence(paywatch: Paywatch, reason: str) -> None:
    answer = await paywatch("webhooks", "pause", "--reason", reason, "--yes")
    assert (answer.code, "1 to 300 printable characters" in answer.error) == (2, True)
    assert not await paused(paywatch)


async def test_a_reason_is_asked_for(paywatch: Paywatch) -> None:
    assert (await paywatch("webhooks", "pause", "--yes")).code == 2


def test_an_operator_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(change.getpass, "getuser", nameless)
    assert change.operator_name() == f"uid {os.getuid()}"

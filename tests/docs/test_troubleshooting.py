"""Goal: each row of docs/troubleshooting.md is a fault that a test makes, says what it finds, and names what exists.

The tests themselves are in tests/e2e/test_faults.py: one for each row, by its symptom.
"""

import re
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from app.cli import app
from tests.e2e.test_faults import FAULTS, REFUSALS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| symptom")
]

# Of each row its symptom, and the doctor's check that the test of that row finds.
SHOWN: dict[str, str] = {each.symptom: each.check for each in (*FAULTS, *REFUSALS)}


def test_each_row_is_a_fault_that_is_made_and_the_other_way_round() -> None:
    assert sorted(row[0] for row in ROWS) == sorted(SHOWN)
    assert len(ROWS) == len(FAULTS) + len(REFUSALS) >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_names_the_check_that_its_test_finds(row: list[str]) -> None:
    check = SHOWN[row[0]].replace("devnet", "NAME").replace("#0", "#N")
    check = re.sub(r"^(worker|process):.*", r"\1:ROLE", check)
    assert f"doctor `{check}`" in row[1]


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"`paywatch ([a-z][a-z _-]*?)(?: (?:-|[A-Z])[^`]*)?`", PAGE)))
)
def test_each_command_exists(command: str) -> None:
    found = get_command(app)
    for word in command.split():
        assert isinstance(found, typer.core.TyperGroup), f"{command}: {word} is no command"
        assert word in found.commands, f"there is no `paywatch {command}`"
        found = found.commands[word]


def test_each_metric_is_described() -> None:
    described = (ROOT / "docs" / "monitoring.md").read_text()
    named = set(re.findall(r"`((?:paywatch|process)_[a-z_]+)`", PAGE))
    assert named
    assert not {name for name in named if name not in described}


def test_each_check_of_the_doctor_is_described() -> None:
    described = (ROOT / "docs" / "doctor.md").read_text().replace("CHAIN", "NAME")
    for checks in re.findall(r"doctor (`[^`]+`)", PAGE):
        assert checks in described, checks

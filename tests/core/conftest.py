from pathlib import Path

import pytest

from app.core.config import read_environment


@pytest.fixture
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine, and no `.env` but the test's own."""
    for name in list(read_environment(None)):
        if name.upper().startswith("PAYWATCH_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

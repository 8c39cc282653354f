"""Goal: a password that was not percent-encoded is shown by no command of ours, not even in part."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.cli.test_cli import CHAINS, paywatch
from tests.support.forks import Answer, python

ROOT = Path(__file__).parents[2]
PASSWORDS = ("hunter2@sam3sam", "hunter2/sam3sam", "12/sam3sam")
URLS = [
    *(("DATABASE_URL", f"postgresql+asyncpg://pay:{password}@127.0.0.1:1/x") for password in PASSWORDS),
    *(("REDIS_URL", f"redis://:{password}@127.0.0.1:1/0") for password in PASSWORDS),
    ("REDIS_URL", "redis://hunter2:sam3sam"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "chains.yaml").write_text(CHAINS)
    return tmp_path


def shows_a_part(text: str) -> bool:
    return "hunter2" in text or "sam3sam" in text


def variables(name: str, url: str) -> dict[str, str]:
    """One wrong URL in a production that is otherwise well."""
    return {
        "PAYWATCH_SECRET_KEY": "0123456789abcdef0123456789abcdef",
        "PAYWATCH_REDIS_URL": "redis://127.0.0.1:1",
        f"PAYWATCH_{name}": url,
    }


@pytest.mark.parametrize(("name", "url"), URLS)
async def test_the_doctor_names_the_variable_and_shows_nothing_of_it(folder: Path, name: str, url: str) -> None:
    (folder / "log").write_text(f"cannot connect to {url}\nsam3sam is no host\n")
    bundle = ("--bundle", "out.tar.gz", "--log", "log")
    for arguments in ((), ("--json",), bundle):
        answer = await paywatch(folder, "doctor", *arguments, **variables(name, url))
        assert answer.code == 1
        assert f"PAYWATCH_{name}: cannot be read: percent-encode the password" in answer.out
        assert "Traceback" not in answer.error
        assert not shows_a_part(answer.out + answer.error)
        if "--json" in arguments:
            found = {each["check"]: each for each in json.loads(answer.out)["findings"]}
            thing = "database" if name == "DATABASE_URL" else "redis"
            assert (found[thing]["result"], found[thing]["found"]) == ("failed", f"PAYWATCH_{name} is wrong")
    with tarfile.open(folder / "out.tar.gz") as archive:
        packed = "".join(archive.extractfile(each).read().decode() for each in archive)  # type: ignore[union-attr]
    assert '"check": "settings"' in packed
    assert not shows_a_part(packed)


async def test_the_doctor_works_on_beside_a_database_that_no_engine_is_made_for(folder: Path) -> None:
    wrong = {"PAYWATCH_DATABASE_URL": "postgresql+asyncpg://u:hunter2@127.0.0.1:1/x?plugin=nonsense"}
    answer = await paywatch(folder, "doctor", "--json", **wrong)
    found = {each["check"]: each["found"] for each in json.loads(answer.out)["findings"]}
    assert (answer.code, answer.error) == (1, "")
    assert found["database"] == "PostgreSQL database x at 127.0.0.1:1 cannot be opened: NoSuchModuleError"
    assert "redis" in found


@pytest.mark.parametrize(("name", "url"), URLS)
async def test_every_process_refuses_it_in_one_line(folder: Path, name: str, url: str) -> None:
    for command in (
        (str(ROOT / "server.py"),),
        ("-m", "app.workers"),
        (str(ROOT / "migrate.py"), "check"),
        ("-m", "app.cli", "status"),
    ):
        answer = await started(folder, *command, **variables(name, url))
        assert (answer.code, answer.out) == (1, ""), command
        assert f"PAYWATCH_{name}: cannot be read: percent-encode the password" in answer.error
        assert answer.error.count("\n") == 1
        assert not shows_a_part(answer.error)


async def started(folder: Path, *command: str, **changed: str) -> Answer:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PAYWATCH_")}
    return await python(*command, cwd=folder, env=inherited | changed)

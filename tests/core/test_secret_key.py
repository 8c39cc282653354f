"""Goal: an installation has one secret key, used as it was given, or made once and never replaced."""

import hashlib
import multiprocessing
import stat
from pathlib import Path

import pytest

from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.secret_key import load_or_create_secret_key
from app.core.secrets import SecretBox

SECRET_KEY = "0123456789abcdef0123456789abcdef"

pytestmark = pytest.mark.usefixtures("empty_environment")


def test_the_secret_key_is_unwrapped_before_keys_are_derived() -> None:
    key = load_or_create_secret_key(Settings(secret_key=SECRET_KEY))
    assert key == SECRET_KEY
    assert SecretBox(SECRET_KEY).decrypt(SecretBox(key).encrypt("x")) == "x"


def test_embedded_mode_makes_its_secret_key_once_with_mode_0600() -> None:
    key = load_or_create_secret_key(Settings())
    path = Path("data/secret.key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(key) >= 32
    assert load_or_create_secret_key(Settings()) == key == path.read_text().strip()
    assert [entry.name for entry in path.parent.iterdir()] == ["secret.key"]


def _key_digest(directory: str) -> str:
    url = f"sqlite+aiosqlite:///{directory}/paywatch.db"
    return hashlib.sha256(load_or_create_secret_key(Settings(database_url=url)).encode()).hexdigest()


def test_processes_that_start_together_agree_on_one_secret_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert len(set(pool.map(_key_digest, [str(tmp_path / "new")] * 8))) == 1


def test_a_damaged_secret_key_file_is_never_replaced() -> None:
    Path("data").mkdir()
    Path("data/secret.key").write_text("short\n")
    with pytest.raises(ConfigError, match="damaged"):
        load_or_create_secret_key(Settings())
    assert Path("data/secret.key").read_text() == "short\n"


def test_a_data_directory_that_cannot_be_written_is_named() -> None:
    Path("data").write_text("a file in its place")
    with pytest.raises(ConfigError, match=r"data/secret\.key: the secret key cannot be kept there"):
        load_or_create_secret_key(Settings())


def test_production_makes_no_secret_key_file() -> None:
    with pytest.raises(ConfigError, match="PAYWATCH_SECRET_KEY is required"):
        load_or_create_secret_key(Settings(redis_url="redis://localhost:6379/0"))
    assert not Path("data").exists()

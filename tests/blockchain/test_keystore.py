"""Goal: a keystore gives back its wallet to its password and to nothing else, and no error says what was in it."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from app.blockchain.keystore import read_keystore, write_keystore
from app.blockchain.wallet import new_mnemonic
from app.core.errors import ConfigError
from tests.support.anvil import MNEMONIC

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def words() -> str:
    return new_mnemonic()


@pytest.fixture(scope="module")
def keystore(words: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keystore") / "wallet.json"
    write_keystore(path, words, PASSWORD)
    return path


def test_the_file_is_for_its_owner_and_holds_neither_words_nor_an_address(keystore: Path, words: str) -> None:
    assert keystore.stat().st_mode & 0o777 == 0o600
    keyfile: dict[str, Any] = json.loads(keystore.read_text())
    assert (keyfile["version"], keyfile["crypto"]["kdf"]) == (3, "scrypt")
    assert "address" not in keyfile
    assert not set(words.split()) & set(keystore.read_text().split())


def test_a_write_that_breaks_off_leaves_no_keystore_and_the_next_one_makes_it(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wallet.json"

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            write_keystore(path, words, PASSWORD)
    assert not path.exists()
    (tmp_path / ".wallet.json.draft").write_text("half a key")  # what a kill -9 leaves
    write_keystore(path, words, PASSWORD)
    assert read_keystore(path, PASSWORD) == words
    assert [each.name for each in tmp_path.iterdir()] == ["wallet.json"]


def test_its_password_opens_it_and_another_does_not(keystore: Path, words: str) -> None:
    assert read_keystore(keystore, PASSWORD) == words
    with pytest.raises(ConfigError, match="PAYWATCH_KEYSTORE_PASSWORD"):
        read_keystore(keystore, PASSWORD + " ")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 3}', '{"version": 9, "crypto": {}}', "\x00"])
def test_what_is_no_keystore_is_called_that(tmp_path: Path, text: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ConfigError, match="is not a keystore"):
        read_keystore(tmp_path / "file", PASSWORD)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_keystore(tmp_path / "absent", PASSWORD)


@pytest.mark.parametrize("words", [MNEMONIC, "hunter2 " * 24])
def test_other_words_than_24_of_the_list_are_refused_without_being_quoted(tmp_path: Path, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        write_keystore(tmp_path / "wallet.json", words, PASSWORD)
    told = "".join(traceback.format_exception(refused.value))
    assert "junk" not in told
    assert "hunter2" not in told
    assert list(tmp_path.iterdir()) == []

"""The wallet's 32 bytes of entropy in an encrypted file: keyfile version 3 (Web3 Secret Storage), with scrypt."""

import contextlib
import json
import os
from pathlib import Path
from typing import Final

from eth_account import Account
from hdwallet.exceptions import Error
from hdwallet.mnemonics import BIP39Mnemonic

from app.blockchain.wallet import ENTROPY_BYTES
from app.core.errors import ConfigError

_MODE: Final = 0o600


def write_keystore(path: Path, mnemonic: str, password: str) -> None:
    """Encrypt 24 recovery words into a new file, mode 0600; takes about a second, as reading does.

    Raises ConfigError when the file exists (another wallet may be in it), cannot be made, or the words are not 24.
    """
    try:
        entropy = bytes.fromhex(BIP39Mnemonic.decode(mnemonic))
    except Error:
        # Not chained: hdwallet's message may quote the words.
        raise ConfigError("a keystore holds a valid BIP-39 mnemonic") from None
    if len(entropy) != ENTROPY_BYTES:
        raise ConfigError("a keystore holds a mnemonic of 24 words")
    keyfile = Account.encrypt(entropy, password, kdf="scrypt")
    # The address of the entropy as if it were a key: nobody's, and an invitation to send money there.
    del keyfile["address"]
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "w", encoding="utf-8") as file:
            json.dump(keyfile, file)
            file.flush()
            os.fsync(file.fileno())
        # Whole or not at all, and never over another file: what is overwritten may be the only copy of a wallet.
        path.hardlink_to(draft)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already, and is left as it is") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # where no draft could be made
            draft.unlink()


def read_keystore(path: Path, password: str) -> str:
    """The recovery words. Raises ConfigError when the file cannot be read, is no keystore, or has another password."""
    try:
        keyfile = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"PAYWATCH_KEYSTORE_FILE: {path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"PAYWATCH_KEYSTORE_FILE: {path}: is not a keystore") from None
    # Nothing below is chained: what was decrypted might stand in the message.
    try:
        entropy = bytes(Account.decrypt(keyfile, password))
    except ValueError as error:
        if "mac" in str(error).lower():
            raise ConfigError("PAYWATCH_KEYSTORE_PASSWORD: is not the keystore's, or the file is damaged") from None
        raise ConfigError(f"PAYWATCH_KEYSTORE_FILE: {path}: is not a keystore") from None
    except (KeyError, TypeError, AttributeError, NotImplementedError):
        raise ConfigError(f"PAYWATCH_KEYSTORE_FILE: {path}: is not a keystore") from None
    if len(entropy) != ENTROPY_BYTES:
        raise ConfigError(f"PAYWATCH_KEYSTORE_FILE: {path}: does not hold {ENTROPY_BYTES} bytes of entropy")
    return str(BIP39Mnemonic.from_entropy(entropy, "english"))

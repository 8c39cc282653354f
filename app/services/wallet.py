"""The wallet: a new one for the operator, and the one that the settings name."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from app.blockchain.keystore import read_keystore, write_keystore
from app.blockchain.wallet import account_xpub, new_mnemonic
from app.core.config import Settings
from app.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Wallet:
    """24 recovery words, and the xpub of their deposit account m/44'/60'/0'."""

    mnemonic: str
    xpub: str

    def __repr__(self) -> str:
        return "Wallet(…)"  # a wallet in a log or a traceback is a wallet given away


def new_wallet() -> Wallet:
    """A wallet that nobody has; it is stored nowhere."""
    return wallet_of(new_mnemonic())


def wallet_of(mnemonic: str) -> Wallet:
    """The wallet of recovery words. Raises ConfigError for words that are none."""
    return Wallet(mnemonic, account_xpub(mnemonic))


def store_wallet(wallet: Wallet, path: Path, password: SecretStr) -> None:
    """Keep a wallet in a new encrypted file. Raises ConfigError."""
    write_keystore(path, wallet.mnemonic, password.get_secret_value())


def configured_mnemonic(settings: Settings) -> SecretStr | None:
    """The recovery words, from MNEMONIC or the keystore (about a second); None for a watch-only wallet.

    Raises ConfigError for a keystore that does not open.
    """
    if settings.keystore_file is None or settings.keystore_password is None:  # one is never set without the other
        return settings.mnemonic
    return SecretStr(read_keystore(settings.keystore_file, settings.keystore_password.get_secret_value()))


def deposit_xpub(settings: Settings) -> str:
    """The deposit account's xpub: as configured, else from the recovery words, which must agree when both are given.

    Raises ConfigError.
    """
    mnemonic = configured_mnemonic(settings)
    derived = account_xpub(mnemonic.get_secret_value()) if mnemonic is not None else None
    if settings.xpub is not None and derived is not None and settings.xpub != derived:
        source = "PAYWATCH_MNEMONIC" if settings.mnemonic is not None else "PAYWATCH_KEYSTORE_FILE"
        raise ConfigError(f"PAYWATCH_XPUB is not the account m/44'/60'/0' of {source}; keep one of them")
    xpub = settings.xpub or derived
    if xpub is None:
        raise ConfigError("PAYWATCH_XPUB is not set; `paywatch keys init` prints it")
    return xpub

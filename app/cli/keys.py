"""`paywatch keys init` and `words`"""

import json
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from pydantic import SecretStr

from app.core.config import load_settings
from app.core.errors import ConfigError
from app.services.wallet import Wallet, configured_mnemonic, new_wallet, store_wallet, wallet_of

app = typer.Typer(help="The wallet that deposit addresses come from, and the API keys.", no_args_is_help=True)

WORDS_PER_LINE: Final = 6
WORD_CHARS: Final = 8  # the longest word of BIP-39's English list
PASSWORD_CHARS: Final = 12  # scrypt makes each guess cost a second of one core, and no more


@app.command()
def init(
    keystore: Annotated[
        Path | None,
        typer.Option(help="Also keep the wallet there, encrypted; PAYWATCH_KEYSTORE_PASSWORD, or a prompt, for how."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a secret store; it holds the words.")] = False,
    from_words: Annotated[
        bool,
        typer.Option("--words", help="From the recovery words on paper: asked for, or one line of standard input."),
    ] = False,
) -> None:
    """Make a new wallet and show its recovery words, this once; or bring a wallet back from its words."""
    wallet = wallet_of(_recovery_words()) if from_words else new_wallet()
    if keystore is not None:
        store_wallet(wallet, keystore, _password())
    if as_json:
        print(json.dumps({"mnemonic": wallet.mnemonic, "xpub": wallet.xpub}))
    else:
        print(_places(wallet, keystore) if from_words else _letter(wallet, keystore))


@app.command()
def words() -> None:
    """Show the recovery words of the configured wallet, where its private key is: for whoever keeps them on paper."""
    mnemonic = configured_mnemonic(load_settings())
    if mnemonic is None:
        raise ConfigError("there is no private key here: PAYWATCH_MNEMONIC or PAYWATCH_KEYSTORE_FILE is the sweeper's")
    print(_grid(mnemonic.get_secret_value().split()))


def _recovery_words() -> str:
    """Never an argument: those stand in the list of processes and in the shell's history."""
    if sys.stdin.isatty():
        text: str = typer.prompt("The recovery words, with blanks between", hide_input=True, err=True)
    else:
        text = sys.stdin.readline()
    return " ".join(text.lower().split())


def _password() -> SecretStr:
    password = load_settings().keystore_password
    if password is None:
        if not sys.stdin.isatty():
            raise ConfigError("PAYWATCH_KEYSTORE_PASSWORD is not set, and there is no terminal to ask at")
        text = typer.prompt("The keystore's password", hide_input=True, confirmation_prompt=True, err=True)
        password = SecretStr(text)
    if len(password.get_secret_value()) < PASSWORD_CHARS:
        raise ConfigError(f"the keystore's password must have {PASSWORD_CHARS} characters or more")
    return password


def _letter(wallet: Wallet, keystore: Path | None) -> str:
    return f"""\
The wallet's 24 recovery words:

{_grid(wallet.mnemonic.split())}

{"They are shown this once." if keystore else "They are shown this once and stored nowhere."} Write them on paper, in
this order. Whoever has them has the money; without them it is lost.

{_places(wallet, keystore)}"""


def _places(wallet: Wallet, keystore: Path | None) -> str:
    return f"""\
The extended public key of its account m/44'/60'/0':

  {wallet.xpub}

What goes where:

  the API server, and workers    PAYWATCH_XPUB=<the extended public key>
    without the sweeper's role   Makes deposit addresses and can spend nothing. Whoever has it sees every address.
{_sweeper(keystore)}
                                 In production no other process may have it. In embedded mode (no PAYWATCH_REDIS_URL)
                                 the one server is the sweeper too; without sweeping, the extended public key is enough.

Use this wallet for nothing else, and export no private key of it: one of them, with the extended public key, gives
away the whole account."""


def _sweeper(keystore: Path | None) -> str:
    if keystore is None:
        return """\
  the sweeper's worker           PAYWATCH_MNEMONIC="<the 24 words, with blanks between>", in quotes"""
    return f"""\
  the sweeper's worker           PAYWATCH_KEYSTORE_FILE={keystore.resolve()}
                                 PAYWATCH_KEYSTORE_PASSWORD=<its password>, or PAYWATCH_KEYSTORE_PASSWORD_FILE"""


def _grid(words: list[str]) -> str:
    cells = [f"{number:>4} {word:<{WORD_CHARS}}" for number, word in enumerate(words, start=1)]
    lines = (cells[start : start + WORDS_PER_LINE] for start in range(0, len(cells), WORDS_PER_LINE))
    return "\n".join("".join(line).rstrip() for line in lines)

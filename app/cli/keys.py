"""`paywatch keys init`"""

import json
from typing import Annotated, Final

import typer

from app.services.operator import NewWallet, new_wallet

app = typer.Typer(help="The wallet that deposit addresses come from, and the API keys.", no_args_is_help=True)

WORDS_PER_LINE: Final = 6
WORD_CHARS: Final = 8  # the longest word of BIP-39's English list


@app.command()
def init(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for a secret store; it holds the words.")] = False,
) -> None:
    """Make a new wallet and show its recovery words, this once."""
    wallet = new_wallet()
    print(json.dumps({"mnemonic": wallet.mnemonic, "xpub": wallet.xpub}) if as_json else _letter(wallet))


def _letter(wallet: NewWallet) -> str:
    return f"""\
The wallet's 24 recovery words:

{_grid(wallet.mnemonic.split())}

They are shown this once and stored nowhere. Write them on paper, in this order. Whoever has them has the money;
without them it is lost.

The extended public key of its account m/44'/60'/0':

  {wallet.xpub}

What goes where:

  the API server, and workers    PAYWATCH_XPUB=<the extended public key>
    without the sweeper's role   Makes deposit addresses and can spend nothing. Whoever has it sees every address.
  the sweeper's worker           PAYWATCH_MNEMONIC="<the 24 words, with blanks between>", in quotes
                                 In production no other process may have it. In embedded mode (no PAYWATCH_REDIS_URL)
                                 the one server is the sweeper too; without sweeping, the extended public key is enough.

Use this wallet for nothing else, and export no private key of it: one of them, with the extended public key, gives
away the whole account."""


def _grid(words: list[str]) -> str:
    cells = [f"{number:>4} {word:<{WORD_CHARS}}" for number, word in enumerate(words, start=1)]
    lines = (cells[start : start + WORDS_PER_LINE] for start in range(0, len(cells), WORDS_PER_LINE))
    return "\n".join("".join(line).rstrip() for line in lines)

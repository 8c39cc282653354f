"""`paywatch keys create`, `list` and `revoke`: the API keys of every merchant."""

import asyncio
import json
import sys
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.installation import opened
from app.core import limits
from app.core.errors import ConfigError
from app.services.keys import SCOPES, NewKeyView, revoke_key
from app.services.merchants import MerchantKey, keys_of_all, make_key

NEVER: Final = "–"


def _known(scopes: list[str]) -> list[str]:
    for each in scopes:
        if each not in SCOPES:
            raise typer.BadParameter(f"there is no scope {each!r}; there are {', '.join(SCOPES)}")
    return scopes


def create(
    name: Annotated[str, typer.Option(help="What the key is for, for people.")],
    scopes: Annotated[
        list[str], typer.Option("--scope", callback=_known, help="Give it once for each; admin has all.")
    ],
    merchant: Annotated[str | None, typer.Option(help="Whose key; by default the first merchant's.")] = None,
    new_merchant: Annotated[bool, typer.Option("--new-merchant", help="Make the merchant if there is none.")] = False,
) -> None:
    """Make an API key and print it, this once."""
    for option, text, most in (
        ("--name", name, limits.KEY_NAME_CHARS),
        ("--merchant", merchant or "-", limits.MERCHANT_NAME_CHARS),
    ):
        if not 0 < len(text) <= most or not text.isprintable():
            raise ConfigError(f"{option} must be 1 to {most} printable characters")
    made = asyncio.run(_create(merchant, new_merchant, name, scopes))
    sys.stderr.write(f"{made.id} ({', '.join(made.scopes)}); the key is shown this once:\n")
    print(made.key)


def list_(as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False) -> None:
    """Show every merchant's API keys, without the keys themselves."""
    found = asyncio.run(_list())
    if as_json:
        print(json.dumps([{"merchant": each.merchant, **each.key.model_dump()} for each in found], indent=2))
        return
    table = Table("merchant", "id", "name", "scopes", "last used", "revoked", box=None, pad_edge=False)
    for each in found:
        key = each.key
        cells = (each.merchant, key.id, key.name, " ".join(key.scopes), key.last_used_at, key.revoked_at)
        table.add_row(*(Text(cell or NEVER) for cell in cells))
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else 400).print(table)


def revoke(key_id: Annotated[str, typer.Argument(help="The id, key_…, as `paywatch keys list` shows it.")]) -> None:
    """Let an API key work no longer."""
    asyncio.run(_revoke(key_id))
    print(f"{key_id} is revoked")


async def _create(merchant: str | None, new_merchant: bool, name: str, scopes: list[str]) -> NewKeyView:
    async with opened() as context:
        return await make_key(context, merchant, new_merchant, name, scopes)  # type: ignore[arg-type]


async def _list() -> list[MerchantKey]:
    async with opened() as context:
        return await keys_of_all(context)


async def _revoke(key_id: str) -> None:
    async with opened() as context, context.db.write() as session:
        await revoke_key(context, session, key_id, merchant_id=None)

"""`paywatch keys create`, `list`, `revoke` and `rotate`: the API keys of every merchant."""

import asyncio
import json
import sys
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.change import Consent, DryRun, Yes, operator_name
from app.cli.installation import opened
from app.core import limits
from app.core.errors import ConfigError
from app.core.logger import get_logger
from app.services.keys import SCOPES, NewKeyView, find_revocation, find_rotation, revoke_key, rotate_key
from app.services.merchants import MerchantKey, keys_of_all, make_key

NEVER: Final = "–"
log = get_logger(__name__)


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
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Make an API key and print it, this once. Without a terminal it asks nobody."""
    for option, text, most in (
        ("--name", name, limits.KEY_NAME_CHARS),
        ("--merchant", merchant or "-", limits.MERCHANT_NAME_CHARS),
    ):
        if not 0 < len(text) <= most or not text.isprintable():
            raise ConfigError(f"{option} must be 1 to {most} printable characters")
    change = f"make an API key {name!r} ({', '.join(scopes)}) of {merchant or 'the first merchant'}"
    if not Consent(dry_run, yes).to(change, harmless=True):
        return
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


def revoke(
    key_id: Annotated[str, typer.Argument(help="The id, key_…, as `paywatch keys list` shows it.")],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Let an API key work no longer. Without a terminal it asks nobody."""
    asyncio.run(_revoke(key_id, Consent(dry_run, yes)))


def rotate(
    key_id: Annotated[str, typer.Argument(help="The id, key_…, as `paywatch keys list` shows it.")],
    grace_s: Annotated[
        int, typer.Option("--grace", min=0, max=limits.KEY_GRACE_MAX_S, help="Seconds for which the old one works on.")
    ] = limits.KEY_GRACE_S,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Replace an API key by a new one with the same name and scopes, and print that, this once."""
    asyncio.run(_rotate(key_id, grace_s, Consent(dry_run, yes)))


async def _create(merchant: str | None, new_merchant: bool, name: str, scopes: list[str]) -> NewKeyView:
    async with opened() as context:
        made = await make_key(context, merchant, new_merchant, name, scopes)  # type: ignore[arg-type]
        log.warning("key made by an operator", key=made.id, scopes=made.scopes, operator=operator_name())
        return made


async def _list() -> list[MerchantKey]:
    async with opened() as context:
        return await keys_of_all(context)


async def _rotate(key_id: str, grace_s: int, consent: Consent) -> None:
    async with opened() as context:
        async with context.db.read() as session:
            old = await find_rotation(context, session, key_id)
        ends = f"in {grace_s} s" if grace_s else "at once"
        if not consent.to(f"make a new key for {old.name!r} ({', '.join(old.scopes)}), and end {key_id} {ends}"):
            return
        async with context.db.write() as session:
            made = await rotate_key(context, session, key_id, grace_s, operator_name())
    sys.stderr.write(f"{made.id} replaces {key_id}, which ends {ends}; the new key is shown this once:\n")
    print(made.key)


async def _revoke(key_id: str, consent: Consent) -> None:
    async with opened() as context:
        async with context.db.read() as session:
            old = await find_revocation(context, session, key_id)
        if old is None:
            print(f"nothing to do: {key_id} is revoked already")
        elif consent.to(f"end {old.name!r} ({', '.join(old.scopes)}), {key_id}, at once", harmless=True):
            async with context.db.write() as session:
                await revoke_key(context, session, key_id, merchant_id=None)
            log.warning("key revoked by an operator", key=key_id, operator=operator_name())
            print(f"{key_id} is revoked")

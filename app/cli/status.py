"""`paywatch status`"""

import asyncio
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.installation import opened
from app.services.status import ChainView, Overview, overview

UNKNOWN: Final = "–"
COLOURS: Final = {"ok": "green", "lagging": "yellow", "halted": "red"}


def status(as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False) -> None:
    """Show each chain's cursor, payments by status and webhooks due, as the database knows them."""
    found = asyncio.run(_overview())
    if as_json:
        print(found.model_dump_json(indent=2, ensure_ascii=True))
        return
    console = Console(soft_wrap=True)
    console.print(_chains_table(found.chains))
    for chain in found.chains:
        if chain.reason is not None:
            console.print(Text(f"{chain.name}: {chain.reason}"))
    payments = ", ".join(f"{count} {name}" for name, count in sorted(found.payments.items())) or "none yet"
    console.print(Text(f"Payments: {payments}"))
    console.print(Text(f"Webhooks due: {found.webhooks_due}"))
    for pause in found.pauses:
        console.print(Text(f"{pause.what}: {pause.told}", "yellow"))


async def _overview() -> Overview:
    async with opened() as context:
        return await overview(context)


def _chains_table(chains: list[ChainView]) -> Table:
    table = Table("chain", "state", box=None, pad_edge=False, header_style="bold")
    for name in ("head", "cursor", "blocks behind", "seconds behind"):
        table.add_column(name, justify="right")
    for chain in chains:
        numbers = (chain.head, chain.cursor, chain.lag_blocks, chain.lag_seconds)
        cells = (UNKNOWN if number is None else str(number) for number in numbers)
        table.add_row(Text(chain.name), Text(chain.state, COLOURS[chain.state]), *cells)
    return table

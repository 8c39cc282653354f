"""`paywatch rescan` and `paywatch reconcile`: second looks at a chain."""

import asyncio
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from app.cli.installation import opened
from app.core.errors import ConfigError
from app.core.money import format_units
from app.services.blockchain.backup import cursor_of, rescan_blocks
from app.services.blockchain.reconcile import Difference, reconcile_chain

ChainName = Annotated[str, typer.Option("--chain", help="Name of a chain in chains.yaml.")]
_WIDTH: Final = 400  # an address that is cut short is of no use; a terminal wraps the line
NOTHING: Final = "every balance is what was recorded"


def rescan(
    chain: ChainName,
    first: Annotated[int, typer.Option("--from", min=0, help="The first block to be read again.")],
    last: Annotated[int | None, typer.Option("--to", min=0, help="The last one; by default the cursor.")] = None,
) -> None:
    """Read blocks again and credit what is missing; nothing is credited twice, however often it runs.

    A chain that a fork below its finality has halted goes on with it: look at its node first, for it is believed.
    """
    asyncio.run(_rescan(chain, first, last))


def reconcile(chain: ChainName) -> None:
    """Compare what deposit addresses hold with what was recorded; exit code 1 when something differs."""
    differences = asyncio.run(_reconcile(chain))
    if not differences:
        print(NOTHING)
        return
    table = Table("payment", "address", "token", box=None, pad_edge=False, header_style="bold")
    for name in ("recorded", "held"):
        table.add_column(name, justify="right")
    for each in differences:
        amounts = (format_units(units, each.decimals) for units in (each.recorded_units, each.held_units))
        table.add_row(each.payment_id, each.address, Text(each.symbol), *amounts)
    Console(soft_wrap=True, width=_WIDTH).print(table)
    raise typer.Exit(1)


async def _rescan(chain_name: str, first: int, last: int | None) -> None:
    found = 0
    async with opened() as context:
        chain = context.chain(chain_name)
        cursor = await cursor_of(context, chain)
        if cursor is None or first > cursor:
            raise ConfigError(f"chain {chain.name!r} was scanned up to block {cursor}; there is nothing to read again")
        upto = cursor if last is None else min(last, cursor)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"{chain.name} {first}–{upto}", total=upto - first + 1)
            async for outcome in rescan_blocks(context, chain, first, last):
                if outcome.problem is not None:
                    raise ConfigError(f"stopped at block {outcome.first}: {outcome.problem}")
                found += outcome.found
                progress.update(bar, completed=outcome.last - first + 1)
    print(f"read blocks {first} to {upto} of {chain_name} again: {found} transfers had been missed")


async def _reconcile(chain_name: str) -> tuple[Difference, ...]:
    async with opened() as context:
        report = await reconcile_chain(context, context.chain(chain_name))
    if report.problem is not None:
        raise ConfigError(report.problem)
    return report.differences

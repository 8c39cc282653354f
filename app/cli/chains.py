"""`paywatch rescan` and `paywatch reconcile`: second looks at a chain."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from app.cli.change import Consent, DryRun, Yes, operator_name
from app.cli.installation import opened
from app.core.errors import ConfigError
from app.core.logger import get_logger
from app.core.money import format_units
from app.services.blockchain.backup import cursor_of, rescan_blocks
from app.services.blockchain.control import halt_of
from app.services.blockchain.reconcile import Difference, Report, reconcile_chain

ChainName = Annotated[str, typer.Option("--chain", help="Name of a chain in chains.yaml.")]
_WIDTH: Final = 400  # an address that is cut short is of no use; a terminal wraps the line
log = get_logger(__name__)
NOTHING: Final = "every balance is what was recorded"


def rescan(
    chain: ChainName,
    first: Annotated[int, typer.Option("--from", min=0, help="The first block to be read again.")],
    last: Annotated[int | None, typer.Option("--to", min=0, help="The last one; by default the cursor.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Read blocks again and credit what is missing; nothing is credited twice, however often it runs.

    It only adds, so without a terminal it asks nobody. But a chain that a fork below its finality has halted goes on
    with it: look at its node first, for it is believed, and say --yes.
    """
    if last is not None and last < first:
        raise typer.BadParameter(f"--to {last} is below --from {first}")
    asyncio.run(_rescan(chain, first, last, Consent(dry_run, yes)))


def reconcile(chain: ChainName) -> None:
    """Compare what deposit addresses hold with what was recorded; exit code 1 when something differs."""
    report = asyncio.run(_reconcile(chain))
    if report.differences:
        _show(report.differences)
    if report.problem is not None:
        raise ConfigError(report.problem)
    if report.differences:
        raise typer.Exit(1)
    print(NOTHING)


def _show(differences: Sequence[Difference]) -> None:
    table = Table("payment", "address", "token", box=None, pad_edge=False, header_style="bold")
    for name in ("recorded", "held"):
        table.add_column(name, justify="right")
    for each in differences:
        amounts = (format_units(units, each.decimals) for units in (each.recorded_units, each.held_units))
        table.add_row(each.payment_id, each.address, Text(each.symbol), *amounts)
    Console(soft_wrap=True, width=_WIDTH).print(table)


async def _rescan(chain_name: str, first: int, last: int | None, consent: Consent) -> None:
    found = 0
    async with opened() as context:
        chain = context.chain(chain_name)
        cursor = await cursor_of(context, chain)
        if cursor is None or first > cursor:
            raise ConfigError(f"chain {chain.name!r} was scanned up to block {cursor}; there is nothing to read again")
        upto = cursor if last is None else min(last, cursor)
        halt = await halt_of(context, chain)
        is_forked = halt is not None and halt.code == "reorg"
        change = f"read blocks {first} to {upto} of {chain_name} again and credit what is missing"
        if is_forked:
            change += ", after taking back what is not in its node's chain, which then goes on"
        if (is_forked or not consent.dry_run) and not consent.to(change, harmless=not is_forked):
            return
        if not consent.dry_run:
            log.warning("rescan by an operator", chain=chain.name, first=first, last=upto, operator=operator_name())
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"{chain.name} {first}–{upto}", total=upto - first + 1)
            async for outcome in rescan_blocks(context, chain, first, last, consent.dry_run):
                if outcome.problem is not None:
                    raise ConfigError(f"stopped at block {outcome.first}: {outcome.problem}")
                found += outcome.found
                progress.update(bar, completed=outcome.last - first + 1)
    missed = f"{found} transfers had been missed" + (", and nothing was credited" if consent.dry_run and found else "")
    print(f"read blocks {first} to {upto} of {chain_name} again: {missed}")


async def _reconcile(chain_name: str) -> Report:
    async with opened() as context:
        return await reconcile_chain(context, context.chain(chain_name))

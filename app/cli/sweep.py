"""`paywatch sweep` and `paywatch contracts`: what the sweeper would do, and what only an operator may."""

import asyncio
import time
from collections.abc import Iterator
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.change import Consent, DryRun, Reason, Yes, operator_name
from app.cli.installation import opened
from app.core.chains import Chain
from app.core.errors import ConfigError
from app.core.evm import checksum
from app.core.logger import get_logger
from app.core.money import format_units
from app.services import pauses
from app.services.blockchain.sweeper import (
    Prospect,
    Sweeper,
    can_release,
    deploy_step,
    open_sweeper,
    prospect,
    release_sweep,
    swept_chains,
)
from app.services.context import Context

ChainOption = Annotated[str | None, typer.Option("--chain", help="One chain of chains.yaml; by default all.")]
DEPLOY_TIMEOUT_S: Final = 600.0  # two transactions of a busy chain
DEPLOY_POLL_S: Final = 2.0
_WIDTH: Final = 400  # an address that is cut short is of no use; a terminal wraps the line

sweep_app = typer.Typer(help="How money gets from the deposit addresses to the treasury.", invoke_without_command=True)
contracts_app = typer.Typer(help="The contracts that collect tokens (EIP-7702).", no_args_is_help=True)
log = get_logger(__name__)


@sweep_app.callback()
def sweep(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be swept, at which cost.")] = False,
    chain: ChainOption = None,
) -> None:
    """Show what the sweeper would sign now, and what waits for which reason; nothing is signed or sent."""
    if context.invoked_subcommand is not None:
        if dry_run or chain is not None:  # they would count for nothing: all chains, and in earnest
            raise typer.BadParameter(f"options of {context.invoked_subcommand!r} come after it")
        return
    if not dry_run:
        raise ConfigError("the sweeper's worker sweeps; `paywatch sweep --dry-run` shows what it would do")
    asyncio.run(_prospects(chain))


@sweep_app.command()
def release(
    sweep_id: Annotated[str, typer.Argument(help="Id of a frozen sweep, swp_….")],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Let a frozen sweep go, once you know where its money is: what its addresses still hold is swept anew."""
    asyncio.run(_release(sweep_id, Consent(dry_run, yes)))


@sweep_app.command()
def pause(reason: Reason, chain: ChainOption = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Sign and broadcast nothing any more, on one chain or on all, until `resume`; what was broadcast is followed."""
    asyncio.run(_pause(chain, reason, Consent(dry_run, yes)))


@sweep_app.command()
def resume(chain: ChainOption = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """End a pause of sweeping: that of one chain with --chain, else that of all; the other kind stays."""
    asyncio.run(_resume(chain, Consent(dry_run, yes)))


@contracts_app.callback()
def _group() -> None:
    """Keeps `deploy` a command of its own: typer folds a group of one."""


@contracts_app.command()
def deploy(chain: ChainOption = None, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Deploy the collector and its delegate from the gas account, at addresses that are known in advance.

    The sweeper would do so by itself before its first collection: without a terminal it asks nobody.
    """
    asyncio.run(_deploy(chain, Consent(dry_run, yes)))


async def _prospects(chain_name: str | None) -> None:
    """Print each chain's as it comes, and in the end what could not be asked."""
    problems: list[str] = []
    async with opened() as context:
        sweeper = await _sweeper(context)
        for what, found in (await pauses.active(context)).items():
            if what.startswith(pauses.SWEEPING):
                print(f"{what}: {found.told}")
        for chain in _chains(context, chain_name):
            try:
                _print(await prospect(sweeper, chain))
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


async def _release(sweep_id: str, consent: Consent) -> None:
    async with opened() as context:
        if not await can_release(context, sweep_id):
            print(f"nothing to do: {sweep_id} is released already")
            return
        if consent.to(f"release {sweep_id}, and sweep anew what its addresses still hold"):
            await release_sweep(context, sweep_id, operator_name())
            print(f"released {sweep_id}")


async def _pause(chain_name: str | None, reason: str, consent: Consent) -> None:
    async with opened() as context:
        _chains(context, chain_name)
        what = pauses.SWEEPING if chain_name is None else pauses.sweeping_of(chain_name)
        where = "all chains" if chain_name is None else chain_name
        found = (await pauses.active(context)).get(what)
        if found is not None:
            print(f"nothing to do: sweeping of {where}: {found.told}")
        elif consent.to(f"sign and broadcast no sweep of {where} any more"):
            made = await pauses.pause(context, what, reason, operator_name())
            print(f"sweeping of {where} is paused" if made else f"nothing to do: {where} was paused meanwhile")


async def _resume(chain_name: str | None, consent: Consent) -> None:
    async with opened() as context:
        what = pauses.SWEEPING if chain_name is None else pauses.sweeping_of(chain_name)
        where = "all chains" if chain_name is None else chain_name
        paused = await pauses.active(context)
        if what not in paused:
            if chain_name is not None:
                context.chain(chain_name)  # a name that was misspelled is told
            print(f"nothing to do: there is no pause of sweeping of {where}")
        elif consent.to(f"let sweeping of {where} go on"):
            await pauses.resume(context, what, operator_name())
            del paused[what]
            print(f"the pause of sweeping of {where} has ended")
        for name, other in paused.items():
            if name != what and name.startswith(pauses.SWEEPING):
                print(f"{name}: {other.told}")


async def _deploy(chain_name: str | None, consent: Consent) -> None:
    async with opened() as context:
        sweeper = await _sweeper(context)
        chains = _chains(context, chain_name)
        names = ", ".join(chain.name for chain in chains)
        if not consent.to(
            f"deploy what is missing of the sweep's contracts on {names}, which costs gas", harmless=True
        ):
            return
        log.warning("contracts deployed by an operator", chains=names, operator=operator_name())
        for chain in chains:
            deadline = time.monotonic() + DEPLOY_TIMEOUT_S
            while (contracts := await deploy_step(sweeper, chain)) is None:
                if time.monotonic() > deadline:
                    raise ConfigError(f"chain {chain.name!r}: not mined in {DEPLOY_TIMEOUT_S:.0f} s; run it again")
                await asyncio.sleep(DEPLOY_POLL_S)
            collector, delegate = contracts
            print(f"{chain.name}: collector {checksum(collector)}, delegate {checksum(delegate)}")


async def _sweeper(context: Context) -> Sweeper:
    sweeper = await open_sweeper(context)
    if sweeper is None:
        raise ConfigError(
            "there is no private key here: run this where the sweeper runs (PAYWATCH_MNEMONIC or keystore)"
        )
    return sweeper


def _chains(context: Context, name: str | None) -> list[Chain]:
    chains = swept_chains(context) if name is None else [context.chain(name)]
    off = [chain.name for chain in chains if chain.sweep.mode == "off"]
    if off or not chains:
        raise ConfigError(f"sweep.mode is off on {', '.join(off) or 'every chain'}")
    return chains


def _print(found: Prospect) -> None:
    chain, native = found.chain, found.chain.native
    console = Console(soft_wrap=True, width=_WIDTH)
    funds = f"{_coin(found.gas_balance_wei, chain)}, fund it with {_coin(found.short_wei, chain)}"
    console.print(Text(f"{chain.name}: treasury {checksum(found.treasury)}, base fee {found.base_fee_gwei} gwei"))
    held = funds if found.short_wei else _coin(found.gas_balance_wei, chain)
    console.print(Text(f"gas account {checksum(found.gas_account)}: {held}"))
    if not found.scanned:
        console.print("no server or listener was here yet: nothing is known to wait, and the first one begins to scan")
    table = Table("address", "asset", box=None, pad_edge=False, header_style="bold")
    for name in ("amount", "way", "gas", f"fee in {native.symbol}"):
        table.add_column(name, justify="right")
    for row in _rows(found):
        table.add_row(*row)
    if table.row_count:
        console.print(table)
        console.print(
            Text(f"in all: {len(found.jobs)} transactions, {_coin(sum(j.fee_wei for j in found.jobs), chain)}")
        )
    else:
        console.print("nothing to be signed now")
    if found.waiting:
        waiting = Table("waits", "asset", "amount", "because", box=None, pad_edge=False, header_style="bold")
        for each in found.waiting:
            waiting.add_row(checksum(each.address), *_amount(chain, each.asset, each.units), Text(each.reason))
        console.print(waiting)


def _rows(found: Prospect) -> Iterator[list[str]]:
    """One row for each address; the gas and the fee of a transaction are shared out among its addresses."""
    for job in found.jobs:
        count = max(len(job.items), 1)
        cost = [
            job.kind,
            str(job.gas_expected // count),
            format_units(job.fee_wei // count, found.chain.native.decimals),
        ]
        for item in job.items:
            yield [checksum(item.address), *_amount(found.chain, job.asset, item.units), *cost]
        if not job.items:
            yield [checksum(job.action.to), "–", "–", *cost]


def _amount(chain: Chain, asset: bytes, units: int) -> tuple[str, str]:
    found = chain.asset_by_address(asset)
    return (found.symbol, format_units(units, found.decimals)) if found else (checksum(asset), str(units))


def _coin(wei: int, chain: Chain) -> str:
    return f"{format_units(wei, chain.native.decimals)} {chain.native.symbol}"

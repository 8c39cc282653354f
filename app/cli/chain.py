"""`paywatch chain`: stop one chain, let it go on, or have it read its blocks again, while the others go on."""

import asyncio
from typing import Annotated

import typer

from app.cli.change import Consent, DryRun, Reason, Yes, operator_name
from app.cli.installation import opened
from app.services.blockchain import control

Name = Annotated[str, typer.Argument(help="Name of a chain in chains.yaml.")]

app = typer.Typer(help="One chain: halt it, let it go on, set its cursor back.", no_args_is_help=True)


@app.command()
def halt(name: Name, reason: Reason, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Stop scanning and sweeping a chain and taking payments on it, until `resume`; the others go on.

    Nothing expires on it meanwhile, and nothing is lost: scanning goes on where it stopped.
    """
    asyncio.run(_halt(name, reason, Consent(dry_run, yes)))


@app.command()
def resume(name: Name, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Let a halted chain go on, whoever halted it. Refused while its cause lasts: a wrong node, or none.

    After a fork below finality the node is believed: look at it first. What was credited in blocks that it does not
    have is taken back, and told.
    """
    asyncio.run(_resume(name, Consent(dry_run, yes)))


@app.command()
def reset(
    name: Name,
    to: Annotated[int, typer.Option("--to", min=0, help="The block that counts as the last scanned one.")],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Set a chain's cursor back, so that every block above is read again; nothing is credited twice, nothing lost.

    Refused where that is not safe: forwards, below the first block ever scanned, and where the node cannot serve the
    blocks or has others than those that were scanned.
    """
    asyncio.run(_reset(name, to, Consent(dry_run, yes)))


async def _halt(name: str, reason: str, consent: Consent) -> None:
    async with opened() as context:
        chain = context.chain(name)
        found = await control.halt_of(context, chain)
        if found is not None and found.code != "config":
            print(f"nothing to do: chain {name!r} is halted already: {found.detail}")
            return
        change = f"halt chain {name!r}: not scanned, not swept, no payments on it until `paywatch chain resume {name}`"
        if not consent.to(change):
            return
        if await control.halt(context, chain, reason, operator_name()):
            print(f"halted {name}")
        else:
            print(f"nothing to do: chain {name!r} was halted meanwhile, and for that reason it stays so")


async def _resume(name: str, consent: Consent) -> None:
    async with opened() as context:
        chain = context.chain(name)
        found = await control.find_resumption(context, chain)
        if found is None:
            print(f"nothing to do: chain {name!r} is not halted")
            return
        change = f"let chain {name!r} go on"
        if found.blocks_undone:
            change += (
                f" with its node's chain: the last {found.blocks_undone} blocks that were scanned are not in it, "
                "and what was credited in them is taken back"
            )
        if consent.to(change):
            changes = await control.resume(context, chain, found, operator_name())
            print(f"resumed {name}" + (f"; {len(changes)} changes of payments were told" if changes else ""))


async def _reset(name: str, number: int, consent: Consent) -> None:
    async with opened() as context:
        chain = context.chain(name)
        found = await control.find_reset(context, chain, number)
        if found is None:
            print(f"nothing to do: the cursor of chain {name!r} is at block {number}")
            return
        count = found.seen_number - number
        change = f"set the cursor of chain {name!r} back from block {found.seen_number} to {number}"
        if consent.to(f"{change}, and have {count} blocks read again"):
            await control.reset(context, chain, found, operator_name())
            print(f"set the cursor of {name} to block {number}; {count} blocks are read again")

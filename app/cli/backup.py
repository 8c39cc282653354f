"""`paywatch backup` and `paywatch restore`"""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from app.cli.change import Consent, DryRun, Yes, operator_name
from app.core import limits
from app.core.config import load_settings
from app.core.logger import configure_logging
from app.services import operator
from app.services.doctor import diagnose_stored

STOPS: Final = {
    "taken over": (
        "Pauses, halts by an operator and API keys, revoked and new ones, are the replaced database's; so are webhook "
        "endpoints' ends and rotated webhook secrets."
    ),
    "sweeping paused": (
        "What was stopped, which keys and webhook endpoints were ended, which secrets were rotated and which addresses "
        "were given out since the backup is not known here: sweeping is paused. Halt, revoke and rotate anew what has "
        "to be, then `paywatch sweep resume`. If this backup was restored before, restore it once more with a larger "
        "--skip, or addresses are given out twice."
    ),
    "lost": "The backup is older than pauses are: set those that are needed again once the schema is upgraded.",
}


def backup(file: Annotated[Path, typer.Argument(help="Where to; it must not exist.", dir_okay=False)]) -> None:
    """Write the whole database to a file, read back before it counts. Server and workers may go on meanwhile.

    It holds what customers ordered, and secrets encrypted under PAYWATCH_SECRET_KEY: keep that key, and elsewhere.
    """
    database = asyncio.run(operator.back_up(load_settings(), file))
    print(f"{database}: {file.stat().st_size} bytes in {file}, mode 0600")


def restore(
    file: Annotated[Path, typer.Argument(help="What `paywatch backup` wrote.", exists=True, dir_okay=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a database that is not empty, or damaged.")
    ] = False,
    skip: Annotated[
        int, typer.Option(min=limits.RESTORE_INDEX_GAP, max=limits.RESTORE_SKIP_MAX, help="Address indexes left out.")
    ] = limits.RESTORE_INDEX_GAP,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Make the database what it was when the backup was made; stop server and workers first.

    All or nothing. Blocks since the backup are read again, and what came to addresses that it knows is credited.
    Address indexes go on 100,000 after the backup's and after the replaced database's, so that no address is given out
    twice. Pauses, halts, revoked keys, ended webhook endpoints and rotated secrets of the replaced database stay. Then
    what the database holds is checked; exit code 1 when something is wrong with it.
    """
    settings = load_settings()
    configure_logging(settings.log_format, settings.log_level)
    database = asyncio.run(operator.check_restore(settings, file, replace))
    if not Consent(dry_run, yes).to(f"replace {database} by {file}" if replace else f"make {database} from {file}"):
        return
    done = asyncio.run(operator.restore(settings, file, replace, skip, operator_name()))
    print(f"{done.database} is what {file} says; HD indexes go on {skip} later.")
    for kept in done.replaced.kept:
        print(f"What was there before is {kept}.")
    print(STOPS[done.replaced.stops])
    if done.problem is not None:
        print(f"{done.problem}. Then look at it with `paywatch doctor`, and start server and workers.")
        return
    wrong = asyncio.run(diagnose_stored())
    for each in wrong:
        sys.stderr.write(f"{each.check}: {each.found}; {each.remedy}\n")
    if wrong:
        raise typer.Exit(1)
    print("It was looked at as `paywatch doctor` does, and nothing is wrong with it: start server and workers.")

"""The operators' migration command: brings the database's schema to what this version of Paywatch needs.

See MIGRATIONS.md. Exit code 0: done; 1: not done, or `check` found something; 2: the command was misspelled.
"""

import argparse
import asyncio
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from app.core.chains import read_chain_ids
from app.core.config import load_settings
from app.core.errors import PaywatchError
from app.core.terminal import escape_unknown_characters, ignore_closed_output
from app.db import schema
from app.db.schema import SchemaError
from app.db.schema_script import destroyed, script


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    escape_unknown_characters()
    try:
        settings = load_settings()
        code = asyncio.run(_run(options, settings.database_url, _chain_ids(settings.chains_file)))
        sys.stdout.flush()
    except BrokenPipeError:
        ignore_closed_output()
        print("migrate.py: its output was not read; `current` tells where the schema is", file=sys.stderr)
    except PaywatchError as error:
        print(f"migrate.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("migrate.py: interrupted; `current` tells where the schema is", file=sys.stderr)
    else:
        return code
    return 1


async def _run(options: argparse.Namespace, url: str, chain_ids: Mapping[str, int] | None) -> int:
    if getattr(options, "sql", False):
        await _refuse_others(url, chain_ids, "-- ")
        print(f"-- {schema.show_url(url)}\n{await script(url, options.command, options.revision)}")
        return 0
    print(schema.show_url(url))
    match options.command:
        case "check":
            return _tell_problems((*await schema.check(url), *await _conflicts(url, chain_ids)))
        case "current":
            return await _current(url)
        case "history":
            await _history(url)
        case "revision":
            _tell_written(await schema.revision(url, options.message, autogenerate=options.autogenerate))
        case change:
            await _refuse_others(url, chain_ids)
            return await _change(url, change, options.revision, getattr(options, "yes", False))
    return 0


async def _refuse_others(url: str, chain_ids: Mapping[str, int] | None, comment: str = "") -> None:
    if conflicts := await _conflicts(url, chain_ids, comment):
        raise SchemaError("; ".join(conflicts) + ". Nothing was changed: one of the two is another gateway's")


async def _change(url: str, command: Literal["upgrade", "downgrade", "stamp"], revision: str, yes: bool) -> int:
    if command == "stamp":
        change = await schema.stamp(url, revision)
        print(f"Recorded revision: {_name(change.before)} → {_name(change.after)}. No table was touched.")
        return 0
    lost = await destroyed(url, command, revision)
    warnings = [f"this destroys {what}" for what in lost]
    addresses = await schema.count_addresses(url) if any("table deposit_addresses " in what for what in lost) else 0
    if addresses:
        warnings.append(
            f"HD indexes begin anew after this: {addresses} addresses that customers have are given out again, and "
            "what comes late for one order pays another. Use a wallet account that was never used before"
        )
    for warning in warnings:
        print(f"Warning: {warning}.", file=sys.stderr, flush=True)
    if addresses and not yes:
        if not sys.stdin.isatty():
            raise SchemaError("nothing was changed; add --yes, for there is no terminal to ask at")
        if not await asyncio.to_thread(_confirmed):
            print("Nothing was changed.")
            return 1
    _tell(await (schema.upgrade if command == "upgrade" else schema.downgrade)(url, revision))
    return 0


def _confirmed() -> bool:
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")


def _chain_ids(chains_file: Path) -> dict[str, int] | None:
    return read_chain_ids(chains_file) if chains_file.exists() else None


async def _conflicts(url: str, chain_ids: Mapping[str, int] | None, comment: str = "") -> tuple[str, ...]:
    if chain_ids is None:
        print(f"{comment}There is no chains.yaml here (PAYWATCH_CHAINS_FILE), so chain ids are not compared.")
        return ()
    return await schema.chain_conflicts(url, chain_ids)


def _tell(change: schema.Change) -> None:
    for step in change.steps:
        print(f"{'Applied' if step.applied else 'Undid'} {step.id}: {step.message}")
    if not change.steps:
        print(f"Nothing to do: the schema is at {_name(change.after)}.")
    else:
        print(f"Schema: {_name(change.before)} → {_name(change.after)}.")


async def _current(url: str) -> int:
    print(f"The schema is at {_name(await schema.current(url))}.")
    problem = await schema.schema_problem(url)
    print("That is the newest revision." if problem is None else problem)
    return 0


async def _history(url: str) -> None:
    for revision in await schema.history(url):
        print(f"{revision.id}  {'applied' if revision.applied else 'not yet'}  {revision.message}")


def _tell_problems(problems: Collection[str]) -> int:
    for problem in problems:
        print(f"- {problem}")
    print("The schema is not what it should be." if problems else "The schema is at head and equals the models.")
    return 1 if problems else 0


def _tell_written(path: Path | None) -> None:
    if path is None:
        print("The models and the schema are alike; no revision was written.")
    else:
        print(f"Wrote {path}. Read it, and try it on both databases, before you commit it.")


def _name(revision: str | None) -> str:
    return revision or "no revision"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="migrate.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    upgrade = commands.add_parser("upgrade", help="apply revisions, up to the newest")
    upgrade.add_argument("revision", nargs="?", default="head", help="a revision's id, head or +1 (default: head)")
    downgrade = commands.add_parser("downgrade", help="undo revisions; what only they can hold is lost")
    downgrade.add_argument("revision", help="a revision's id, base (everything is lost) or -1")
    for changing in (upgrade, downgrade):
        changing.add_argument("--sql", action="store_true", help="print the SQL instead of running it")
    downgrade.add_argument("--yes", action="store_true", help="do not ask, where addresses would be given out again")
    commands.add_parser("current", help="the schema's revision")
    commands.add_parser("history", help="every revision, oldest first")
    commands.add_parser("check", help="exit 1 unless the schema is at head and equals the models")
    stamp = commands.add_parser("stamp", help="record a revision without touching a table")
    stamp.add_argument("revision", help="a revision's id, head or base")
    revision = commands.add_parser("revision", help="write the next revision's file (for developers)")
    revision.add_argument("-m", "--message", required=True, help="what it does, such as: sweeps and their batches")
    revision.add_argument(
        "--autogenerate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fill it with the models' differences from the database (default: yes)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

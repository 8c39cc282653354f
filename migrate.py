"""The operators' migration command: brings the database's schema to what this version of Paywatch needs.

See MIGRATIONS.md. Exit code 0: done; 1: not done, or `check` found something; 2: the command was misspelled.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from app.core.config import load_settings
from app.core.errors import PaywatchError
from app.db import schema


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        url = load_settings().database_url
        return asyncio.run(_run(options, url))
    except PaywatchError as error:
        print(f"migrate.py: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("migrate.py: interrupted; `current` tells where the schema is", file=sys.stderr)
    return 1


async def _run(options: argparse.Namespace, url: str) -> int:
    print(schema.show_url(url))
    match options.command:
        case "upgrade":
            _tell(await schema.upgrade(url, options.revision))
        case "downgrade":
            _tell(await schema.downgrade(url, options.revision))
        case "stamp":
            change = await schema.stamp(url, options.revision)
            print(f"Recorded revision: {_name(change.before)} → {_name(change.after)}. No table was touched.")
        case "current":
            return await _current(url)
        case "history":
            await _history(url)
        case "check":
            return await _check(url)
        case "revision":
            _tell_written(await schema.revision(url, options.message, autogenerate=options.autogenerate))
    return 0


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


async def _check(url: str) -> int:
    problems = await schema.check(url)
    for problem in problems:
        print(f"- {problem}")
    print("The schema is not what the models say." if problems else "The schema is at head and equals the models.")
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

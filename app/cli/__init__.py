"""The operator's command: `paywatch …`, or `python -m app.cli …`. Each command is a door to a service."""

import sys

import typer

from app.cli import api_keys, chain, events, keys, payments, sweep, webhooks
from app.cli.backup import backup, restore
from app.cli.chains import reconcile, rescan
from app.cli.doctor import doctor
from app.cli.status import status
from app.core.errors import PaywatchError
from app.core.logger import configure_logging, get_logger, report_error
from app.core.terminal import escape_unknown_characters
from app.services.outages import outage_line

log = get_logger(__name__)

app = typer.Typer(
    help="Operate a Paywatch installation: the one that the environment and .env of this folder describe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they print local variables, keys among them
    rich_markup_mode=None,
)
keys.app.command("create")(api_keys.create)
keys.app.command("list")(api_keys.list_)
keys.app.command("revoke")(api_keys.revoke)
keys.app.command("rotate")(api_keys.rotate)
app.add_typer(keys.app, name="keys")
app.add_typer(chain.app, name="chain")
app.add_typer(payments.app, name="payments")
app.add_typer(events.app, name="events")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(sweep.sweep_app, name="sweep")
app.add_typer(sweep.contracts_app, name="contracts")
for command in (status, doctor, rescan, reconcile, backup, restore):
    app.command()(command)


def main() -> int:
    """Exit code 0: done; 1: not done, and the message on standard error says why; 2: the command was misspelled."""
    configure_logging(None, "INFO")  # until the settings say how
    escape_unknown_characters()
    try:
        app(prog_name="paywatch")
    except PaywatchError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except Exception as error:  # noqa: BLE001 a traceback of Python's own would show what logs leave out
        told = outage_line(error)
        if told is not None:
            sys.stderr.write(f"{told}\n")
        else:
            configure_logging(None, "ERROR")  # the command may have silenced it
            report_error(log, error)
        return 1
    return 0

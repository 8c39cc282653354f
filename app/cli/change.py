"""How every command that changes something is run: told first, then done on the operator's word alone."""

import getpass
import os
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from app.core import limits
from app.core.errors import ConfigError

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking, for scripts.")]


def _printable(text: str) -> str:
    if not 0 < len(text.strip()) <= limits.REASON_CHARS or not text.isprintable():
        raise typer.BadParameter(f"1 to {limits.REASON_CHARS} printable characters")
    return text.strip()


Reason = Annotated[str, typer.Option(callback=_printable, help="Why; it is kept, shown and logged.")]


@dataclass(frozen=True, slots=True)
class Consent:
    """What the operator said on the command line."""

    dry_run: bool
    yes: bool

    def to(self, change: str, *, harmless: bool = False) -> bool:
        """Whether `change` ("halt chain 'base'") is to be made now; a dry run only says it.

        A `harmless` one needs no word where nobody can be asked. Raises ConfigError where nobody can; a no ends the
        command with exit code 1.
        """
        if self.dry_run:
            print(f"would {change}")
            return False
        if self.yes:
            return True
        if sys.stdin.isatty():
            typer.confirm(f"{change[0].upper()}{change[1:]}?", abort=True, err=True)
            return True
        if not harmless:
            raise ConfigError(f"this would {change}: nothing was done; add --yes, for there is no terminal to ask at")
        return True


def operator_name() -> str:
    """Who runs the command, as the operating system calls them; behind sudo, the person."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        name = f"uid {os.getuid()}"
    return name[: limits.OPERATOR_CHARS]

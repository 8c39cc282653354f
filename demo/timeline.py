"""What the demo says: a line as it happens, and a summary. Without a terminal it is plain text."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Timeline:
    """Counts from its own making."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    def tell(self, who: str, what: str, detail: str = "", style: str = "") -> float:
        """Print one line; returns its time in seconds since the start."""
        at_s = self.elapsed_s
        line = Text(f"{at_s:6.1f} s  ", style="dim")
        line.append(f"{who:<8}", style="bold").append(f"  {what:<9}", style=style).append(
            f"  {detail}", style="default"
        )
        self._console.print(line)
        return at_s

    def summarize(self, header: Sequence[str], rows: Sequence[Sequence[str]], conclusion: str) -> None:
        table = Table(*header, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table)
        self._console.print()
        self._console.print(Text(conclusion, style="bold green"))

    def say(self, text: str) -> None:
        self._console.print(Text(text))

    def fail(self, reason: str) -> None:
        self._console.print()
        self._console.print(Text(f"The demo failed after {self.elapsed_s:.1f} s: {reason}", style="bold red"))

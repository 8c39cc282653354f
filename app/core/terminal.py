"""What a command's standard output may turn out to be: a terminal of few characters, or a pipe that nobody reads."""

import io
import os
import sys


def escape_unknown_characters() -> None:
    """A character that the terminal's encoding lacks is written as an escape: what was done is told, not lost."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def utf_8_output() -> None:
    """Standard output as a file for programs, whatever the locale."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def ignore_closed_output() -> None:
    """After BrokenPipeError (`| head`): what is still to be flushed at the end goes nowhere, and is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""Our commands as processes of their own, without the two seconds that each takes to import everything.

A process that has imported it once is forked for each command. What runs is the same: arguments, environment, folder,
output and exit code are the command's own. How a command really starts is shown by tests/e2e/test_start.py.
"""

import asyncio
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from devnet.process import die_with_parent

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["server", "migrate", "app.cli", "app.workers.runner", "app.blockchain.collector"])
POLL_S: Final = 0.01


class ForkedProgram:
    """`python ARGUMENTS…`, where they are a script or `-m module`; as `devnet.process.ChildProcess`, for our own."""

    def __init__(
        self, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path, given: str = "", split: bool = False
    ) -> None:
        self._given, self._log, self._error = (tempfile.NamedTemporaryFile() for _ in range(3))  # noqa: SIM115
        Path(self._given.name).write_text(given)
        error = self._error if split else self._log
        files = (self._given.name, self._log.name, error.name)
        self._process = _FORKS.Process(target=_become, args=(tuple(arguments), dict(env), str(cwd), files), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.exitcode

    def log(self) -> str:
        """What it has printed so far, errors too unless they were split off."""
        return Path(self._log.name).read_text(errors="replace")

    def errors(self) -> str:
        return Path(self._error.name).read_text(errors="replace")

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> None:
        self._process.join()

    def stop(self) -> None:
        """Kill it if it runs, and forget what it printed."""
        if self.is_running:
            self._process.kill()
        self._process.join()
        for file in (self._given, self._log, self._error):
            file.close()


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    error: str


async def python(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None, given: str = "") -> Answer:
    """Run a command of ours to its end. `env`: os.environ unless given; `given`: its standard input."""
    program = ForkedProgram(arguments, env=os.environ if env is None else env, cwd=cwd, given=given, split=True)
    try:
        while program.is_running:
            await asyncio.sleep(POLL_S)
        code = program.exit_code
        assert code is not None
        return Answer(code, program.log(), program.errors())
    finally:
        program.stop()


def _become(arguments: tuple[str, ...], env: dict[str, str], cwd: str, files: tuple[str, str, str]) -> None:
    for number, name in enumerate(files):
        descriptor = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 (as long as it lives)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    if (prepare := die_with_parent()) is not None:
        prepare()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if arguments[0] == "-m":
        sys.argv = [arguments[1], *arguments[2:]]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")

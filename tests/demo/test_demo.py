"""The demo shows every step, says why when one is missing, and leaves nothing behind."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from demo.customer import pay
from demo.order import EVENTS, STATUSES
from devnet.anvil import REPO_ROOT, Anvil

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found in /proc")

ADDRESS = "0x00000000000000000000000000000000000A11cE"


@asynccontextmanager
async def started_demo(tmp_path: Path, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "demo"),
        cwd=REPO_ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """What the demo says, up to the line that contains `text`, or to its end."""
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(120):
        while line := (await process.stdout.readline()).decode():
            said += line
            if text in line:
                break
    return said


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def assert_nothing_is_left(pids: list[int], tmp_path: Path) -> None:
    assert [command_line(pid) for pid in pids if command_line(pid)] == []
    assert list(tmp_path.iterdir()) == []


async def test_both_orders_are_seen_to_be_settled_whatever_the_operators_own_settings(tmp_path: Path) -> None:
    # The operator's PAYWATCH_ variables are for another gateway; this one must not see them.
    own = {"PAYWATCH_XPUB": "not one", "PAYWATCH_REDIS_URL": "redis://127.0.0.1:1", "PAYWATCH_PORT": "no"}
    async with started_demo(tmp_path, **own) as process:
        said = await read_until(process, "ready")
        pids = descendants(process.pid)
        said += await read_until(process, "end of output")
        assert await process.wait() == 0, said
        assert len(pids) >= 3  # the node, the gateway, the gateway's Redis

    for order in ("A-1001", "A-1002"):
        for step in ("pending", "paid", *STATUSES, *EVENTS):
            assert re.search(rf"^ *[\d.]+ s  {order} .*{re.escape(step)}", said, re.MULTILINE), (order, step)
    assert said.count("signature verified") == 2 * len(EVENTS)
    assert "\x1b" not in said  # no terminal, no colours
    assert_nothing_is_left(pids, tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_a_demo_that_is_stopped_takes_its_children_along(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    async with started_demo(tmp_path) as process:
        await read_until(process, "ready")
        pids = descendants(process.pid)
        assert len(pids) >= 3  # the node, the gateway, the gateway's Redis
        process.send_signal(number)
        said = await read_until(process, "end of output")
        assert await process.wait() == code
    assert number.name in said
    assert_nothing_is_left(pids, tmp_path)


async def test_a_gateway_that_dies_is_the_reason_that_is_given(tmp_path: Path) -> None:
    async with started_demo(tmp_path) as process:
        await read_until(process, "listens")
        pids = descendants(process.pid)
        [gateway] = [pid for pid in pids if "server.py" in command_line(pid)]
        os.kill(gateway, signal.SIGKILL)
        said = await read_until(process, "end of output")
        assert await process.wait() == 1
    assert "The demo failed after" in said
    assert "/v1/payments" in said
    assert "order A-1002: " in said
    assert "payment.settled" in said
    assert [command_line(pid) for pid in pids if command_line(pid)] == []


async def test_the_customers_wallet_reads_payment_uris_and_nothing_else(anvil: Anvil) -> None:
    await pay(anvil, f"ethereum:{ADDRESS}@31337?value=7", account_index=1)
    await anvil.mine()
    assert await anvil.balance(ADDRESS) == 7
    with pytest.raises(ValueError, match="no payment URI"):
        await pay(anvil, f"bitcoin:{ADDRESS}", account_index=1)

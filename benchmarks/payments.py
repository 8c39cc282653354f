"""How many payments a second one server process creates, beside a bare handler that does one INSERT.

    python -m benchmarks.payments [--seconds 5] [--rounds 3] [--idempotency] [--connections 16]

Both servers run at the same time on one PostgreSQL, and are asked in turn. Exits with 1 when a request is refused, or
when the rate is under a fifth of the bare handler's.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.db import schema
from devnet.anvil import MNEMONIC, REPO_ROOT, Anvil
from devnet.ports import free_port
from devnet.process import ChildProcess
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer

PART = 1 / 5  # of the bare handler's rate, which the contract asks for
KEY = "pwk_benchmark"
BODY = json.dumps({"chain": "devnet", "token": "USDC", "amount": "25", "metadata": {"cart": "A-1001"}}).encode()
TOKEN = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
START_S = 60.0


@dataclass(frozen=True)
class Run:
    """What one server did in one run; `cpu_s` of its process alone."""

    requests: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.wall_s

    @property
    def cpu_ms(self) -> float:
        return self.cpu_s / self.requests * 1000


class Server:
    """A started server."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], folder: Path, port: int) -> None:
        self.port = port
        self.process = ChildProcess([sys.executable, *arguments], env=os.environ | environment, cwd=folder)

    async def ready(self, path: str) -> None:
        deadline = time.monotonic() + START_S
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as client:
            while True:
                try:
                    if (await client.get(path)).is_success:
                        return
                except httpx.TransportError:
                    pass
                if time.monotonic() > deadline or not self.process.is_running:
                    raise RuntimeError(f"a server did not start:\n{self.process.log()}")
                await asyncio.sleep(0.1)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.payments", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--idempotency", action="store_true", help="send an Idempotency-Key with each request")
    return asyncio.run(_main(parser.parse_args(arguments)))


async def _main(options: argparse.Namespace) -> int:
    with Postgres.from_environment() as postgres, tempfile.TemporaryDirectory(prefix="paywatch-bench-") as folder:
        url = await postgres.create_database()
        await schema.upgrade(url)
        async with Anvil() as anvil, RedisServer() as redis:
            await anvil.deploy("TestToken", "USD Coin", "USDC", 6)
            (Path(folder) / "chains.yaml").write_text(_chains_yaml(anvil.url))
            ours = _paywatch(url, redis.url, Path(folder))
            bare_port = free_port()
            bare_url = url.replace("postgresql+asyncpg://", "postgresql://")
            bare = Server(
                ["-m", "benchmarks.bare", str(bare_port), bare_url],
                {"PYTHONPATH": str(REPO_ROOT)},
                Path(folder),
                bare_port,
            )
            try:
                await ours.ready("/health/ready")
                await bare.ready("/openapi.json")
                return await _compare(ours, bare, options)
            finally:
                ours.process.stop()
                bare.process.stop()
                if postgres.is_external:
                    await postgres.drop_database(url)


async def _compare(ours: Server, bare: Server, options: argparse.Namespace) -> int:
    runs: list[tuple[Run, Run]] = []
    for number in range(-1, options.rounds):
        seconds = options.seconds if number >= 0 else 1.0
        pair = await _run(bare, options, seconds), await _run(ours, options, seconds)
        if number >= 0:  # the first one only warms up
            runs.append(pair)
            ratio = pair[1].rate / pair[0].rate
            print(f"bare {pair[0].rate:6.0f}/s {pair[0].cpu_ms:5.2f} ms CPU   ", end="")
            print(f"Paywatch {pair[1].rate:6.0f}/s {pair[1].cpu_ms:5.2f} ms CPU   ratio {ratio:.3f}", flush=True)
    ratio = sorted(mine.rate / theirs.rate for theirs, mine in runs)[len(runs) // 2]
    print(f"POST /v1/payments reaches {ratio:.3f} of a bare INSERT's rate (1/{1 / ratio:.1f}); the limit is {PART:.3f}")
    return 0 if ratio >= PART else 1


async def _run(server: Server, options: argparse.Namespace, seconds: float) -> Run:
    started, cpu_s = time.perf_counter(), server.cpu_s()
    until = started + seconds
    counts = await asyncio.gather(*(_ask(server.port, until, options.idempotency) for _ in range(options.connections)))
    return Run(sum(counts), time.perf_counter() - started, server.cpu_s() - cpu_s)


async def _ask(port: int, until: float, idempotency: bool) -> int:
    """Request after request on one connection, spoken plainly: a client's library would cost more than the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    count = 0
    try:
        while time.perf_counter() < until:
            key = f"Idempotency-Key: {id(writer)}-{until}-{count}\r\n" if idempotency else ""
            writer.write(
                f"POST /v1/payments HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n{key}"
                f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
                + BODY
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 201"):
                raise RuntimeError(f"refused: {head.decode()}{body.decode()}")
            count += 1
    finally:
        writer.close()
    return count


def _paywatch(url: str, redis_url: str, folder: Path) -> Server:
    port = free_port()
    environment = {
        "PAYWATCH_DATABASE_URL": url,
        "PAYWATCH_REDIS_URL": redis_url,
        "PAYWATCH_CHAINS_FILE": str(folder / "chains.yaml"),
        "PAYWATCH_PORT": str(port),
        "PAYWATCH_API_KEY": KEY,
        "PAYWATCH_SECRET_KEY": "k" * 32,
        "PAYWATCH_XPUB": _xpub(),
        "PAYWATCH_RATE_LIMIT": "1000000/second",  # counted, never reached
        "PAYWATCH_LOG_FORMAT": "json",
    }
    return Server([str(REPO_ROOT / "server.py")], environment, folder, port)


def _xpub() -> str:
    from app.blockchain.wallet import account_xpub

    return account_xpub(MNEMONIC)


def _chains_yaml(node_url: str) -> str:
    return f"""
chains:
  - name: devnet
    chain_id: 31337
    rpc_url: "{node_url}"
    confirmations_required: 2
    finality: {{depth: 64}}
    native: {{symbol: ETH, decimals: 18}}
    tokens:
      - {{symbol: USDC, address: "{TOKEN}", decimals: 6}}
"""


if __name__ == "__main__":
    sys.exit(main())

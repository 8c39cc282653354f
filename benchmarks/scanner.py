"""What it costs a worker to catch up with a backlog of blocks, beside clients that only download or parse them.

    python -m benchmarks.scanner [--blocks 1000] [--rounds 3] [--detect balances] [--postgres] [--profile FILE]

Exits with 1 when a payment is not detected and confirmed, or a limit of the contract is broken.
"""

import argparse
import asyncio
import contextlib
import cProfile
import gc
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec
from pydantic import SecretStr
from sqlalchemy import select

from app.blockchain.wallet import NATIVE_BRANCH, TOKEN_BRANCH, AddressDeriver, account_xpub
from app.core.chains import load_chains
from app.core.config import Settings
from app.core.logger import configure_logging
from app.core.money import format_units
from app.db import schema
from app.db.models import Payment as PaymentRow
from app.db.repositories import merchants
from app.services import payments
from app.services.blockchain.chains import prepare
from app.services.blockchain.scanner import step
from app.services.context import Context, open_context
from app.services.defaults import defaults_of
from app.services.ledger import Cause
from app.services.merchants import ensure_first_merchant
from benchmarks.mainnet import TOKENS, Payment
from benchmarks.replay import Log, ReplayNode
from tests.support.postgres import Postgres

CPU_LIMIT_S = 4.0  # for 1,000 blocks
REQUEST_LIMIT = 250  # for 1,000 blocks
WALL_LIMIT = 6.0  # times the client that downloads and parses

CHAIN = "ethereum"
CONFIRMATIONS = 12
MNEMONIC = "test test test test test test test test test test test junk"
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a run took; CPU is that of this process, with all its threads."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Round:
    """One run of each, on the same bytes."""

    paywatch: Cost
    parse: Cost
    download: Cost
    log: Log
    problems: list[str]


class Tx(msgspec.Struct, gc=False):
    """What any client that looks for payments must read of a transaction."""

    hash: str
    value: str
    transactionIndex: str
    blockHash: str
    from_: str = msgspec.field(name="from")
    to: str | None = None


class BlockAnswer(msgspec.Struct):
    number: str
    hash: str
    parentHash: str
    timestamp: str
    logsBloom: str
    transactions: list[Tx | str]


class LogAnswer(msgspec.Struct, gc=False):
    address: str
    topics: list[str]
    data: str
    blockNumber: str
    blockHash: str
    transactionHash: str
    transactionIndex: str
    logIndex: str


class Answer(msgspec.Struct, Generic[T]):
    id: int
    result: T


class Question(msgspec.Struct):
    method: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scanner", description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=1_000)
    parser.add_argument("--payments", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="the best counts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--detect", choices=("blocks", "balances"), default="balances", help="native.detect")
    parser.add_argument("--postgres", action="store_true", help="instead of SQLite")
    parser.add_argument("--profile", type=Path, help="write cProfile's figures of the last round there")
    options = parser.parse_args(arguments)
    configure_logging("console", "WARNING")
    deriver = AddressDeriver(account_xpub(MNEMONIC))
    expected = _payments(options.seed, options.blocks, options.payments, deriver)
    print(f"making {options.blocks} blocks with {len(expected)} payments …", flush=True)
    with ReplayNode(options.seed, options.blocks, expected) as node, _databases(options.postgres) as new_database:
        rounds = [
            asyncio.run(_round(node, new_database, expected, options, last=number == options.rounds))
            for number in range(1, options.rounds + 1)
        ]
    return _report(rounds, options)


def _payments(seed: int, blocks: int, count: int, deriver: AddressDeriver) -> list[Payment]:
    """Native and token payments in turn, in blocks that have their confirmations at the head; HD indexes from 1."""
    rng = random.Random(seed)
    found = []
    for index in range(1, count + 1):
        token = None if index % 2 else TOKENS[rng.randrange(len(TOKENS))].address
        units = rng.randrange(10**15, 10**18) if token is None else rng.randrange(10**6, 10**10)
        recipient = deriver.address(NATIVE_BRANCH if token is None else TOKEN_BRANCH, index)
        found.append(Payment(rng.randrange(1, blocks - CONFIRMATIONS + 2), recipient, token, units))
    return found


@contextlib.contextmanager
def _databases(postgres: bool) -> Iterator[Callable[[], Awaitable[str]]]:
    """How to get the URL of an empty database."""
    with contextlib.ExitStack() as stack:
        if postgres:
            yield stack.enter_context(Postgres.from_environment()).create_database
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paywatch-bench-")))
        names = iter(range(sys.maxsize))

        async def sqlite() -> str:
            return f"sqlite+aiosqlite:///{folder}/{next(names)}.db"

        yield sqlite


async def _round(
    node: ReplayNode,
    new_database: Callable[[], Awaitable[str]],
    expected: Sequence[Payment],
    options: argparse.Namespace,
    last: bool,
) -> Round:
    context = await _open(node.url, await new_database(), options.detect)
    try:
        await _create_payments(context, expected)
        node.take_log()
        profile = cProfile.Profile() if options.profile and last else None
        paywatch = await _measure(lambda: _catch_up(context), profile)
        log = node.take_log()
        problems = await _problems(context, expected)
    finally:
        await context.close()
    download = await _measure(lambda: _replay(node.url, log.bodies, parse=False))
    parse = await _measure(lambda: _replay(node.url, log.bodies, parse=True))
    if node.take_log().answered_bytes != 2 * log.answered_bytes:
        problems.append("the clients did not get the same bytes as Paywatch")
    if profile is not None:
        profile.dump_stats(options.profile)
    return Round(paywatch, parse, download, log, problems)


async def _measure(run: Callable[[], Awaitable[None]], profile: cProfile.Profile | None = None) -> Cost:
    gc.collect()
    if profile is not None:
        profile.enable()
    wall, cpu = time.perf_counter(), time.process_time()
    await run()
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    if profile is not None:
        profile.disable()
    return cost


async def _open(node_url: str, database_url: str, detect: str) -> Context:
    """A worker's context on an empty database, its cursor at block 0."""
    with tempfile.TemporaryDirectory(prefix="paywatch-bench-") as folder:
        path = Path(folder) / "chains.yaml"
        chain = {
            "name": CHAIN,
            "chain_id": 1,
            "rpc_urls": [node_url],
            "confirmations_required": CONFIRMATIONS,
            "finality": {"tag": "finalized"},
            "start_block": 1,
            "native": {"symbol": "ETH", "decimals": 18, "detect": detect},
            "tokens": [
                {"symbol": token.symbol, "address": "0x" + token.address.hex(), "decimals": token.decimals}
                for token in TOKENS
            ],
        }
        path.write_bytes(msgspec.json.encode({"chains": [chain]}))  # JSON is YAML
        chains = load_chains(path, {})
    settings = Settings(
        _env_file=None, database_url=database_url, xpub=account_xpub(MNEMONIC), secret_key=SecretStr("benchmark" * 4)
    )
    context = open_context(settings, chains)
    await schema.upgrade(database_url)
    await ensure_first_merchant(context)
    check = await prepare(context, context.chain(CHAIN))
    if check.problem is not None:
        raise SystemExit(f"the chain is not ready: {check.problem}")
    return context


async def _create_payments(context: Context, expected: Sequence[Payment]) -> None:
    deriver = AddressDeriver(account_xpub(MNEMONIC))
    chain = context.chain(CHAIN)
    async with context.db.read() as session:
        merchant = await merchants.first(session)
    assert merchant is not None
    for number, payment in enumerate(expected):
        asset = chain.asset_by_address(payment.token or bytes(20))
        assert asset is not None
        wanted = payments.NewPayment(
            CHAIN,
            asset.symbol,
            format_units(payment.units, asset.decimals),
            order_id=f"B-{number}",
            webhook_url="https://merchant.example/hooks",
        )
        quoted = await payments.quote(context, defaults_of(merchant), wanted)
        created = await payments.create(context, deriver, merchant.id, quoted, Cause("api_key", {}))
        assert isinstance(created, payments.Created)
        if bytes.fromhex(created.view.address[2:]) != payment.recipient:
            raise SystemExit("a payment got another address than the chain pays to")


async def _catch_up(context: Context) -> None:
    """What a listener does until there is nothing new."""
    chain = context.chain(CHAIN)
    while True:
        outcome = await step(context, chain)
        if outcome.problem is not None:
            raise SystemExit(f"a step failed: {outcome.problem}")
        if not outcome.progressed and not outcome.changes:
            return


async def _problems(context: Context, expected: Sequence[Payment]) -> list[str]:
    """Payments that are not where the chain has them."""
    async with context.db.read() as session:
        rows = (await session.scalars(select(PaymentRow).order_by(PaymentRow.deposit_address_id))).all()
    return [
        f"payment {row.deposit_address_id}: {row.status}, paid in {payment.block}, seen in {row.detected_in_block}"
        for row, payment in zip(rows, expected, strict=True)
        if row.status not in ("confirmed", "settled") or row.detected_in_block != payment.block or row.flags
    ]


async def _replay(url: str, bodies: Sequence[bytes], parse: bool) -> None:
    """Send the requests that Paywatch sent, one after the other."""
    async with aiohttp.ClientSession() as session:
        for body in bodies:
            async with session.post(url, data=body) as response:
                answer = await response.read()
            if parse:
                _decoder(body).decode(answer)


_question = msgspec.json.Decoder(list[Question] | Question)
_decoders: dict[tuple[str, bool], msgspec.json.Decoder[Any]] = {
    (method, batch): msgspec.json.Decoder(list[Answer[result]] if batch else Answer[result])  # type: ignore[valid-type]
    for method, result in {"eth_getBlockByNumber": BlockAnswer, "eth_getLogs": list[LogAnswer]}.items()
    for batch in (False, True)
}
_other = msgspec.json.Decoder()


def _decoder(body: bytes) -> msgspec.json.Decoder[Any]:
    asked = _question.decode(body)
    batch = isinstance(asked, list)
    return _decoders.get((asked[0].method if isinstance(asked, list) else asked.method, batch), _other)


def _report(rounds: Sequence[Round], options: argparse.Namespace) -> int:
    per_thousand = 1_000 / options.blocks
    log = rounds[-1].log
    database = "PostgreSQL" if options.postgres else "SQLite"
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {database}, native.detect {options.detect}, "
        f"best of {options.rounds} rounds\n"
        f"{options.blocks} blocks of {log.block_bytes / (options.blocks + 1) / 1000:.0f} kB, "
        f"{log.answered_bytes / 1e6:.0f} MB in {len(log.bodies)} requests\n"
    )
    download, parse, paywatch = (
        Cost(min(cost.wall_s for cost in costs), min(cost.cpu_s for cost in costs))
        for costs in zip(*((each.download, each.parse, each.paywatch) for each in rounds), strict=True)
    )
    print(f"{'':24}{'blocks/s':>10}{'wall s':>10}{'CPU s per 1,000':>18}")
    for name, cost in (("download only", download), ("download and parse", parse), ("Paywatch", paywatch)):
        print(f"{name:24}{options.blocks / cost.wall_s:10.0f}{cost.wall_s:10.2f}{cost.cpu_s * per_thousand:18.2f}")
    requests = max(len(each.log.bodies) for each in rounds) * per_thousand
    print(f"\nwall time over download only: {paywatch.wall_s / download.wall_s:.1f}")
    limits = (
        ("wall time over download and parse", paywatch.wall_s / parse.wall_s, WALL_LIMIT),
        ("CPU seconds per 1,000 blocks", paywatch.cpu_s * per_thousand, CPU_LIMIT_S),
        ("HTTP requests per 1,000 blocks", requests, REQUEST_LIMIT),
    )
    for name, value, limit in limits:
        print(f"{name}: {value:.4g} (at most {limit:.4g}){'' if value <= limit else '  BROKEN'}")
    problems = [problem for each in rounds for problem in each.problems]
    print(f"payments detected and confirmed: {'all' if not problems else 'NOT all'} {options.payments}, in each round")
    for problem in problems[:10]:
        print("  " + problem)
    return 1 if problems or any(value > limit for _, value, limit in limits) else 0


if __name__ == "__main__":
    sys.exit(main())

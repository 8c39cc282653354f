"""What a receiver that hangs and one that answers 500 cost eight others: the time until these have everything.

    python -m benchmarks.webhooks [--events 1000] [--postgres]

Exits with 1 when the two make the eight wait longer than the limit.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from app.core.logger import configure_logging
from app.core.netguard import guarded_client
from app.db import schema
from app.workers.webhook import Sender
from devnet.receiver import HANG, Receiver
from tests.support.gateway import Devnet, client_of, create_payment, open_gateway, running_devnet
from tests.support.postgres import Postgres
from tests.support.redis import RedisServer

GOOD = 8
RATIO_LIMIT = 1.3  # of CPU seconds: the two's own attempts cost something, and their backlog is read past
DEADLINE_S = 1_200.0


async def measure(devnet: Devnet, db_url: str, redis_url: str, events: int, with_two: bool) -> tuple[float, float]:
    """Wall and CPU seconds from the sender's start until each of the eight has all `events`."""
    await schema.upgrade(db_url)
    settings = {"log_level": "ERROR"}
    async with (
        open_gateway(db_url, redis_url, devnet.chain(), **settings) as gateway,
        client_of(gateway) as client,
        Receiver() as good,
        Receiver() as broken,
        Receiver() as hanging,
        guarded_client(gateway.context.guard) as http,
    ):
        broken.answer(then=500)
        hanging.answer(then=HANG)
        two = [hanging.url, broken.url] if with_two else []
        for url in (*two, *(good.url_for(f"/{number}") for number in range(GOOD))):
            (await client.post("/v1/webhook_endpoints", json={"url": url})).raise_for_status()
        for _ in range(events):
            await create_payment(client)
        stop = asyncio.Event()
        started, cpu_started = time.perf_counter(), time.process_time()
        loop = asyncio.create_task(Sender(gateway.context, http).run(stop))
        await good.wait_for_count(GOOD * events, DEADLINE_S)
        took_s = time.perf_counter() - started, time.process_time() - cpu_started
        await hanging.stop()
        stop.set()
        await loop
        return took_s


async def run(options: argparse.Namespace) -> int:
    configure_logging("console", "ERROR")
    seconds: list[tuple[float, float]] = []
    async with running_devnet() as devnet, RedisServer() as redis:
        with tempfile.TemporaryDirectory() as folder, Postgres.from_environment() as postgres:
            for with_two in (False, True):
                url = f"sqlite+aiosqlite:///{Path(folder) / f'{with_two}.db'}"
                if options.postgres:
                    postgres.start()
                    url = await postgres.create_database()
                seconds.append(await measure(devnet, url, redis.url, options.events, with_two))
    database = "PostgreSQL" if options.postgres else "SQLite"
    print(f"{options.events} events to {GOOD} endpoints, {database}")
    for name, (wall_s, cpu_s) in zip(("alone", "beside one that hangs and one that fails"), seconds, strict=True):
        rate = GOOD * options.events / wall_s
        print(f"{name:44}{wall_s:8.1f} s wall{cpu_s:8.1f} s CPU{rate:8.0f} deliveries/s")
    (alone_wall_s, alone_cpu_s), (beside_wall_s, beside_cpu_s) = seconds
    ratio = beside_cpu_s / alone_cpu_s
    print(f"wall ratio: {beside_wall_s / alone_wall_s:.2f}")
    print(f"CPU ratio: {ratio:.2f} (at most {RATIO_LIMIT}){'' if ratio <= RATIO_LIMIT else '  BROKEN'}")
    return 0 if ratio <= RATIO_LIMIT else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webhooks", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--postgres", action="store_true")
    return asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())

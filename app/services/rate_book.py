"""The rates that a process knows: used again for a moment, and asked for once however many want them."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

import httpx

from app.core import limits
from app.core.clock import utc_now
from app.core.rates import Rate

Fetch = Callable[[Collection[str]], Awaitable[dict[str, Rate]]]


class RateBook:
    """Rates by pair (`ETH/USD`). Nothing here outlives the process, and a pair without a rate is asked for again."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}
        self._asking: dict[str, asyncio.Task[dict[str, Rate]]] = {}
        self._client: httpx.AsyncClient | None = None

    async def find(self, pairs: Collection[str], fetch: Fetch) -> dict[str, Rate]:
        """The rates of those of `pairs` that have one; `fetch` is asked for what nobody knows or is asking for."""
        now = utc_now()
        self._rates = {pair: rate for pair, rate in self._rates.items() if rate.reusable_until > now}
        found = {pair: self._rates[pair] for pair in pairs if pair in self._rates}
        unknown = {pair for pair in pairs if pair not in found}
        new = {pair for pair in unknown if pair not in self._asking}
        if new:
            task = asyncio.create_task(self._ask(new, fetch))
            self._asking |= dict.fromkeys(new, task)
        tasks = {self._asking[pair] for pair in unknown}
        if tasks:
            await asyncio.wait(tasks)  # who gives up waiting takes the answer from nobody
        for task in tasks:
            found |= {pair: rate for pair, rate in task.result().items() if pair in unknown}
        return found

    @property
    def client(self) -> httpx.AsyncClient:
        """For sources over HTTP: the operator's own URLs, so no address is refused, and no redirect followed."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=limits.RATE_TIMEOUT_S,
                follow_redirects=False,
                trust_env=False,
                headers={"user-agent": "Paywatch"},
            )
        return self._client

    async def close(self) -> None:
        tasks = set(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, pairs: Collection[str], fetch: Fetch) -> dict[str, Rate]:
        try:
            found = await fetch(pairs)
            self._rates |= found
            return found
        finally:
            for pair in pairs:
                del self._asking[pair]

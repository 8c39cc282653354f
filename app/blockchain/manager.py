"""The endpoints of each chain, in order of preference; one endpoint serves a whole step."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from app.blockchain.errors import NodeError, RateLimitedError
from app.blockchain.rpc import AdaptiveSize, Endpoint
from app.core import limits, metrics
from app.core.chains import Chain

BreakerState = Literal["closed", "open", "half_open"]


class Breaker:
    """Keeps a failing endpoint out of use: at first for seconds, doubling; then one step tries it (half-open)."""

    def __init__(self) -> None:
        self.failures = 0
        self._open_until = 0.0

    @property
    def state(self) -> BreakerState:
        if self.failures == 0:
            return "closed"
        return "open" if self.open_for_s > 0 else "half_open"

    @property
    def open_for_s(self) -> float:
        return max(self._open_until - time.monotonic(), 0.0)

    def succeeded(self) -> None:
        self.failures = 0
        self._open_until = 0.0

    def failed(self, retry_after_s: float | None) -> None:
        self.failures += 1
        rest_s = min(limits.BREAKER_MIN_S * 2 ** min(self.failures - 1, 16), limits.BREAKER_MAX_S)
        self._open_until = time.monotonic() + max(rest_s, min(retry_after_s or 0, limits.RETRY_AFTER_MAX_S))


class ChainNodes:
    """A chain's endpoints with their breakers. `refused`: endpoints that are on another chain, never asked again.

    `compared_at`: when (monotonic) no other endpoint was found to be ahead of the one in use. `step_blocks`: how many
    blocks a scanner step takes at most.
    """

    def __init__(self, urls: Iterable[str], chain: str = "", step_blocks: int = 1) -> None:
        self.endpoints = tuple(Endpoint(url, chain, index) for index, url in enumerate(urls))
        self.breakers = {endpoint: Breaker() for endpoint in self.endpoints}
        self.refused: dict[Endpoint, str] = {}
        self.checked: set[Endpoint] = set()
        self.compared_at = -math.inf
        self.step_blocks = AdaptiveSize(step_blocks)

    def pick(self, other_than: Endpoint | None = None) -> Endpoint | None:
        """The most preferred endpoint that may be asked; None when there is none besides `other_than`.

        When every breaker is open, the endpoint whose rest ends first: a wrong guess costs one call, a halt all.
        """
        if other_than is not None:
            return next(iter(self.others(other_than)), None)
        usable = [each for each in self.endpoints if each not in self.refused]
        for endpoint in usable:
            if self.breakers[endpoint].state != "open":
                return endpoint
        return min(usable, key=lambda each: self.breakers[each].open_for_s, default=None)

    def others(self, than: Endpoint) -> list[Endpoint]:
        """All further endpoints that may be asked, the most preferred first."""
        return [
            each
            for each in self.endpoints
            if each is not than and each not in self.refused and self.breakers[each].state != "open"
        ]

    @property
    def has_healthy(self) -> bool:
        """Whether there is an endpoint that did not fail when it was last asked."""
        return any(self.breakers[each].state == "closed" for each in self.endpoints if each not in self.refused)

    def succeeded(self, endpoint: Endpoint) -> None:
        self.breakers[endpoint].succeeded()

    def failed(self, endpoint: Endpoint, error: NodeError) -> None:
        """Let the next step ask another endpoint."""
        self.breakers[endpoint].failed(error.retry_after_s if isinstance(error, RateLimitedError) else None)

    def states(self) -> list[tuple[str, str]]:
        """(name, breaker state or why it is refused) of each endpoint, in order of preference."""
        return [
            (endpoint.name, self.refused.get(endpoint, self.breakers[endpoint].state)) for endpoint in self.endpoints
        ]


class BlockchainManager:
    """The nodes of all enabled chains of a process."""

    def __init__(self, chains: Iterable[Chain]) -> None:
        self._nodes = {each.chain_id: ChainNodes(each.rpc_urls, each.name, each.block_batch_size) for each in chains}
        metrics.RPC_BREAKER_STATE.watch(self._breaker_states)

    def nodes(self, chain: Chain) -> ChainNodes:
        return self._nodes[chain.chain_id]

    def _breaker_states(self) -> Iterator[metrics.Sample]:
        for nodes in self._nodes.values():
            for endpoint in nodes.endpoints:
                now = "refused" if endpoint in nodes.refused else nodes.breakers[endpoint].state
                for state in (*get_args(BreakerState), "refused"):
                    yield (endpoint.chain, endpoint.label, state), state == now

    async def close(self) -> None:
        for nodes in self._nodes.values():
            for endpoint in nodes.endpoints:
                await endpoint.close()

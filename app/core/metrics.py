"""What a process counts itself, in one registry; Prometheus adds the processes up. What the database knows is not here:
`app.services.metrics` reads that. docs/monitoring.md says what each one means.

Observing takes microseconds and waits for nothing. No label holds an id, an address or a URL's path.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from weakref import WeakMethod

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

NAMESPACE: Final = "paywatch"
REGISTRY: Final = CollectorRegistry()

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

# Seconds. A local node answers in 5 ms, a request is given up after 10 s; blocks take a quarter of a second to 12 s,
# confirmations minutes, and a receiver that was down is told a day later.
_CALL: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_JOB: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15)
_LAG: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_PAYMENT: Final = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 900, 3_600, 14_400, 86_400)
_DEPTH: Final = (1, 2, 3, 5, 10, 20, 50, 100, 500)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(name, meaning, labels, namespace=NAMESPACE, registry=REGISTRY)


def _histogram(name: str, meaning: str, *labels: str, buckets: Iterable[float]) -> Histogram:
    return Histogram(name, meaning, labels, namespace=NAMESPACE, registry=REGISTRY, buckets=tuple(buckets))


Sample = tuple[tuple[str, ...], float]  # label values, and the value


class Live(Collector):
    """A gauge that is read when somebody looks, over all objects of the process that have such a state.

    `join` makes one value of those of two objects: their sum, unless it is given. It keeps none of them alive.
    """

    def __init__(
        self, name: str, meaning: str, *labels: str, join: Callable[[float, float], float] = operator.add
    ) -> None:
        self._name, self._meaning, self._labels, self._join = f"{NAMESPACE}_{name}", meaning, labels, join
        self._readers: list[WeakMethod[Callable[[], Iterable[Sample]]]] = []
        REGISTRY.register(self)

    def watch(self, reader: Callable[[], Iterable[Sample]]) -> None:
        """From now on read this bound method too, until its object is gone; it may be called in any thread."""
        self._readers = [each for each in self._readers if each() is not None]
        self._readers.append(WeakMethod(reader))

    def largest(self, *labels: str) -> float:
        """The highest value with these labels that any one of the objects has; 0 without any."""
        read = [reader() for each in self._readers if (reader := each()) is not None]
        return max((value for samples in read for found, value in samples if found == labels), default=0.0)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield self._family()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        joined: dict[tuple[str, ...], float] = {}
        for reader in [each() for each in self._readers]:
            for labels, value in reader() if reader is not None else ():
                joined[labels] = self._join(joined[labels], value) if labels in joined else value
        family = self._family()
        for labels, value in joined.items():
            family.add_metric(labels, value)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._meaning, labels=self._labels)


# --- nodes
RPC_REQUEST_SECONDS: Final = _histogram(
    "rpc_request_seconds",
    "HTTP requests to nodes, by what came of them; `method` is that of the first call in it.",
    *("chain", "endpoint", "method", "outcome"),
    buckets=_CALL,
)
RPC_CALLS: Final = _counter(
    "rpc_calls", "JSON-RPC calls in those requests, which is what providers bill.", "chain", "endpoint", "method"
)
RPC_BREAKER_STATE: Final = Live(
    "rpc_breaker_state",
    "How many of the process' pools hold the endpoint in that state: closed (in use), open, half_open or refused.",
    *("chain", "endpoint", "state"),
)
WS_CONNECTED: Final = Gauge(
    "ws_connected",
    "1 while the process has new heads pushed over ws_url.",
    ["chain"],
    namespace=NAMESPACE,
    registry=REGISTRY,
)

# --- chains
BLOCKS_SCANNED: Final = _counter("blocks_scanned", "Blocks that were written as scanned.", "chain")
TRANSFERS: Final = _counter("transfers", "Transfers to deposit addresses that were recorded.", "chain")
TRANSFERS_SET_ASIDE: Final = _counter(
    "transfers_set_aside", "Transfers that were recorded and do not count: their payment has too many."
)
REORG_DEPTH_BLOCKS: Final = _histogram(
    "reorg_depth_blocks", "Blocks that a reorganisation took back.", "chain", buckets=_DEPTH
)

# --- payments
PAYMENT_EVENTS: Final = _counter("payment_events", "Changes of payments, by the event that tells them.", "type")
PAYMENT_DETECTED_SECONDS: Final = _histogram(
    "payment_detected_seconds",
    "From the time of the block that paid it until it was detected.",
    "chain",
    buckets=_PAYMENT,
)
PAYMENT_CONFIRMED_SECONDS: Final = _histogram(
    "payment_confirmed_seconds",
    "From the time of the block that paid it until it was confirmed.",
    "chain",
    buckets=_PAYMENT,
)
PAYMENT_TOLD_SECONDS: Final = _histogram(
    "payment_told_seconds",
    "From the time of the block that paid it until a receiver had taken the webhook that says so.",
    "type",
    buckets=_PAYMENT,
)

# --- webhooks
WEBHOOK_ATTEMPT_SECONDS: Final = _histogram(
    "webhook_attempt_seconds", "Attempts to deliver a webhook, by what came of them.", "outcome", buckets=_CALL
)

# --- the process
JOB_SECONDS: Final = _histogram(
    "job_seconds", "Jobs of workers, by what came of them.", "task", "outcome", buckets=_JOB
)
HTTP_REQUEST_SECONDS: Final = _histogram(
    "http_request_seconds",
    "Requests to the API, until their answer began.",
    *("method", "route", "status"),
    buckets=_CALL,
)
UNHANDLED_ERRORS: Final = _counter("unhandled_errors", "Errors that nobody foresaw; each has a report in the log.")
LOOP_LAG_SECONDS: Final = _histogram(
    "event_loop_lag_seconds", "How late the event loop came back to a task that had slept.", buckets=_LAG
)
DB_POOL_CONNECTIONS: Final = Live("db_pool_connections", "Database connections, in_use or idle.", "state")
DB_POOL_LIMIT: Final = Live("db_pool_limit_connections", "How many there can be in use at once.")
DB_POOL_USE: Final = Live("db_pool_use_ratio", "How much of its fullest pool is in use, 0 to 1.", join=max)


def known_chain(name: str) -> None:
    """Let a chain's counters begin at zero: Prometheus cannot see the first step of one that begins at one."""
    for metric in (BLOCKS_SCANNED, TRANSFERS, REORG_DEPTH_BLOCKS):
        metric.labels(name)

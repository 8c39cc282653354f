"""What Prometheus is told. All of it comes from the database, so it is right however many processes there are."""

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from app.services.status import ChainStatus, Numbers


def exposition(seen: Numbers) -> bytes:
    """The numbers in Prometheus' text format. A chain whose node was never reached has a state and no numbers."""
    registry = CollectorRegistry()

    def gauge(name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(name, help_, labels, namespace="paywatch", registry=registry)

    head = gauge("chain_head_block", "The newest block that the node has told of.", "chain")
    cursor = gauge("chain_cursor_block", "The last scanned block.", "chain")
    lag_blocks = gauge("chain_lag_blocks", "Blocks between head and cursor.", "chain")
    lag_seconds = gauge("chain_lag_seconds", "For how long the cursor has not been the head.", "chain")
    state = gauge("chain_state", "1 for the state that the chain is in.", "chain", "state")
    for chain in seen.chains:
        for each in get_args(ChainStatus):
            state.labels(chain.name, each).set(each == chain.state)
        if chain.cursor is not None:
            head.labels(chain.name).set(chain.head or 0)
            cursor.labels(chain.name).set(chain.cursor)
            lag_blocks.labels(chain.name).set(chain.lag_blocks or 0)
            lag_seconds.labels(chain.name).set(chain.lag_seconds or 0)
    missed = Counter(
        "chain_missed_transfers",
        "Transfers that the scan had missed and a backup pass found.",
        ["chain"],
        namespace="paywatch",
        registry=registry,
    )
    for name, count in seen.missed_transfers.items():
        missed.labels(name).inc(count)
    payments = gauge("payments", "Payments by status.", "status")
    for status, count in seen.payments.items():
        payments.labels(status).set(count)
    gas = gauge("gas_account_wei", "What the gas account had when a round looked last.", "chain")
    for name, units in seen.gas_units.items():
        gas.labels(name).set(units)
    short = gauge("gas_account_short_wei", "What the gas account lacked then; 0 when it is funded.", "chain")
    for name, units in seen.gas_short_units.items():
        short.labels(name).set(units)
    frozen = gauge("sweeps_frozen", "Sweeps that wait for an operator to look at their account.", "chain")
    for name, count in seen.sweeps_frozen.items():
        frozen.labels(name).set(count)
    gauge("webhooks_pending", "Deliveries that are not delivered and not dead.").set(seen.webhooks_pending)
    gauge("webhooks_due", "Those of them whose time has come.").set(seen.webhooks_due)
    gauge("webhooks_dead", "Deliveries that were given up; replay brings them back.").set(seen.webhooks_dead)
    gauge("webhook_endpoints_disabled", "Endpoints that were disabled by what they answered, or by hand.").set(
        seen.endpoints_disabled
    )
    return generate_latest(registry)

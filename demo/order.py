"""One order of the demo's shop, and which steps of it were seen."""

from dataclasses import dataclass, field
from typing import Any, Final

STATUSES: Final = ("detected", "confirmed", "settled")
EVENTS: Final = tuple(f"payment.{name}" for name in ("created", *STATUSES))
STEPS: Final = ("created", "paid", *STATUSES, *EVENTS)


@dataclass
class Order:
    """`seen`: seconds since the start, by step. `payment`: as the gateway last showed it."""

    id: str
    token: str
    amount: str
    account_index: int
    payment: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    webhook_ids: set[str] = field(default_factory=set)
    version: int = 0

    @property
    def missing(self) -> list[str]:
        return [step for step in STEPS if step not in self.seen]

    @property
    def confirmations(self) -> int:
        return max((transaction["confirmations"] for transaction in self.payment["transactions"]), default=0)

"""What a plan is made of."""

import math
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from app.blockchain.fees import Fees
from app.blockchain.signer import Action

Kind = Literal["collect", "transfer", "native", "topup", "deploy", "fill"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address with money of one asset to be swept. `units`: as recorded; the chain has the last word.

    `branch` and `index` are its HD place; `since`: when its oldest transfer was seen.
    """

    address: bytes
    asset: bytes
    branch: int
    index: int
    payment_id: str
    units: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Item:
    """An address of a job, and what it holds, in base units; for a top-up what it is sent."""

    payment_id: str
    address: bytes
    units: int


@dataclass(frozen=True, slots=True)
class Job:
    """A transaction to be signed. `place`: the HD branch and index of a deposit address; None is the gas account.

    `nonce` is the account's on the chain when the job was planned. `data_fee_wei`: what an L2 takes beside the gas.
    """

    kind: Kind
    asset: bytes
    account: bytes
    place: tuple[int, int] | None
    nonce: int
    action: Action
    gas: int
    fees: Fees
    items: tuple[Item, ...] = ()
    data_fee_wei: int = 0
    estimated_gas: int | None = None  # where the limit has an allowance

    @property
    def most_wei(self) -> int:
        """All that the account can lose by it."""
        return self.action.value_wei + self.gas * self.fees.max_wei + self.data_fee_wei

    @property
    def gas_expected(self) -> int:
        return self.gas if self.estimated_gas is None else self.estimated_gas

    @property
    def fee_wei(self) -> int:
        """What it would cost at once."""
        return self.gas_expected * self.fees.expected_wei + self.data_fee_wei


@dataclass(frozen=True, slots=True)
class Waiting:
    """Money that stays where it is for now, and why."""

    address: bytes
    asset: bytes
    units: int
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A sweep that a token's contract would revert, known before it was signed."""

    candidate: Candidate
    kind: Kind
    units: int
    error: str


@dataclass
class Plan:
    """What a round will sign, what waits, and what the gas account lacks for it all.

    `places`: how many more transactions it may hold. `until`: when planning ends, by time.monotonic().
    """

    places: int
    until: float = math.inf
    jobs: list[Job] = field(default_factory=list)
    waiting: list[Waiting] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    short_wei: int = 0
    topup_data_fee_wei: int | None = None  # the same for all; None before the first

    @property
    def is_full(self) -> bool:
        """Whether what is left has to wait for the next round: no place, or no time."""
        return len(self.jobs) >= self.places or time.monotonic() > self.until

    def wait(self, candidate: Candidate, reason: str, units: int | None = None) -> None:
        self.waiting.append(
            Waiting(candidate.address, candidate.asset, candidate.units if units is None else units, reason)
        )

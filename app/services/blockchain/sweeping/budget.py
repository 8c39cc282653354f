"""What the gas account can still pay for."""

from collections.abc import Sequence

from app.core import limits
from app.core.evm import checksum
from app.core.money import format_units
from app.db.repositories.sweeps import SweepRecord
from app.services.blockchain.sweeping.jobs import Job
from app.services.blockchain.sweeping.round import Round


class GasBudget:
    """The gas account's balance less what its transactions under way may cost, and how many more it may have.

    Nodes count like that: they refuse a transaction that all the pending ones together could not pay for.
    """

    def __init__(self, round_: Round, live: Sequence[SweepRecord]) -> None:
        self._round = round_
        pending = [record.attempts[-1] for record in live if record.sweep.status == "signed"]
        self._left_wei = round_.gas.balance_wei - sum(
            each.value_units + each.gas_limit * each.max_fee_units for each in pending
        )
        self._places = limits.SWEEP_PENDING - len(pending)
        self._wanted_wei = 0

    def refuses(self, job: Job) -> str | None:
        """Why the job has to wait; None when it is paid for, and then it counts."""
        if self._places <= 0:
            return f"the gas account has {limits.SWEEP_PENDING} transactions under way"
        self._wanted_wei += job.most_wei
        if self._wanted_wei > self._left_wei:
            return f"the gas account {checksum(self._round.gas_address)} lacks {self._coin(self.short_wei)}"
        self._places -= 1
        return None

    @property
    def short_wei(self) -> int:
        """What the account needs to be sent: for all that was wanted, and for a small batch at any time."""
        reserve_wei = limits.SWEEP_RESERVE_GAS * self._round.fees.max_wei if self._round.chain.tokens else 0
        return max(self._wanted_wei - self._left_wei, reserve_wei - self._left_wei, 0)

    def _coin(self, wei: int) -> str:
        native = self._round.chain.native
        return f"{format_units(wei, native.decimals)} {native.symbol}"

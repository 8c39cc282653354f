"""A watch whose money is swept: rounds that a test takes by hand, beside the steps of the scanner."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from app.blockchain.collector import Contracts
from app.blockchain.signer import Signer
from app.blockchain.wallet import AddressDeriver
from app.core.evm import checksum
from app.db.models import Sweep, SweepAttempt, SweepItem
from app.services.blockchain.sweeper import RoundOutcome, Sweeper, sweep_round
from app.services.views import PaymentView
from tests.services.blockchain.watch import CONFIRMATIONS, Watch, known_xpub

# Not Anvil's own words, whose addresses are rich.
WORDS = "legal winner thank year wave sausage worth useful legal winner thank yellow"
OTHER_WORDS = "letter advice cage absurd amount doctor acoustic avoid letter advice cage above"
TREASURY = "0x" + "7e" * 20
ETHER = 10**18
GAS_MONEY = ETHER
ROUNDS_MAX = 60  # of one story: a sweeper that never comes to rest is a failure

OpenSwept = Callable[..., AbstractAsyncContextManager["Swept"]]


@dataclass
class Swept:
    """A watch and a sweeper over the same database and node."""

    watch: Watch
    sweeper: Sweeper

    @property
    def gas_account(self) -> str:
        return checksum(self.sweeper.signer.gas_account.address)

    @property
    def contracts(self) -> Contracts:
        return Contracts(self.sweeper.signer.gas_account.address, bytes.fromhex(TREASURY[2:]))

    async def round(self) -> RoundOutcome:
        outcome = await sweep_round(self.sweeper, self.watch.chain)
        assert outcome.problem is None, outcome.problem
        return outcome

    async def waiting(self) -> list[str]:
        """Why money waits, by a round's word."""
        outcome = await self.round()
        assert outcome.plan is not None
        return [each.reason for each in outcome.plan.waiting]

    async def confirmed(self, token: str = "USDC", amount: str = "25", **changed: Any) -> PaymentView:
        """A payment that was paid and has its confirmations."""
        payment = await self.watch.create(token, amount, **changed)
        await self.watch.pay(payment)
        await self.watch.mine_and_scan(CONFIRMATIONS)
        assert (await self.watch.get(payment)).status == "confirmed"
        return payment

    async def confirmed_many(self, count: int, token: str = "USDC", amount: str = "25") -> list[PaymentView]:
        payments = [await self.watch.create(token, amount) for _ in range(count)]
        for payment in payments:
            await self.watch.pay(payment)
        await self.watch.mine_and_scan(CONFIRMATIONS)
        return payments

    async def turn(self) -> None:
        """A round, a block, and the scanner's look at it."""
        await self.round()
        await self.watch.mine_and_scan()

    async def settle(self, *payments: PaymentView) -> None:
        """Rounds and blocks until these are settled and no sweep is under way."""
        for _ in range(ROUNDS_MAX):
            await self.turn()
            if await self.at_rest(payments):
                return
        raise AssertionError(f"not settled: {await self.story()}")

    async def at_rest(self, payments: Sequence[PaymentView]) -> bool:
        """Whether these are settled and no sweep is under way."""
        statuses = [(await self.watch.get(each)).status for each in payments]
        return set(statuses) == {"settled"} and not await self.live()

    async def live(self) -> list[Sweep]:
        sweeps = await self.watch.rows(Sweep)
        return [each for each in sweeps if each.status in ("signed", "mined")]

    async def story(self) -> list[tuple[str, str, int | None, str | None]]:
        """(kind, status, nonce, error) of every sweep, in the order in which they were made."""
        sweeps = sorted(await self.watch.rows(Sweep), key=lambda each: each.created_at)
        return [(each.kind, each.status, each.nonce, each.error) for each in sweeps]

    async def attempts(self) -> list[SweepAttempt]:
        return sorted(await self.watch.rows(SweepAttempt), key=lambda each: each.created_at)

    async def treasury_holds(self, token: str) -> int:
        if token == "ETH":
            return await self.watch.anvil.balance(TREASURY)
        units: int = await self.watch.anvil.call(
            self.watch.tokens[token], "balanceOf(address)", TREASURY, returns="uint256"
        )
        return units

    async def holds(self, payment: PaymentView, token: str) -> int:
        if token == "ETH":
            return await self.watch.anvil.balance(payment.address)
        units: int = await self.watch.anvil.call(
            self.watch.tokens[token], "balanceOf(address)", payment.address, returns="uint256"
        )
        return units

    async def nothing_hangs(self) -> None:
        """No sweep is under way, no item is live, and the chain has used every nonce that was given out."""
        assert not await self.live()
        assert not [item for item in await self.watch.rows(SweepItem) if item.live]
        for sweep in await self.watch.rows(Sweep):
            if sweep.nonce is not None:
                used = int(await self.watch.anvil.rpc("eth_getTransactionCount", checksum(sweep.account), "latest"), 16)
                assert used > sweep.nonce


def sweep_policy(**changed: Any) -> str:
    values = {"mode": "auto", "treasury": f'"{TREASURY}"', "interval": 0.1} | changed
    return "{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}"


def use_words(monkeypatch: pytest.MonkeyPatch, words: str = WORDS) -> None:
    """Have payments' addresses made from `words`."""
    deriver = AddressDeriver(known_xpub(words))
    monkeypatch.setattr("tests.services.blockchain.watch.deriver", lambda: deriver)


@asynccontextmanager
async def swept_by(
    opened: Callable[..., AbstractAsyncContextManager[Watch]], signer: Signer, **policy: Any
) -> AsyncIterator[Swept]:
    changed = {name: policy.pop(name) for name in ("tokens", "native", "confirmations_required") if name in policy}
    async with opened(sweep=sweep_policy(**policy), **changed) as watch:
        swept = Swept(watch, Sweeper(watch.context, signer))
        await watch.anvil.set_balance(swept.gas_account, GAS_MONEY)
        yield swept


def make_signer(words: str = WORDS) -> Signer:
    return Signer(SecretStr(words))

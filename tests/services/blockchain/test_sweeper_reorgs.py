"""Goal: under reorgs of every depth, with kills, all money is swept, each payment settled, and nothing is made up."""

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from app.core import limits
from app.core.evm import NATIVE_ASSET
from app.db.models import Transaction
from app.services.blockchain.backup import backup_pass
from app.services.blockchain.reconcile import reconcile_chain
from app.services.blockchain.sweeper import sweep_round
from app.services.views import PaymentView
from tests.services.blockchain.killer import Killed, Killer
from tests.services.blockchain.requests import Requests
from tests.services.blockchain.sweeping import ETHER, ROUNDS_MAX, OpenSwept, Swept
from tests.services.blockchain.test_sweeper_trouble import age_attempts, age_failures, base_fee
from tests.support.anvil import AnvilError

SEEDS = os.environ.get("SEEDS", "0:1")  # more of them when something about sweeps or reorgs changes
TURNS = 60
PAYMENTS_MAX = 8
DEEPEST = 12  # blocks of a reorg: four times the confirmations that end a sweep
CHANCES = {"pay": 3, "pay again": 1, "mine": 10, "block": 3, "round": 8, "kill a round": 3, "kill a step": 2}
CHANCES |= {"reorg": 2, "backup": 1, "base fee": 2, "later": 2, "two rounds": 2}


@dataclass
class Story:
    """Customers who send again what a reorg dropped, in the order in which they had sent it."""

    swept: Swept
    killer: Killer
    dice: random.Random
    forwarder: str | None
    payments: list[PaymentView] = field(default_factory=list)
    sent: dict[str, tuple[str, PaymentView, str, int]] = field(default_factory=dict)
    paid: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    async def turn(self) -> None:
        [what] = self.dice.choices(list(CHANCES), list(CHANCES.values()))
        self.told.append(what)
        watch = self.swept.watch
        if what == "pay" and len(self.payments) < PAYMENTS_MAX:
            self.payments.append(await watch.create(self.dice.choice(["USDC", "ETH"]), "1"))
            await self.pay(self.payments[-1], self.payments[-1].token, int(self.payments[-1].amount_units))
        elif what == "pay again" and self.payments:
            token = self.dice.choice(["USDC", "ETH"])
            await self.pay(self.dice.choice(self.payments), token, 10**6 if token == "USDC" else ETHER)
        elif what == "mine":
            await watch.mine_and_scan(self.dice.randint(1, 2))
        elif what == "block":
            await watch.anvil.mine()
        elif what == "round":
            await self.round()
        elif what.startswith("kill"):
            with self.killer.at(self.dice.randint(1, 120)), suppress(Killed):
                await (self.round() if what == "kill a round" else watch.step())
        elif what == "reorg":
            await self.reorg()
        elif what == "base fee":
            await base_fee(watch.anvil, self.dice.choice([1, 5, 30]))
        elif what == "later":
            await age_attempts(self.swept, limits.SWEEP_STUCK_S + 1, broadcast=True)
        elif what == "two rounds":
            await asyncio.gather(self.round(), self.round(), watch.step())
        elif what == "backup":
            await backup_pass(watch.context, watch.chain)

    async def pay(self, payment: PaymentView, token: str, units: int) -> None:
        self.paid[payment.id, token] += units
        await self.send(payment, token, units)

    async def send(self, payment: PaymentView, token: str, units: int) -> None:
        """Ether perhaps by way of a contract."""
        watch = self.swept.watch
        if token == "ETH" and self.forwarder is not None and self.dice.random() < 0.5:
            to = ("pay(address)", payment.address)
            tx_hash = await watch.anvil.transact(self.forwarder, *to, value=units, sender_index=1)
        else:
            tx_hash = await watch.pay(payment, units, token=token)
        self.sent[tx_hash] = await watch.raw(tx_hash), payment, token, units

    async def reorg(self) -> None:
        depth = self.dice.randint(1, DEEPEST)
        self.told[-1] += f" {depth}"
        await self.swept.watch.anvil.reorg(depth)
        if self.dice.random() < 0.5:
            await self.send_again()
        if self.dice.random() < 0.6:
            await self.swept.watch.mine_and_scan(self.dice.randint(0, 2))
        await self.send_again()

    async def send_again(self) -> None:
        """The same bytes, or new ones where the nonce is another transaction's now."""
        anvil = self.swept.watch.anvil
        for tx_hash, (raw, *what) in list(self.sent.items()):
            if await anvil.rpc("eth_getTransactionByHash", tx_hash) is None:
                try:
                    await anvil.rpc("eth_sendRawTransaction", raw)
                except AnvilError:
                    del self.sent[tx_hash]
                    await self.send(*what)

    async def round(self) -> None:
        outcome = await sweep_round(self.swept.sweeper, self.swept.watch.chain)
        assert outcome.problem is None or "block" in outcome.problem, outcome.problem

    async def end(self) -> None:
        """Rounds and blocks until nothing moves any more."""
        await self.send_again()
        await self.swept.watch.mine_and_scan(4)
        for _ in range(ROUNDS_MAX):
            await age_attempts(self.swept, limits.SWEEP_REBROADCAST_S + 1, broadcast=True)
            await age_failures(self.swept)
            await self.round()
            await self.swept.watch.mine_and_scan()
            waiting = await self.swept.watch.rows(Transaction, Transaction.canonical, ~Transaction.swept)
            if not waiting and await self.swept.at_rest(self.payments):
                return
        raise AssertionError(f"not settled: {waiting=}", await self.swept.story(), await self.swept.waiting())

    async def check(self) -> None:
        watch = self.swept.watch
        found: Counter[tuple[str, str]] = Counter()
        for row in await watch.rows(Transaction, Transaction.canonical):
            found[row.payment_id, "ETH" if row.asset == NATIVE_ASSET else "USDC"] += row.amount_units
        assert found == self.paid
        tokens = sum(units for (_, token), units in self.paid.items() if token == "USDC")
        assert await self.swept.treasury_holds("USDC") == tokens
        assert [await self.swept.holds(each, "USDC") for each in self.payments] == [0] * len(self.payments)
        for payment in self.payments:
            asked = {key for key in self.paid if key[0] == payment.id}
            flags = set((await watch.get(payment)).flags) - {"reorged"}
            wrong = {"wrong_asset"} if len(asked) > 1 else set()
            over = {"overpaid"} if self.paid[payment.id, payment.token] > int(payment.amount_units) else set()
            assert flags == wrong | over
        assert {status for _, status, _, _ in await self.swept.story()} <= {"confirmed", "failed"}
        await self.swept.nothing_hangs()
        assert (await reconcile_chain(watch.context, watch.chain)).differences == ()
        await watch.audit(against_node=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(*map(int, SEEDS.split(":"))))
@pytest.mark.parametrize("detect", ["blocks", "trace", "balances"])
@pytest.mark.parametrize("mode", ["auto", "topup"])
async def test_all_money_is_swept_and_nothing_is_made_up(
    open_swept: OpenSwept, requests: Requests, monkeypatch: pytest.MonkeyPatch, seed: int, detect: str, mode: str
) -> None:
    monkeypatch.setattr(limits, "ROTATION_EVERY_S", 0.0)
    async with open_swept(mode=mode, native=f"{{detect: {detect}}}") as swept:
        forwarder = await swept.watch.anvil.deploy("Forwarder")
        await swept.watch.mine_and_scan(DEEPEST)
        with Killer(swept.watch, requests) as killer:
            story = Story(swept, killer, random.Random(seed), forwarder if detect != "blocks" else None)
            for _ in range(TURNS):
                await story.turn()
        try:
            await story.end()
            await story.check()
        except AssertionError as error:
            error.add_note(", ".join(story.told))
            raise

"""What customers send, and when: all of it, too little, too much, late, twice, the wrong thing, or nothing."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from tests.simulation.chain import (
    APPROVAL,
    DAI,
    FAKE,
    NATIVE,
    NFT,
    ROUTER,
    TRANSFER,
    USDC,
    Frame,
    Log,
    SimulatedChain,
    Tx,
    transfer_log,
)

ASSETS = {"ETH": NATIVE, "USDC": USDC, "DAI": DAI}
HABITS = {
    "exact": 30,
    "parts": 14,
    "twice_in_one_transaction": 7,
    "overpays": 7,
    "underpays": 7,
    "pays_twice": 5,
    "late": 7,
    "late_part": 4,
    "wrong_asset": 6,
    "wrong_asset_then_right": 4,
    "reverted_then_right": 6,
    "reverted": 3,
    "fake_token": 4,
    "nothing": 8,
}


@dataclass(frozen=True, slots=True)
class Order:
    """A payment as its customer knows it."""

    payment_id: str
    address: bytes
    asset: bytes
    units: int
    tolerance_units: int
    expires_at: int


@dataclass(eq=False)
class Intent:
    """A transaction that waits to be mined. `fails` for good; `alive` False: its sender replaced it."""

    tx: Tx
    not_before: int
    fails: bool = False
    alive: bool = True


class Customers:
    """Makes transactions; a world decides which block they come into. `through_contracts`: some pay by inner calls."""

    def __init__(self, chain: SimulatedChain, rng: random.Random, through_contracts: bool) -> None:
        self.chain = chain
        self.rng = rng
        self.through_contracts = through_contracts
        self.intents: list[Intent] = []
        self.orders: list[Order] = []

    def order(self, order: Order, now: int) -> None:
        """Decide what the customer of a new payment will do."""
        self.orders.append(order)
        rng = self.rng
        habit = rng.choices(list(HABITS), list(HABITS.values()))[0]
        soon = now + rng.randrange(0, max(order.expires_at - now, 1))
        late = order.expires_at + rng.randrange(1, 200)
        for tx, moment, fails in self._plan(habit, order, soon, late):
            self.intents.append(Intent(tx, moment, fails))

    def noise(self) -> Iterator[Tx]:
        """What else is in a block: strangers, tokens that nobody watches, and spam to our addresses."""
        for _ in range(self.rng.choice((0, 0, 1, 1, 2, 3))):
            kind = self.rng.randrange(8)
            stranger = self.rng.randbytes(20)
            ours = self.rng.choice(self.orders).address if self.orders else stranger
            if kind == 0:
                yield self._native(stranger, self.rng.randrange(10**18))
            elif kind == 1:
                yield self._token(self._log(USDC, stranger, 5_000_000))
            elif kind == 2:  # address poisoning
                yield self._token(
                    self._log(USDC, ours, 0), Log(DAI, (APPROVAL, bytes(32), bytes(12) + ours), bytes(32))
                )
            elif kind == 3:
                yield self._token(self._log(FAKE, ours, 10**30))
            elif kind == 4:  # ERC-721: the same topic, the id indexed, no data
                yield self._token(Log(NFT, (TRANSFER, bytes(32), bytes(12) + ours, self.rng.randbytes(32)), b""))
            elif kind == 5:
                yield self._native(ours, 0)
            elif kind == 6:  # frames that move nothing: failed, under a failed one, or a delegation
                paying = Frame(ROUTER, ours, 10**18)
                yield self._calls(
                    Frame(ROUTER, stranger, 5, failed=True, calls=(paying,)), replace(paying, failed=True)
                )
            else:
                yield self._calls(Frame(ROUTER, ours, 10**18, kind="DELEGATECALL"), Frame(ROUTER, stranger, 7))

    def _plan(self, habit: str, order: Order, soon: int, late: int) -> Iterator[tuple[Tx, int, bool]]:
        """The transactions of a habit: each with the moment from which it can be mined, and whether it will revert."""
        rng, units = self.rng, order.units
        if habit == "twice_in_one_transaction":
            yield from ((tx, soon, False) for tx in self._in_one(order, self._split(units, 2)))
        elif habit in ("wrong_asset", "wrong_asset_then_right"):
            wrong = rng.choice([asset for asset in ASSETS.values() if asset != order.asset])
            yield self._send(wrong, order.address, 1 + rng.randrange(2 * units)), soon, False
        elif habit in ("reverted", "reverted_then_right"):
            yield self.pay(order, units), soon, True
        elif habit == "fake_token":
            yield self._send(FAKE, order.address, units), soon, False
        for part, moment in self._amounts(habit, order, soon, late):
            yield self.pay(order, part), moment, False

    def _amounts(self, habit: str, order: Order, soon: int, late: int) -> list[tuple[int, int]]:
        """What of the asked asset comes in plain transfers, and from when on."""
        rng, units = self.rng, order.units
        enough = units - order.tolerance_units
        plain = {
            "exact": [(units - rng.randrange(order.tolerance_units + 1), soon)],
            "parts": [(part, soon + rng.randrange(60)) for part in self._split(units, rng.choice((2, 2, 3)))],
            "overpays": [(units + 1 + rng.randrange(units), soon)],
            "underpays": [(max(enough - 1 - rng.randrange(max(units // 2, 1)), 1), soon)],
            "pays_twice": [(units, soon), (units, rng.choice((soon, late)))],
            "late": [(units, late)],
            "late_part": list(zip(self._split(units, 2), (soon, late), strict=False)),
            "wrong_asset_then_right": [(units, soon + rng.randrange(60))],
            "reverted_then_right": [(units, soon + rng.randrange(30))],
        }
        return plain.get(habit, [])

    def replacement(self, intent: Intent) -> Intent | None:
        """What the sender of a transaction that a fork dropped sends instead, if anything."""
        intent.alive = False
        if not self.orders or self.rng.random() < 0.4:
            return None
        order = self.rng.choice(self.orders)
        return Intent(self.pay(order, 1 + self.rng.randrange(order.units)), intent.not_before)

    def pay(self, order: Order, units: int) -> Tx:
        """A transfer of the asked asset; sometimes in a batch that pays others, too."""
        if order.asset != NATIVE and self.rng.random() < 0.15 and len(self.orders) > 1:
            other = self.rng.choice(self.orders)
            # Change and dust: a batch reaches several of our addresses with several tokens.
            dust = self._log(self.rng.choice((USDC, DAI)), other.address, 1 + self.rng.randrange(1_000))
            logs = [self._log(order.asset, order.address, units), dust, self._log(USDC, self.rng.randbytes(20), 7)]
            self.rng.shuffle(logs)
            return self._token(*logs)
        return self._send(order.asset, order.address, units)

    def _in_one(self, order: Order, parts: list[int]) -> list[Tx]:
        if order.asset == NATIVE:
            return [self._native(order.address, part) for part in parts]
        return [self._token(*(self._log(order.asset, order.address, part) for part in parts))]

    def _send(self, asset: bytes, recipient: bytes, units: int) -> Tx:
        if asset == NATIVE and self.through_contracts and self.rng.random() < 0.5:
            return self._calls(*self._inner(recipient, units))
        if asset == NATIVE:
            return self._native(recipient, units)
        return self._token(self._log(asset, recipient, units))

    def _inner(self, recipient: bytes, units: int) -> Iterator[Frame]:
        """A batch that pays strangers, too, and `recipient` once or in two parts, some deeper, some by destruction."""
        parts = self._split(units, self.rng.choice((1, 2)))
        for part in parts:
            kind = self.rng.choice(("CALL", "CALL", "SELFDESTRUCT"))
            paying = Frame(ROUTER, recipient, part, kind)
            if self.rng.random() < 0.5:
                paying = Frame(ROUTER, self.rng.randbytes(20), 0, calls=(Frame(ROUTER, recipient, 0), paying))
            yield paying
            yield Frame(ROUTER, self.rng.randbytes(20), 1 + self.rng.randrange(10**9))

    def _calls(self, *frames: Frame) -> Tx:
        return Tx(self.chain.new_hash(), self.rng.randbytes(20), ROUTER, self.rng.choice((0, 10**18)), (), frames)

    def _native(self, recipient: bytes, units: int) -> Tx:
        return Tx(self.chain.new_hash(), self.rng.randbytes(20), recipient, units)

    def _token(self, *logs: Log) -> Tx:
        return Tx(self.chain.new_hash(), self.rng.randbytes(20), ROUTER, 0, logs)

    def _log(self, token: bytes, recipient: bytes, units: int) -> Log:
        return transfer_log(token, self.rng.randbytes(20), recipient, units)

    def _split(self, units: int, parts: int) -> list[int]:
        if units < parts:
            return [units]
        cuts = sorted(self.rng.sample(range(1, units), parts - 1)) if units < 2**62 else [units // parts] * (parts - 1)
        if units >= 2**62:
            return [*cuts, units - sum(cuts)]
        bounds = [0, *cuts, units]
        return [after - before for before, after in pairwise(bounds)]

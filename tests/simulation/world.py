"""One run: a gateway follows a simulated chain through faults, kills and forks, then peace comes and it is judged."""

import asyncio
import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from app.blockchain.wallet import AddressDeriver
from app.core import limits
from app.core.chains import ChainsFile
from app.core.config import Settings
from app.core.errors import ChainUnavailable, Conflict, NotCancellable
from app.db.models import Merchant
from app.services import payments
from app.services.blockchain import control
from app.services.blockchain.backup import Reread, backup_pass, cursor_of, rescan_blocks
from app.services.blockchain.chains import prepare
from app.services.blockchain.scanner import step
from app.services.defaults import defaults_of
from app.services.ledger import Cause
from app.services.payments import NewPayment
from tests.simulation.chain import Block, Mined, SimulatedChain
from tests.simulation.customers import ASSETS, Customers, Order
from tests.simulation.node import PAST_HEAD_ERRORS, RANGE_ERRORS, UNKNOWN_HASH_ERRORS, Endpoint, Nodes, NodeServer
from tests.simulation.truth import judge
from tests.simulation.virtual import EPOCH, Clock, SimulatedLoop, Turns, simulated_time
from tests.simulation.worker import Worker

WEBHOOK_URL = "https://shop.example/hooks"
EXPIRIES_S = (60, 90, 150, 300, 600)
PEACE_STEPS = 300  # many times what a gateway needs that is not stuck
QUIET_S = 60.0  # between steps in peace: whoever rests from a failure comes back


@dataclass(frozen=True, slots=True)
class Weather:
    """What a seed makes of a run; the rates are per tick, request or job."""

    ticks: int
    by_tag: bool
    finality_depth: int
    epoch: int
    confirmations: int
    batch_blocks: int
    blooms: bool
    endpoints: int
    fault_rate: float
    fork_rate: float
    move_rate: float
    kill_rate: float
    drop_rate: float
    together_rate: float
    order_rate: float
    lag_blocks: int
    balanced: bool
    detect: str
    audit_rate: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Weather":
        calm = rng.random() < 0.1
        return cls(
            ticks=rng.randrange(18, 36),
            by_tag=rng.random() < 0.5,
            finality_depth=rng.randrange(3, 17),
            epoch=rng.choice((1, 1, 4)),
            confirmations=rng.choice((1, 1, 2, 3, 5, 8)),
            batch_blocks=rng.choice((2, 5, 12, 30)),
            blooms=rng.random() < 0.75,
            endpoints=rng.choice((1, 2, 2, 3)),
            fault_rate=0.0 if calm else rng.choice((0.0, 0.03, 0.08, 0.2)),
            fork_rate=rng.choice((0.05, 0.15, 0.3)),
            move_rate=rng.choice((0.0, 0.03, 0.08)),
            kill_rate=0.0 if calm else rng.choice((0.0, 0.1, 0.3)),
            drop_rate=0.0 if calm else rng.choice((0.0, 0.05, 0.15)),
            together_rate=rng.choice((0.0, 0.15, 0.4)),
            order_rate=rng.choice((0.15, 0.3, 0.5)),
            lag_blocks=rng.choice((0, 0, 2, 6)),
            balanced=rng.random() < 0.25,
            detect=rng.choice(("blocks", "blocks", "trace")),
            audit_rate=rng.choice((0.1, 0.3)),
        )


@dataclass
class Report:
    """What a run was, and what is wrong after it."""

    seed: int
    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Installation:
    """What is the same for all runs of a process. `settings` name a migrated database of the run's own."""

    settings: Settings
    chains_text: Callable[["Weather"], ChainsFile]
    deriver: AddressDeriver
    merchant_id: str
    server: NodeServer


class World:
    """Chain, nodes, gateway and customers of one seed."""

    def __init__(self, seed: int, installation: Installation, loop: SimulatedLoop, resets: bool = False) -> None:
        self.rng = random.Random(seed)
        self.resets = resets
        self.weather = Weather.draw(self.rng)
        self.installation = installation
        self.report = Report(seed)
        self.clock = Clock(loop)
        weather = self.weather
        self.chain = SimulatedChain(
            self.rng, weather.finality_depth, weather.epoch if weather.by_tag else 1, weather.blooms, self.clock.unix
        )
        self.customers = Customers(self.chain, self.rng, through_contracts=weather.detect == "trace")
        self.turns = Turns(self.rng, free=not installation.settings.database_url.startswith("sqlite"))
        loop.when_idle(self.turns.choose)
        for _ in range(self.rng.randrange(2, 12)):
            self._mine()
        endpoints = [self._endpoint() for _ in range(weather.endpoints)]
        self.nodes = Nodes(self.chain, self.clock, self.rng, endpoints, weather.by_tag)
        self.chains = installation.chains_text(weather)
        self.floor = 0  # the block that the gateway began at: no customer could pay at or below it
        self._names = 0
        self._open: list[Worker] = []

    async def run(self) -> Report:
        """Play the run through and judge it; what is wrong is in the report."""
        server = self.installation.server
        server.nodes, server.callers = self.nodes, {}
        self.log(str(self.weather))
        with simulated_time(self.clock, self.rng):
            try:
                await self._start()
                for _ in range(self.weather.ticks):
                    await self._tick()
                await self._peace()
                self.report.problems += await judge(self)
            except Exception as error:  # noqa: BLE001 (whatever a seed finds is reported with the seed)
                self.report.problems.append(_told(error))
            finally:
                for worker in self._open:
                    await worker.close()
                server.nodes, server.callers = None, {}
        self._count()
        return self.report

    def log(self, line: str) -> None:
        self.report.log.append(f"{self.clock.elapsed:8.2f}  {line}")

    # The gateway

    async def _start(self) -> None:
        self.api = self._worker()
        self.listeners = [self._worker(), self._worker()]
        self.auditor = self._worker()
        assert (await prepare(self.api.context, self.api.chain)).problem is None
        self.floor = self.chain.head.number
        self.log(f"begins at block {self.floor}")
        self.nodes.peaceful = False
        self.nodes.on_request = self._meanwhile

    def _worker(self) -> Worker:
        self._names += 1
        ports = self.installation.server.ports[: self.weather.endpoints]
        worker = Worker(f"w{self._names}", self.installation.settings, self.chains, ports, self.turns, self.rng)
        self.installation.server.callers[worker.name] = worker
        self._open.append(worker)
        return worker

    async def _follow(self, worker: Worker, steps: int) -> str:
        """The listener's job; how it ended."""
        if not worker.ready:
            check = await prepare(worker.context, worker.chain)
            worker.ready = check.problem is None
            if not worker.ready:
                self.log(f"{worker.name} not ready: {check.problem}")
                return "not ready"
        for _ in range(steps):
            async with asyncio.timeout(limits.STEP_TIMEOUT_S):
                outcome = await step(worker.context, worker.chain)
            self.report.counts["steps"] += 1
            told = [f"{change.type} v{change.state.version}" for change in outcome.changes]
            self.log(f"{worker.name} step: progressed={outcome.progressed} {told} {outcome.problem or ''}")
            worker.ready = outcome.halted != "config"  # as the listener does: somebody's check may have halted it
            if not outcome.progressed:
                return "changes" if outcome.changes else "problem" if outcome.problem else "at rest"
        return "on the way"

    async def _backup(self, worker: Worker) -> str:
        """The backup pass's job."""
        outcome = await backup_pass(worker.context, worker.chain)
        if outcome is None:
            return "at rest"
        self._reread(worker, "passes", outcome)
        return "problem" if outcome.problem else "on the way"

    async def _rescan(self, worker: Worker, first: int, last: int | None) -> None:
        """The operator's job."""
        async for outcome in rescan_blocks(worker.context, worker.chain, first, last):
            self._reread(worker, "rescans", outcome)

    async def _reset(self, worker: Worker, depth: int) -> None:
        """The operator's job: the cursor goes back by so many blocks, where that is safe."""
        cursor = await cursor_of(worker.context, worker.chain) or 0
        try:
            way = await control.find_reset(worker.context, worker.chain, max(cursor - depth, self.floor))
            if way is not None:
                await control.reset(worker.context, worker.chain, way, "operator")
                self.report.counts["resets"] += 1
                self.log(f"{worker.name} reset: from {way.seen_number} to {way.target.number}")
                if self.chain.deepest_fork > 0 and self.rng.random() < 0.6:
                    self._fork()  # before those blocks are read again
                    for endpoint in self.nodes.endpoints:
                        self._look(endpoint)
        except Conflict as refused:
            self.log(f"{worker.name} reset refused: {refused}")

    def _reread(self, worker: Worker, kind: str, outcome: Reread) -> None:
        """Without blooms nothing gives an empty list of logs away; else there is nothing that a scan may miss."""
        self.report.counts[kind] += 1
        self.report.counts["found"] += outcome.found
        self.log(
            f"{worker.name} {kind}: {outcome.first} to {outcome.last} found={outcome.found} {outcome.problem or ''}"
        )
        if outcome.found and self.weather.blooms:
            self.report.problems.append(f"{kind}: {outcome.found} missed from {outcome.first} to {outcome.last}")

    def _audit(self) -> Callable[[], Awaitable[Any]]:
        """A second look, for the auditor."""
        worker = self.auditor
        if self.resets and self.rng.random() < 0.5:
            depth = self.rng.choice((1, 3, 8, 40))
            return lambda: self._reset(worker, depth)
        if self.rng.random() < 0.7:
            return lambda: self._backup(worker)
        first = self.rng.randint(min(self.floor, self.chain.head.number) + 1, self.chain.head.number + 1)
        last = first + self.rng.randrange(12) if self.rng.random() < 0.8 else None
        return lambda: self._rescan(worker, first, last)

    def _armed(self, worker: Worker, job: Callable[[], Awaitable[Any]]) -> Awaitable[Any]:
        """A job with the traps of the weather."""
        if self.rng.random() < self.weather.kill_rate:
            worker.arm_kill(self.rng.randrange(1, 45))
        if self.rng.random() < self.weather.drop_rate:
            worker.arm_drop(self.rng.randrange(1, 30))
        return worker.run(job)

    def _ended(self, worker: Worker, outcome: Any) -> None:
        """What may go wrong in a broken world is counted, no more; anything else ends the run."""
        worker.disarm()
        if isinstance(outcome, IntegrityError):
            raise outcome  # the database had to stop a double write: nothing else did
        if worker.killed:
            self.log(f"{worker.name} killed: {outcome}")
        elif isinstance(outcome, SQLAlchemyError | OSError | TimeoutError):  # what the listener forgives
            self.report.counts["jobs failed"] += 1
            self.log(f"{worker.name} failed: {type(outcome).__name__}: {str(outcome)[:100]}")
        elif isinstance(outcome, BaseException):
            raise outcome

    async def _replaced(self, worker: Worker) -> Worker:
        """The worker, or when it was killed another one in its place."""
        if not worker.killed:
            return worker
        worker.gone = True
        await worker.close()
        self._open.remove(worker)
        self.installation.server.callers.pop(worker.name)
        self.report.faults += worker.faults
        return self._worker()

    def _wish(self) -> tuple[NewPayment, Order]:
        """A payment to ask for, and its order as far as it is known before."""
        rng = self.rng
        symbol = rng.choice(list(ASSETS))
        decimals = 6 if symbol == "USDC" else 18
        units = rng.choice((1, 2, 10**6, 10**decimals, rng.randrange(1, 10**9), rng.randrange(1, 10 ** (decimals + 5))))
        expires_in_s, confirmations = rng.choice(EXPIRIES_S), rng.choice((None, None, 1, 4))
        tolerance = rng.choice(("0", "0", "1%", "25%"))
        wanted = NewPayment(
            chain="simulated",
            token=symbol,
            amount=format(Decimal(units).scaleb(-decimals), "f"),
            expires_in_s=expires_in_s,
            confirmations_required=confirmations,
            tolerance=tolerance,
            webhook_url=rng.choice((None, WEBHOOK_URL)),
        )
        tolerance_units = units * int(tolerance.rstrip("%")) // 100
        return wanted, Order("", b"", ASSETS[symbol], units, tolerance_units, 0)

    async def _create(self, wanted: NewPayment) -> payments.PaymentView:
        context, installation = self.api.context, self.installation
        async with context.db.read() as session:
            merchant = await session.get_one(Merchant, installation.merchant_id)
        quoted = await payments.quote(context, defaults_of(merchant), wanted)
        created = await payments.create(context, installation.deriver, merchant.id, quoted, Cause("api_key", {}))
        assert isinstance(created, payments.Created)
        return created.view

    async def _cancel(self, payment_id: str) -> payments.PaymentView:
        context, merchant_id = self.api.context, self.installation.merchant_id
        async with context.db.write() as session:
            return await payments.cancel(context, session, merchant_id, payment_id, Cause("api_key", {}))

    # The world around it

    async def _tick(self) -> None:
        rng, weather = self.rng, self.weather
        self.clock.advance(rng.choice((1, 3, 6, 12, 12, 25)))
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 4) if rng.random() < 0.9 else (12, 20))):
            self._move()
            self.clock.advance(rng.choice((0, 1, 2, 6)))
        together = rng.random() < weather.together_rate
        jobs: list[tuple[Worker, Callable[[], Awaitable[Any]]]] = []
        order: Order | None = None
        if self.customers.orders and rng.random() < 0.04:
            payment_id = rng.choice(self.customers.orders).payment_id
            jobs.append((self.api, lambda: self._cancel(payment_id)))
        elif rng.random() < weather.order_rate:
            wanted, order = self._wish()
            jobs.append((self.api, lambda: self._create(wanted)))
        if rng.random() > 0.15:
            listeners = self.listeners if together else self.listeners[:1]
            jobs += [(each, partial(self._follow, each, rng.choice((1, 1, 2, 4)))) for each in listeners]
        if rng.random() < weather.audit_rate:
            jobs.append((self.auditor, self._audit()))
        rng.shuffle(jobs)
        if together:
            outcomes = await asyncio.gather(*(self._armed(*job) for job in jobs))
        else:
            outcomes = [await self._armed(*job) for job in jobs]
        for (worker, _), outcome in zip(jobs, outcomes, strict=True):
            if worker is self.api and isinstance(outcome, ChainUnavailable | NotCancellable):
                worker.disarm()
                continue
            self._ended(worker, outcome)
            if worker is self.api and order is not None and isinstance(outcome, payments.PaymentView):
                self._ordered(order, outcome)
        self.api = await self._replaced(self.api)
        self.listeners = [await self._replaced(listener) for listener in self.listeners]
        self.auditor = await self._replaced(self.auditor)

    def _ordered(self, order: Order, view: payments.PaymentView) -> None:
        order = replace(
            order,
            payment_id=view.id,
            address=bytes.fromhex(view.address[2:]),
            expires_at=int(datetime.fromisoformat(view.expires_at).timestamp()),
        )
        self.customers.order(order, self.clock.unix)
        self.log(
            f"{order.payment_id} wants {order.units} of 0x{order.asset[:2].hex()} until {order.expires_at - EPOCH}"
        )

    def _meanwhile(self) -> None:
        if self.rng.random() < self.weather.move_rate:
            self._move()

    def _move(self) -> None:
        """The chain goes on, mostly straight; the nodes see it, each in its time."""
        rng, chain = self.rng, self.chain
        revivable = chain.revivable()
        if rng.random() >= self.weather.fork_rate:
            self._mine()
        elif revivable and rng.random() < 0.45:
            before = chain.head
            chain.revive(rng.choice(revivable[-3:]))
            if rng.random() < 0.7:
                self._mine()
            self.log(f"block {before.number} lost to an old branch, head {chain.head.number}")
        elif chain.deepest_fork > 0:
            self._fork()
        for endpoint in self.nodes.endpoints:
            self._look(endpoint)

    def _fork(self) -> None:
        rng, chain = self.rng, self.chain
        deepest = chain.deepest_fork
        depth = rng.choice((1, min(2, deepest), rng.randint(1, deepest), deepest))
        before = chain.head
        ancestor = before.branch[before.number - depth]
        for intent in self.customers.intents:
            if intent.alive and intent.tx.hash in before.included and intent.tx.hash not in ancestor.included:
                self._displace(intent)
        blocks = max(depth + rng.choice((-1, 0, 1, 1, 2)), 1)
        time = ancestor.time
        bodies: list[tuple[int, tuple[Mined, ...]]] = []
        included = set(ancestor.included)
        for number in range(ancestor.number + 1, ancestor.number + 1 + blocks):
            time = max(time + 1, min(time + rng.choice((1, 6, 12)), self.clock.unix))
            body = self._body(number, time, included)
            included.update(mined.tx.hash for mined in body)
            bodies.append((time, body))
        self.clock.elapsed = max(self.clock.elapsed, time - self.clock.unix + self.clock.elapsed)
        chain.fork(depth, bodies)
        self.log(f"fork of {depth} blocks under {before.number}, head {chain.head.number}")

    def _displace(self, intent: Any) -> None:
        """A transaction that a fork takes out: mined anew, later, never, or replaced by its sender."""
        fate = self.rng.random()
        if fate < 0.2:
            intent.not_before = self.clock.unix + self.rng.randrange(60)
        elif fate < 0.35:
            replacement = self.customers.replacement(intent)
            if replacement is not None:
                self.customers.intents.append(replacement)

    def _mine(self, everything: bool = False) -> Block:
        time = max(self.clock.unix, self.chain.head.time + 1)
        body = self._body(self.chain.head.number + 1, time, self.chain.head.included, everything)
        block = self.chain.mine(time, body)
        self.clock.elapsed += max(block.time - self.clock.unix, 0)
        return block

    def _body(self, number: int, time: int, included: Any, everything: bool = False) -> tuple[Mined, ...]:
        rng = self.rng
        mined = [Mined(tx, True) for tx in self.customers.noise()]
        # What paid in a block at or below the one that the gateway began at is lost by design (section 5, last line).
        for intent in self.customers.intents if number > getattr(self, "floor", 0) else ():
            ready = intent.alive and intent.not_before <= time and intent.tx.hash not in included
            if ready and (everything or rng.random() < 0.8):
                mined.append(Mined(intent.tx, not intent.fails and rng.random() > 0.03))
        rng.shuffle(mined)
        return tuple(mined)

    def _endpoint(self) -> Endpoint:
        rng = self.rng
        return Endpoint(
            head=self.chain.head,
            fault_rate=self.weather.fault_rate * rng.choice((0.3, 1, 2)),
            max_range=rng.choice((None, None, None, 3, 8)),
            range_error=rng.randrange(len(RANGE_ERRORS)),
            past_head=rng.choice((None, *range(len(PAST_HEAD_ERRORS)))),
            unknown_hash=rng.randrange(len(UNKNOWN_HASH_ERRORS)),
            lag_blocks=rng.choice((0, self.weather.lag_blocks)),
        )

    def _look(self, endpoint: Endpoint) -> None:
        rng = self.rng
        if self.weather.balanced:
            endpoint.balanced_with = endpoint.head
        if endpoint.lag_blocks == 0 or rng.random() < 0.7:
            endpoint.look(self.chain.head, rng.randint(0, endpoint.lag_blocks))
        if self.weather.fault_rate and rng.random() < 0.03:
            endpoint.down = not endpoint.down and self.weather.endpoints > 1

    # The end

    async def _peace(self) -> None:
        """Faults stop; all that is waiting is mined, every payment's time runs out, and everything becomes final."""
        self.nodes.peaceful = True
        intents = self.customers.intents
        moments = [intent.not_before for intent in intents if intent.alive]
        moments += [order.expires_at for order in self.customers.orders]
        moments.append(self.clock.unix + max(EXPIRIES_S))  # of a payment whose creator died before it could tell
        for moment in (0, sum(moments) // max(len(moments), 1), max(moments, default=0) + limits.IDLE_GRACE_S + 1):
            self.clock.advance(max(moment - self.clock.unix, 1))
            self._mine(everything=True)
        for _ in range(self.chain.finality_depth + self.chain.epoch + 9):
            self.clock.advance(2)
            self._mine(everything=True)
        for endpoint in self.nodes.endpoints:
            endpoint.down, endpoint.balanced_with = False, None
            endpoint.look(self.chain.head, 0)
        self.log(f"peace at block {self.chain.head.number}")
        listener, auditor = self.listeners[0], self.auditor
        await self._to_rest(listener, lambda: self._follow(listener, 1))
        await self._to_rest(auditor, lambda: self._backup(auditor))
        await self._to_rest(listener, lambda: self._follow(listener, 1))  # confirms what was found
        outcome = await auditor.run(lambda: self._rescan(auditor, self.chain.finalized_number + 1, None))
        if isinstance(outcome, BaseException):
            raise outcome

    async def _to_rest(self, worker: Worker, job: Callable[[], Awaitable[str]]) -> None:
        quiet = 0
        for _ in range(PEACE_STEPS):
            outcome = await worker.run(job)
            if isinstance(outcome, BaseException):
                raise outcome
            self.clock.advance(QUIET_S)
            quiet = quiet + 1 if outcome == "at rest" else 0
            if quiet == 2:
                return
        self.report.problems.append(f"not at rest after {PEACE_STEPS} turns: {self.report.log[-1]}")

    def _count(self) -> None:
        counts, chain = self.report.counts, self.chain
        for worker in self._open:
            self.report.faults += worker.faults
        self.report.faults += self.nodes.faults
        counts["blocks"] = len(chain.by_hash)
        counts["reorgs"] = chain.reorgs
        counts["payments"] = len(self.customers.orders)
        counts["requests"] = self.nodes.requests


def _told(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    return "".join(lines[-12:]).strip()

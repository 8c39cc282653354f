"""What must hold after a run, told from the simulated chain and DESIGN sections 2 and 5; `app` decides nothing here."""

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from app.db.models import (
    BlockHeader,
    ChainState,
    DepositAddress,
    Event,
    Payment,
    PaymentOption,
    Transaction,
    WebhookDelivery,
    WebhookEndpoint,
)
from tests.simulation.chain import Block, Transfer

if TYPE_CHECKING:
    from tests.simulation.world import World

RANK = {"pending": 0, "expired": 0, "cancelled": 0, "detected": 1, "confirmed": 2, "settled": 3}
# Event: the statuses that it may come in, and the one that it leads to (None: it stays).
STEPS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "payment.underpaid": (("pending", "expired"), None),
    "payment.detected": (("pending", "expired"), "detected"),
    "payment.confirmed": (("detected",), "confirmed"),
    "payment.settled": (("confirmed",), "settled"),
    "payment.overpaid": (("detected", "confirmed", "settled"), None),
    "payment.expired": (("pending",), "expired"),
    "payment.cancelled": (("pending",), "cancelled"),
    "payment.late": (tuple(RANK), None),
}


@dataclass
class Rows:
    """All that the database holds of a run."""

    state: ChainState
    headers: list[BlockHeader]
    transactions: list[Transaction]
    payments: dict[str, Payment]
    options: dict[str, PaymentOption]
    addresses: dict[bytes, str]
    events: dict[str, list[Event]]
    deliveries: list[WebhookDelivery]
    endpoints: list[WebhookEndpoint]


async def judge(world: "World") -> list[str]:
    """Everything that is wrong, a sentence each."""
    rows = await _read(world)
    canonical = world.chain.head.branch[world.floor + 1 :]
    expected = [
        each
        for block in canonical
        for each in block.transfers
        if each.recipient in rows.addresses
        and (world.weather.detect == "trace" or not each.position.startswith("trace:"))
    ]
    world.report.counts["transfers"] = len(expected)
    world.report.counts["internal"] = sum(each.position.startswith("trace:") for each in expected)
    world.report.counts["orphaned"] = sum(not row.canonical for row in rows.transactions)
    for event in itertools.chain.from_iterable(rows.events.values()):
        world.report.counts[event.type] += 1
    problems = [*_headers(world, rows), *_transfers(world, rows, expected), *_deliveries(rows)]
    paid: dict[str, list[Transfer]] = defaultdict(list)
    for each in expected:
        paid[rows.addresses[each.recipient]].append(each)
    addresses = {payment_id: address for address, payment_id in rows.addresses.items()}
    for payment_id, payment in rows.payments.items():
        own = [row for row in rows.transactions if row.payment_id == payment_id]
        case = Case(
            world,
            addresses[payment_id],
            payment,
            rows.options[payment_id],
            paid[payment_id],
            own,
            rows.events[payment_id],
        )
        problems += [f"{payment_id}: {problem}" for problem in (*case.state(), *case.history())]
    known = {order.payment_id for order in world.customers.orders}
    problems += [f"{payment_id}: given out, but not in the database" for payment_id in known - set(rows.payments)]
    return problems


async def _read(world: "World") -> Rows:
    async with world.api.context.db.read() as session:
        [state] = await session.scalars(select(ChainState))
        payments = {row.id: row for row in await session.scalars(select(Payment))}
        by_address = {row.deposit_address_id: row.id for row in payments.values()}
        events: dict[str, list[Event]] = defaultdict(list)
        for event in await session.scalars(select(Event).order_by(Event.version)):
            events[event.payment_id].append(event)
        return Rows(
            state=state,
            headers=list(await session.scalars(select(BlockHeader).order_by(BlockHeader.number))),
            transactions=list(await session.scalars(select(Transaction))),
            payments=payments,
            options={row.payment_id: row for row in await session.scalars(select(PaymentOption))},
            addresses={row.address: by_address[row.id] for row in await session.scalars(select(DepositAddress))},
            events=events,
            deliveries=list(await session.scalars(select(WebhookDelivery))),
            endpoints=list(await session.scalars(select(WebhookEndpoint))),
        )


def _headers(world: "World", rows: Rows) -> list[str]:
    """The cursor is the head, and the headers are the canonical chain's, linked, without a hole."""
    head, state, headers = world.chain.head, rows.state, rows.headers
    problems = []
    if state.halt_code is not None:
        problems.append(f"the chain is halted: {state.halt_detail}")
    if (state.last_scanned_block, state.last_scanned_hash) != (head.number, head.hash):
        problems.append(f"the cursor is at {state.last_scanned_block}, the head is {head.number}")
    if not headers or headers[-1].number != state.last_scanned_block:
        problems.append("the last header is not the cursor's")
    if not state.backup_block == state.finalized_block == world.chain.finalized_number:
        told = f"{state.finalized_block}, read again to {state.backup_block}"
        problems.append(f"final to {told}; the chain is final to {world.chain.finalized_number}")
    problems += [
        f"header {child.number} is not linked to {parent.number}"
        for parent, child in itertools.pairwise(headers)
        if (child.number, child.parent_hash) != (parent.number + 1, parent.hash)
    ]
    for row in headers:
        block: Block | None = head.branch[row.number] if row.number <= head.number else None
        if block is None or (row.hash, _unix(row.time)) != (block.hash, block.time):
            problems.append(f"header {row.number} is not the canonical chain's")
    return problems


def _transfers(world: "World", rows: Rows, expected: list[Transfer]) -> list[str]:
    """Canonical transfers are those of the final chain, each once; orphaned ones were on some branch that lost."""
    problems = []
    recorded = Counter(_observed(row) for row in rows.transactions if row.canonical)
    wanted = Counter(expected)
    problems += [f"missed: {each}" for each in wanted - recorded]
    problems += [f"credited but not on the chain: {each}" for each in recorded - wanted]
    for row in rows.transactions:
        block = world.chain.by_hash.get(row.block_hash)
        if block is None or _observed(row) not in block.transfers:
            problems.append(f"recorded but on no branch, ever: {_observed(row)}")
        if row.payment_id != rows.addresses.get(row.recipient):
            problems.append(f"credited to somebody else's payment: {_observed(row)}")
    return problems


def _deliveries(rows: Rows) -> list[str]:
    """Each event goes to each receiver that wants it, once."""
    found = Counter((row.event_id, row.endpoint_id, row.url) for row in rows.deliveries)
    wanted: Counter[tuple[str, str | None, str]] = Counter()
    for event in itertools.chain.from_iterable(rows.events.values()):
        for endpoint in rows.endpoints:
            if endpoint.event_types is None or event.type in endpoint.event_types:
                wanted[event.id, endpoint.id, endpoint.url] += 1
        if (url := rows.payments[event.payment_id].webhook_url) is not None:
            wanted[event.id, None, url] += 1
    problems = [f"no delivery: {each}" for each in wanted - found]
    return problems + [f"a delivery too many: {each}" for each in found - wanted]


@dataclass
class Case:
    """One payment: what it was asked, what it got on the final chain, what was recorded and told."""

    world: "World"
    address: bytes
    payment: Payment
    option: PaymentOption
    received: list[Transfer]
    recorded: list[Transaction]
    events: list[Event]

    @property
    def paying(self) -> list[Transfer]:
        return [each for each in self.received if each.asset == self.option.asset]

    @property
    def needed(self) -> int:
        return self.option.amount_units - self.option.tolerance_units

    @property
    def total(self) -> int:
        return sum(each.units for each in self.paying)

    @property
    def paid(self) -> bool:
        return self.total >= self.needed

    def state(self) -> list[str]:
        """Amount, status and flags are what the final chain says: all is final, and every payment's time is up."""
        problems = []
        if self.option.received_units != self.total:
            problems.append(f"received {self.option.received_units}, the chain says {self.total}")
        cancelled = any(event.type == "payment.cancelled" for event in self.events)
        status = "cancelled" if cancelled else "settled" if self.paid else "expired"
        if self.payment.status != status:
            problems.append(f"is {self.payment.status}, should be {status}")
        flags, wanted = set(self.payment.flags), self._flags(cancelled)
        if cancelled:
            flags &= {"reorged", "wrong_asset", *wanted}
        if flags != wanted:
            problems.append(f"has the flags {sorted(flags)}, should have {sorted(wanted)}")
        if list(self.payment.flags) != sorted(flags | set(self.payment.flags)):
            problems.append(f"the flags are not sorted: {self.payment.flags}")
        if status == "settled" and sum(row.amount_units for row in self.recorded if row.verified) < self.needed:
            problems.append("settled by transfers whose receipts were not read again")
        return problems

    def _flags(self, cancelled: bool) -> set[str]:
        expires_at = _unix(self.payment.expires_at)
        flags = set()
        if any(event.type == "payment.reverted" and event.data["flags"].count("reorged") for event in self.events):
            flags.add("reorged")
        if any(each.asset != self.option.asset for each in self.received):
            flags.add("wrong_asset")
        if cancelled:
            [at] = [event.created_at for event in self.events if event.type == "payment.cancelled"]
            return flags | ({"late"} if any(each.block_time > at.timestamp() for each in self.received) else set())
        if self.total > self.option.amount_units:
            flags.add("overpaid")
        if self.paid:
            sums = itertools.accumulate(each.units for each in self.paying)
            completing = next(each for each, total in zip(self.paying, sums, strict=True) if total >= self.needed)
            if completing.block_time > expires_at:
                flags.add("late")
        else:
            if self.total:
                flags.add("underpaid")
            if any(each.block_time > expires_at for each in self.received):
                flags.add("late")
        return flags

    def history(self) -> list[str]:
        """The events tell how the payment came to where it is, each change once and none left out."""
        problems = []
        versions = [event.version for event in self.events]
        if versions != list(range(1, len(versions) + 1)) or self.payment.version != len(versions):
            problems.append(f"is at version {self.payment.version} with events {versions}")
        if not self.events or self.events[0].type != "payment.created":
            return [*problems, "does not begin with payment.created"]
        status = "pending"
        for event in self.events[1:]:
            status, wrong = self._next(status, event)
            problems += [f"v{event.version} {event.type}: {each}" for each in wrong]
        if status != self.payment.status:
            problems.append(f"events lead to {status}, it is {self.payment.status}")
        if any(not row.canonical for row in self.recorded) and "reorged" not in self.payment.flags:
            problems.append("a transfer was orphaned and nobody was told")
        return problems + self._untold()

    def _next(self, status: str, event: Event) -> tuple[str, list[str]]:
        data: dict[str, Any] = event.data
        wrong = []
        if event.type == "payment.reverted":
            after = str(data["status"])
            if RANK[after] > RANK[status] or (status == "settled" and after != status):
                wrong.append(f"from {status} to {after}")
        elif event.type in STEPS:
            allowed, leads_to = STEPS[event.type]
            after = leads_to or status
            if status not in allowed:
                wrong.append(f"while {status}")
        else:
            return status, ["should not be here"]
        if (data["id"], data["version"], data["status"]) != (self.payment.id, event.version, after):
            wrong.append(f"its data say v{data['version']} {data['status']}, not {after}")
        return after, wrong + self._unfounded(event)

    def _unfounded(self, event: Event) -> list[str]:
        """An event that its own transfers do not bear out; none of them was ever only on a node's word."""
        branch = self.world.chain.head.branch
        counted = []
        for each in event.data["transactions"]:
            row = self._on_any_branch(each)
            if row is None:
                return [f"tells of a transfer that never was: {each}"]
            if each["status"] == "canonical":
                counted.append((row, each["confirmations"]))
        paying = [(row, confirmations) for row, confirmations in counted if row.asset == self.option.asset]
        units = {
            "payment.detected": sum(row.units for row, _ in paying),
            "payment.confirmed": sum(r.units for r, c in paying if c >= self.option.confirmations_required),
            "payment.settled": sum(r.units for r, _ in paying if branch[r.block_number].hash == r.block_hash),
        }
        if event.type in units and units[event.type] < self.needed:
            return [f"with {units[event.type]} of {self.needed}"]
        if event.type == "payment.expired" and event.created_at <= self.payment.expires_at:
            return ["before its time"]
        return []

    def _on_any_branch(self, told: dict[str, Any]) -> Transfer | None:
        """The transfer that an event tells of, in the block that it says."""
        block = self.world.chain.by_hash.get(bytes.fromhex(told["block_hash"][2:]))
        for each in block.transfers if block else ():
            same = (each.position, each.units, each.recipient) == (
                told["position"],
                int(told["amount_units"]),
                self.address,
            )
            if same:
                return each
        return None

    def _untold(self) -> list[str]:
        """Transfers of the final chain that no event mentions."""
        told = {
            (each["block_hash"], each["position"])
            for event in self.events
            for each in event.data["transactions"]
            if each["status"] == "canonical"
        }
        problems = []
        for each in self.received:
            makes_up = self.paid and each.asset == self.option.asset and self.total <= self.option.amount_units
            if ("0x" + each.block_hash.hex(), each.position) not in told and not makes_up:
                problems.append(f"nobody was told of {each}")
        return problems


def _observed(row: Transaction) -> Transfer:
    assert row.sender is not None
    assert row.tx_hash is not None
    return Transfer(
        block_hash=row.block_hash,
        block_number=row.block_number,
        block_time=_unix(row.block_time),
        tx_index=row.tx_index,
        position=row.position,
        recipient=row.recipient,
        asset=row.asset,
        units=row.amount_units,
        sender=row.sender,
        tx_hash=row.tx_hash,
        log_index=row.log_index,
    )


def _unix(moment: datetime) -> int:
    return int(moment.astimezone(UTC).timestamp())

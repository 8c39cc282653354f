"""The state machine of a payment: one pure function, no node, no database, no clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from app.core import limits

Status = Literal["pending", "detected", "confirmed", "settled", "expired", "cancelled"]
Flag = Literal["late", "overpaid", "reorged", "underpaid", "wrong_asset"]
EventType = Literal[
    "payment.created",
    "payment.underpaid",
    "payment.detected",
    "payment.confirmed",
    "payment.settled",
    "payment.overpaid",
    "payment.expired",
    "payment.cancelled",
    "payment.late",
    "payment.reverted",
]

PAID: Final[tuple[Status, ...]] = ("detected", "confirmed", "settled")


@dataclass(frozen=True, slots=True)
class OptionState:
    """One way to pay. Amounts in base units; `swept`: a sweeper brings this chain's money to a treasury."""

    chain_id: int
    asset: bytes
    amount_units: int
    tolerance_units: int
    confirmations_required: int
    received_units: int
    swept: bool

    @property
    def needed_units(self) -> int:
        return self.amount_units - self.tolerance_units


@dataclass(frozen=True, slots=True)
class PaymentState:
    status: Status
    flags: frozenset[Flag]
    version: int
    options: tuple[OptionState, ...]
    # Index of the option that the top-level fields describe; fixed while the payment is paid by it.
    option: int
    expires_at: datetime
    detected_in_block: int | None = None
    detected_at: datetime | None = None
    confirmed_at: datetime | None = None
    settled_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class TransferState:
    """A transfer to the payment's address. `noted`: an earlier decision took its present state into account."""

    chain_id: int
    asset: bytes
    amount_units: int
    block_number: int
    order: tuple[int, int]  # transaction index, place within the transaction
    block_time: datetime
    canonical: bool
    verified: bool
    noted: bool


@dataclass(frozen=True, slots=True)
class ChainHead:
    """A chain's cursor. `caught_up_at`: when a head read was begun that turned out to be the cursor itself."""

    number: int
    time: datetime
    finalized_number: int
    regaining: bool
    caught_up_at: datetime | None = None

    @property
    def passed(self) -> datetime | None:
        """The last moment up to which no block can still be missing from what was scanned; None: nobody knows."""
        if self.regaining:
            return None
        moment = self.time - datetime.resolution  # a block of the very same time may have siblings
        if self.caught_up_at is None:
            return moment
        return max(moment, self.caught_up_at - timedelta(seconds=limits.IDLE_GRACE_S))


def passed_by_chain(heads: Mapping[int, ChainHead]) -> dict[int, datetime]:
    """`passed` of the chains that have it. A payment's time is up when it is by each chain that it could be paid on."""
    return {chain_id: head.passed for chain_id, head in heads.items() if head.passed is not None}


@dataclass(frozen=True, slots=True)
class Change:
    """An event and the payment as it is with it."""

    type: EventType
    state: PaymentState


@dataclass(frozen=True, slots=True)
class Sweep:
    """Money of the payment that reached the treasury, with the required confirmations."""

    chain_id: int
    asset: bytes
    amount_units: int


def decide(
    payment: PaymentState,
    transfers: Sequence[TransferState],
    sweeps: Sequence[Sweep],
    heads: Mapping[int, ChainHead],
    now: datetime,
) -> list[Change]:
    """The payment's changes that follow from what is known; empty when nothing is new.

    `transfers` are all of the payment, orphaned ones too; `heads` are the cursors of its options' chains. Deciding
    again after the changes were stored and the transfers noted gives no change.
    """
    canonical = [transfer for transfer in transfers if transfer.canonical]
    news = [transfer for transfer in canonical if not transfer.noted]
    gone = [transfer for transfer in transfers if not transfer.canonical and not transfer.noted]

    options = counted(payment.options, canonical)
    chosen = _choose(payment, options)
    option = options[chosen]
    paid = option.received_units >= option.needed_units
    completing = _completing(option, canonical) if paid else None
    flags = _flags(payment, options, chosen, canonical, completing, bool(news), bool(gone))
    status = _status(payment, option, paid, canonical, sweeps, heads)

    changes: list[Change] = []
    state = replace(payment, options=options, option=chosen, flags=flags)

    def tell(event: EventType, **fields: object) -> None:
        nonlocal state
        state = replace(state, version=state.version + 1, **fields)  # type: ignore[arg-type]
        changes.append(Change(event, state))

    if gone or _rank(status) < _rank(payment.status):
        tell("payment.reverted", **_fall_back(state, status, completing))
    if "late" in flags and any(_is_late(payment, t) for t in news) and (_paid_late(payment, completing) or not paid):
        tell("payment.late")
    if news and not paid and payment.status != "cancelled":
        tell("payment.underpaid")
    if completing is not None:
        for step, event, field in _STEPS:
            if _rank(state.status) < _rank(step) <= _rank(status):
                fields: dict[str, object] = {"status": step, field: now}
                if step == "detected":
                    fields["detected_in_block"] = completing.block_number
                tell(event, **fields)
    if status == "expired" and state.status == "pending":
        tell("payment.expired", status="expired")
    if paid and payment.status != "cancelled":
        enough_before = sum(t.amount_units for t in _paying(option, canonical) if t.noted) >= option.needed_units
        if "overpaid" in flags - payment.flags or any(_is_extra(option, t, enough_before) for t in news):
            tell("payment.overpaid")
    return changes


def settle_by_hand(payment: PaymentState, now: datetime) -> Change:
    """A confirmed payment whose money an operator took elsewhere: settled as if its chains were not swept.

    `decide` keeps it so for as long as what paid it stands; a reorg that takes that back reverts it as any other.
    """
    options = tuple(replace(option, swept=False) for option in payment.options)
    state = replace(payment, status="settled", version=payment.version + 1, options=options, settled_at=now)
    return Change("payment.settled", state)


_STEPS: Final[tuple[tuple[Status, EventType, str], ...]] = (
    ("detected", "payment.detected", "detected_at"),
    ("confirmed", "payment.confirmed", "confirmed_at"),
    ("settled", "payment.settled", "settled_at"),
)


def _rank(status: Status) -> int:
    """How far a payment has come; the same for all statuses that are not paid."""
    return PAID.index(status) + 1 if status in PAID else 0


def counted(options: Sequence[OptionState], canonical: Sequence[TransferState]) -> tuple[OptionState, ...]:
    """The options with what these canonical transfers brought them."""
    return tuple(replace(option, received_units=_received_units(option, canonical)) for option in options)


def _received_units(option: OptionState, transfers: Sequence[TransferState]) -> int:
    """The sum, as far as it can be stored: a token that invents amounts must not stop the block for all others."""
    return min(sum(t.amount_units for t in _paying(option, transfers)), limits.MAX_UNITS)


def _paying(option: OptionState, transfers: Sequence[TransferState]) -> list[TransferState]:
    return [t for t in transfers if t.chain_id == option.chain_id and t.asset == option.asset]


def _choose(payment: PaymentState, options: Sequence[OptionState]) -> int:
    """The option paid to the highest fraction, the first on a tie; fixed while a paid payment is paid by it."""
    fixed = options[payment.option]
    if payment.status in PAID and fixed.received_units >= fixed.needed_units:
        return payment.option
    best = 0
    for index, option in enumerate(options):
        # received/amount compared without division; an option that is paid within its tolerance counts as whole.
        ahead = option.received_units * options[best].amount_units - options[best].received_units * option.amount_units
        if ahead > 0:
            best = index
    paid = [index for index, option in enumerate(options) if option.received_units >= option.needed_units]
    return best if not paid or best in paid else paid[0]


def _completing(option: OptionState, transfers: Sequence[TransferState]) -> TransferState:
    """The transfer with which the sum was reached, in chain order."""
    total = 0
    ordered = sorted(_paying(option, transfers), key=lambda t: (t.block_number, t.order))
    for transfer in ordered:
        total += transfer.amount_units
        if total >= option.needed_units:
            return transfer
    raise AssertionError("called for a paid option")


def _is_extra(option: OptionState, transfer: TransferState, enough_before: bool) -> bool:
    """Whether a transfer brought more than was needed, or something else.

    What reaches a payment that is paid already is told even when it only fills up a tolerance.
    """
    pays = (transfer.chain_id, transfer.asset) == (option.chain_id, option.asset)
    return enough_before or not pays or option.received_units > option.amount_units


def _is_late(payment: PaymentState, transfer: TransferState) -> bool:
    return payment.status == "cancelled" or transfer.block_time > payment.expires_at


def _paid_late(payment: PaymentState, completing: TransferState | None) -> bool:
    """Whether the sum was reached only after the time was up (by the block's timestamp)."""
    return completing is not None and _is_late(payment, completing)


def _flags(
    payment: PaymentState,
    options: Sequence[OptionState],
    chosen: int,
    canonical: Sequence[TransferState],
    completing: TransferState | None,
    has_news: bool,
    has_gone: bool,
) -> frozenset[Flag]:
    option = options[chosen]
    asked = {(each.chain_id, each.asset) for each in options}
    flags: set[Flag] = set()
    if "reorged" in payment.flags or has_gone:
        flags.add("reorged")
    if any((t.chain_id, t.asset) not in asked for t in canonical):
        flags.add("wrong_asset")
    if payment.status == "cancelled":
        if has_news or "late" in payment.flags:
            flags.add("late")
    elif _paid_late(payment, completing):
        flags.add("late")
    elif completing is None and any(_is_late(payment, t) for t in canonical):
        flags.add("late")
    if completing is None:
        if option.received_units > 0:
            flags.add("underpaid")
    elif option.received_units > option.amount_units or any(
        each.received_units > 0 for index, each in enumerate(options) if index != chosen
    ):
        flags.add("overpaid")
    return frozenset(flags)


def _status(
    payment: PaymentState,
    option: OptionState,
    paid: bool,
    canonical: Sequence[TransferState],
    sweeps: Sequence[Sweep],
    heads: Mapping[int, ChainHead],
) -> Status:
    if payment.status == "cancelled":
        return "cancelled"
    if not paid:
        if payment.status == "expired":
            return "expired"
        passed = passed_by_chain(heads)
        over = all(each.chain_id in passed and payment.expires_at <= passed[each.chain_id] for each in payment.options)
        return "expired" if over and payment.status == "pending" else "pending"
    head = heads.get(option.chain_id)
    sure = [t for t in _paying(option, canonical) if t.verified and _confirmed(payment, option, t, head)]
    if sum(t.amount_units for t in sure) < option.needed_units:
        return "detected"
    if option.swept:
        arrived = sum(s.amount_units for s in sweeps if (s.chain_id, s.asset) == (option.chain_id, option.asset))
        return "settled" if arrived >= option.needed_units else "confirmed"
    final = [t for t in sure if head is not None and t.block_number <= head.finalized_number]
    enough = sum(t.amount_units for t in final) >= option.needed_units
    return "settled" if enough or payment.status == "settled" else "confirmed"


def _confirmed(payment: PaymentState, option: OptionState, transfer: TransferState, head: ChainHead | None) -> bool:
    """A transfer that had its confirmations keeps them while it is canonical, whatever the cursor does."""
    if payment.status in ("confirmed", "settled"):
        return True
    return head is not None and head.number - transfer.block_number + 1 >= option.confirmations_required


def _fall_back(state: PaymentState, status: Status, completing: TransferState | None) -> dict[str, object]:
    """The fields that a payment loses with its status; what pays it now may stand in another block than before."""
    moved: dict[str, object] = {}
    if completing is not None and state.detected_in_block is not None:
        moved["detected_in_block"] = completing.block_number
    if _rank(status) >= _rank(state.status):
        return moved
    lost: dict[str, object] = {**moved, "status": status}
    for step, _, field in _STEPS:
        if _rank(step) > _rank(status):
            lost[field] = None
    if _rank(status) < 1:
        lost["detected_in_block"] = None
    return lost

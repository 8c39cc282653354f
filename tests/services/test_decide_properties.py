"""decide() over arbitrary histories: blocks, forks, blocks that come back, sweeps, a cancelling merchant.

Each history is played as the scanner would: what a step learns is decided at once, the last state is stored and the
transfers are noted. After each decision the state is compared with what can be said without `decide`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from random import Random
from typing import Any, Literal

from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.limits import MAX_UNITS
from app.services.decide import (
    PAID,
    ChainHead,
    Change,
    OptionState,
    PaymentState,
    Sweep,
    TransferState,
    decide,
)

CHAINS = (1, 8453)
ASSETS = (bytes(20), b"\x01" * 20)
WRONG = b"\x02" * 20
T0 = datetime(2026, 11, 20, 12, tzinfo=UTC)
BLOCK_S = 12
EXPIRES = T0 + timedelta(seconds=8 * BLOCK_S)
FINALITY_BLOCKS = 6

units = st.one_of(st.integers(1, 12), st.integers(2**256 - 4, 2**256 - 1))


@st.composite
def options(draw: st.DrawFn) -> OptionState:
    amount = draw(units)
    return OptionState(
        chain_id=draw(st.sampled_from(CHAINS)),
        asset=draw(st.sampled_from(ASSETS)),
        amount_units=amount,
        tolerance_units=draw(st.integers(0, min(amount - 1, 4))),
        confirmations_required=draw(st.integers(1, 5)),
        received_units=0,
        swept=draw(st.booleans()),
    )


payments = st.lists(options(), min_size=1, max_size=3, unique_by=lambda each: (each.chain_id, each.asset)).map(
    lambda chosen: PaymentState("pending", frozenset(), 1, tuple(chosen), 0, EXPIRES)
)


HUGE = PaymentState(
    "pending", frozenset(), 1, (OptionState(1, ASSETS[0], MAX_UNITS - 3, 0, 1, 0, swept=False),), 0, EXPIRES
)

Part = Literal["whole", "half", "one", "wrong"]


@dataclass(frozen=True)
class Block:
    """The next blocks of an option's chain; the first holds transfers of the option's asset, or a wrong one.

    `back`: the block that was orphaned at this height comes back instead.
    """

    option: int
    parts: tuple[Part, ...] = ()
    count: int = 1
    verifies: bool = True
    back: bool = False


@dataclass(frozen=True)
class Fork:
    option: int
    depth: int


@dataclass(frozen=True)
class Idle:
    option: int


@dataclass(frozen=True)
class Swept:
    option: int
    part: Part


@dataclass(frozen=True)
class Cancel:
    pass


Act = Block | Fork | Idle | Swept | Cancel

indexes = st.integers(0, 2)
parts: st.SearchStrategy[Part] = st.sampled_from(("whole", "half", "one", "wrong"))
money = st.builds(Block, indexes, st.lists(parts, min_size=1, max_size=2).map(tuple), st.integers(1, 3), st.booleans())
acts: st.SearchStrategy[Act] = st.one_of(
    money,
    money,
    st.builds(Block, indexes, count=st.integers(1, 5)),
    st.builds(Block, indexes, count=st.integers(1, 5)),
    st.builds(Block, indexes, back=st.just(True)),
    st.builds(Fork, indexes, st.integers(1, FINALITY_BLOCKS)),
    st.builds(Fork, indexes, st.integers(1, FINALITY_BLOCKS)),
    st.builds(Idle, indexes),
    st.builds(Swept, indexes, parts),
)
short = st.lists(acts, max_size=25)
histories = st.one_of(
    short,
    short,
    short,
    st.builds(lambda before, after: [*before, Cancel(), *after], st.lists(acts, max_size=4), short),
)


@dataclass
class World:
    """One payment and two chains, kept as the scanner and the ledger keep them."""

    payment: PaymentState
    transfers: list[TransferState] = field(default_factory=list)
    heads: dict[int, ChainHead] = field(
        default_factory=lambda: {chain_id: ChainHead(1, T0, 0, False) for chain_id in CHAINS}
    )
    highest: dict[int, int] = field(default_factory=lambda: dict.fromkeys(CHAINS, 1))
    sweeps: list[Sweep] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def play(self, act: Act) -> list[Change]:
        if isinstance(act, Cancel):
            if self.payment.status == "pending":
                self.payment = replace(self.payment, status="cancelled", version=self.payment.version + 1)
                self.changes.append(Change("payment.cancelled", self.payment))
            return []
        option = self.payment.options[act.option % len(self.payment.options)]
        match act:
            case Block():
                self._mine(act, option)
            case Fork():
                self._fork(option.chain_id, act.depth)
            case Idle():
                head = self.heads[option.chain_id]
                self.heads[option.chain_id] = replace(head, caught_up_at=EXPIRES + timedelta(minutes=5))
            case Swept():
                self.sweeps.append(Sweep(option.chain_id, option.asset, units_of(act.part, option)))
        return self.decide()

    def decide(self) -> list[Change]:
        changes = self.decision()
        if changes:
            self.payment = changes[-1].state
        self.transfers = [replace(each, noted=True) for each in self.transfers]
        self.changes += changes
        return changes

    def decision(self, transfers: Sequence[TransferState] | None = None) -> list[Change]:
        return decide(self.payment, self.transfers if transfers is None else transfers, self.sweeps, self.heads, T0)

    def _mine(self, act: Block, option: OptionState) -> None:
        chain_id = option.chain_id
        number = self.heads[chain_id].number + 1
        self._set_head(chain_id, number + act.count - 1)
        if act.back:
            self.transfers = [
                replace(each, canonical=True, verified=False, noted=False)
                if not each.canonical and (each.chain_id, each.block_number) == (chain_id, number)
                else each
                for each in self.transfers
            ]
        for place, part in enumerate(act.parts):
            asset = WRONG if part == "wrong" else option.asset
            amount = units_of(part, option)
            order = (0, place)
            self.transfers.append(
                TransferState(chain_id, asset, amount, number, order, time_of(number), True, False, False)
            )
        if act.verifies:  # the scanner reads the receipts of those that have their confirmations, and of no others
            self.transfers = [
                replace(each, verified=each.verified or self._has_confirmations(each)) for each in self.transfers
            ]

    def _fork(self, chain_id: int, depth: int) -> None:
        head = self.heads[chain_id]
        ancestor = max(head.number - depth, head.finalized_number, 1)
        self._set_head(chain_id, ancestor)
        self.transfers = [
            replace(each, canonical=False, verified=False, noted=False)
            if each.canonical and each.chain_id == chain_id and each.block_number > ancestor
            else each
            for each in self.transfers
        ]

    def _set_head(self, chain_id: int, number: int) -> None:
        self.highest[chain_id] = max(self.highest[chain_id], number)
        finalized = max(self.heads[chain_id].finalized_number, number - FINALITY_BLOCKS)
        self.heads[chain_id] = ChainHead(number, time_of(number), finalized, number < self.highest[chain_id])

    def _has_confirmations(self, each: TransferState) -> bool:
        return each.canonical and any(
            (option.chain_id, option.asset) == (each.chain_id, each.asset)
            and self.confirmations(each) >= option.confirmations_required
            for option in self.payment.options
        )

    def confirmations(self, each: TransferState) -> int:
        return self.heads[each.chain_id].number - each.block_number + 1

    def received(self, option: OptionState) -> int:
        return min(sum(each.amount_units for each in self.paying(option)), MAX_UNITS)

    def paying(self, option: OptionState) -> list[TransferState]:
        pair = (option.chain_id, option.asset)
        return [each for each in self.transfers if each.canonical and (each.chain_id, each.asset) == pair]


def units_of(part: Part, option: OptionState) -> int:
    return {"whole": option.amount_units, "half": max(option.amount_units // 2, 1)}.get(part, 1)


def time_of(number: int) -> datetime:
    return T0 + timedelta(seconds=number * BLOCK_S)


def played(payment: PaymentState, history: Iterable[Act]) -> World:
    world = World(payment)
    for act in history:
        world.play(act)
    return world


@given(payments, histories)
def test_deciding_again_changes_nothing(payment: PaymentState, history: list[Act]) -> None:
    world = World(payment)
    for act in history:
        world.play(act)
        assert world.decision() == []


@given(payments, histories)
def test_every_change_has_the_next_version(payment: PaymentState, history: list[Act]) -> None:
    world = played(payment, history)
    assert [change.state.version for change in world.changes] == list(range(2, 2 + len(world.changes)))
    assert world.payment.version == 1 + len(world.changes)


@example(HUGE, [Block(0, ("whole", "whole"), 1, verifies=False, back=False)])  # more than a column holds
@given(payments, histories)
def test_a_payment_counts_as_paid_exactly_when_the_canonical_chain_holds_enough(
    payment: PaymentState, history: list[Act]
) -> None:
    world = World(payment)
    for act in history:
        world.play(act)
        enough = any(world.received(each) >= each.needed_units for each in payment.options)
        assert (world.payment.status in PAID) == (enough and world.payment.status != "cancelled")
        assert [each.received_units for each in world.payment.options] == [
            world.received(each) for each in payment.options
        ]


@given(payments, histories)
def test_nothing_is_confirmed_without_the_confirmations_and_the_receipts(
    payment: PaymentState, history: list[Act]
) -> None:
    world = World(payment)
    for act in history:
        for change in world.play(act):
            if change.type in ("payment.confirmed", "payment.settled"):
                option = change.state.options[change.state.option]
                sure = [each for each in world.paying(option) if each.verified]
                assert sum(each.amount_units for each in sure) >= option.needed_units
            if change.type == "payment.confirmed":
                confirmed = [each for each in sure if world.confirmations(each) >= option.confirmations_required]
                assert sum(each.amount_units for each in confirmed) >= option.needed_units


@given(payments, histories)
def test_watching_only_nothing_is_settled_before_it_is_final(payment: PaymentState, history: list[Act]) -> None:
    world = World(payment)
    for act in history:
        for change in world.play(act):
            option = change.state.options[change.state.option]
            if change.type == "payment.settled" and option.swept:
                swept = [
                    each for each in world.sweeps if (each.chain_id, each.asset) == (option.chain_id, option.asset)
                ]
                assert sum(each.amount_units for each in swept) >= option.needed_units
            elif change.type == "payment.settled":
                final_number = world.heads[option.chain_id].finalized_number
                final = [each for each in world.paying(option) if each.block_number <= final_number]
                assert sum(each.amount_units for each in final) >= option.needed_units


@given(payments, histories, st.randoms(use_true_random=False))
def test_the_order_in_which_transfers_are_listed_does_not_matter(
    payment: PaymentState, history: list[Act], random: Random
) -> None:
    world = ShuffledWorld(payment)
    world.random = random
    for act in history:
        world.play(act)


class ShuffledWorld(World):
    random: Random

    def decide(self) -> list[Change]:
        shuffled = self.random.sample(self.transfers, len(self.transfers))
        expected = self.decision(shuffled)
        changes = super().decide()
        assert changes == expected
        return changes


@given(payments, histories)
def test_orphaning_everything_returns_to_unpaid(payment: PaymentState, history: list[Act]) -> None:
    world = played(payment, history)
    was_paid = world.payment.status in PAID
    had_money = any(each.canonical for each in world.transfers)
    world.transfers = [
        replace(each, canonical=False, verified=False, noted=each.noted and not each.canonical)
        for each in world.transfers
    ]
    world.heads = {chain_id: replace(head, regaining=True) for chain_id, head in world.heads.items()}
    changes = world.decide()
    assert [change.type for change in changes] == (["payment.reverted"] if had_money else [])
    assert world.payment.status == "pending" if was_paid else world.payment.status not in PAID
    assert all(option.received_units == 0 for option in world.payment.options)
    assert world.payment.flags.isdisjoint({"underpaid", "overpaid", "wrong_asset"})
    moments = (world.payment.detected_at, world.payment.confirmed_at, world.payment.settled_at)
    assert (*moments, world.payment.detected_in_block) == (None, None, None, None)
    assert not had_money or "reorged" in world.payment.flags


@given(payments, histories)
def test_the_option_shown_is_the_one_paid_to_the_highest_fraction_and_fixed_once_detected(
    payment: PaymentState, history: list[Act]
) -> None:
    world = World(payment)
    for act in history:
        before = world.payment
        if not world.play(act):
            continue
        after = world.payment
        paid = [at for at, each in enumerate(after.options) if each.received_units >= each.needed_units]
        fractions = [Fraction(each.received_units, each.amount_units) for each in after.options]
        if before.status in PAID and before.option in paid:
            assert after.option == before.option
        elif not paid or (best := fractions.index(max(fractions))) in paid:
            assert after.option == fractions.index(max(fractions))
        else:
            assert after.option in paid, best


@given(payments, histories)
def test_the_story_that_the_events_tell_fits_the_states(payment: PaymentState, history: list[Act]) -> None:
    """A receiver that only follows the events sees each status begin with its own event, and end with one."""
    world = played(payment, history)
    told = {"detected": "payment.detected", "confirmed": "payment.confirmed", "settled": "payment.settled"}
    status = "pending"
    for change in world.changes:
        new = change.state.status
        if new != status:
            allowed = {told.get(new, f"payment.{new}"), "payment.reverted"}
            assert change.type in allowed, (status, change)
        if change.type == told.get(new):
            assert new != status, "told twice"
        status = new
    flags = [change.state.flags for change in world.changes]
    assert all("reorged" in later for earlier, later in pairwise(flags) if "reorged" in earlier)
    types = {change.type for change in world.changes}
    if world.payment.status != "cancelled":
        assert "overpaid" not in world.payment.flags or "payment.overpaid" in types
    assert "late" not in world.payment.flags or "payment.late" in types


@given(payments, histories)
def test_the_underpaid_and_overpaid_flags_say_what_the_amounts_say(payment: PaymentState, history: list[Act]) -> None:
    world = played(payment, history)
    shown = world.payment.options[world.payment.option]
    others = sum(each.received_units for at, each in enumerate(world.payment.options) if at != world.payment.option)
    paid = shown.received_units >= shown.needed_units
    assert ("underpaid" in world.payment.flags) == (0 < shown.received_units < shown.needed_units)
    assert ("overpaid" in world.payment.flags) == (paid and (shown.received_units > shown.amount_units or others > 0))


@given(payments, histories)
def test_money_that_comes_or_goes_is_always_told(payment: PaymentState, history: list[Act]) -> None:
    world = World(payment)
    for act in history:
        before = [each.canonical for each in world.transfers]
        changes = world.play(act)
        assert changes or [each.canonical for each in world.transfers] == before


@settings(max_examples=30)
@given(payments, histories)
def test_no_float_is_anywhere(payment: PaymentState, history: list[Act]) -> None:
    for change in played(payment, history).changes:
        for value in values_of(change):
            assert not isinstance(value, float)


def values_of(value: Any) -> Iterable[Any]:
    if is_dataclass(value):
        for each in fields(value):
            yield from values_of(getattr(value, each.name))
    elif isinstance(value, tuple | frozenset):
        for item in value:
            yield from values_of(item)
    else:
        yield value

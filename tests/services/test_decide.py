"""decide(): every rule of DESIGN section 5 as a row of a table. The properties are in test_decide_properties.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.core import limits
from app.services.decide import (
    ChainHead,
    Change,
    OptionState,
    PaymentState,
    Sweep,
    TransferState,
    decide,
)

T0 = datetime(2026, 11, 20, 12, tzinfo=UTC)
EXPIRES = T0 + timedelta(hours=1)
NOW = T0 + timedelta(days=1)
LATE = EXPIRES + timedelta(seconds=1)
GRACE = timedelta(seconds=limits.IDLE_GRACE_S)
ETHER, USDC, DAI = bytes(20), b"\x01" * 20, b"\x02" * 20
A, B, ELSEWHERE = 1, 8453, 10


def option(amount: int = 25, **changed: Any) -> OptionState:
    """25 USDC on chain A with three confirmations, to be swept."""
    values: dict[str, Any] = {
        "chain_id": A,
        "asset": USDC,
        "amount_units": amount,
        "tolerance_units": 0,
        "confirmations_required": 3,
        "received_units": 0,
        "swept": True,
    }
    return OptionState(**(values | changed))


def payment(*options: OptionState, **changed: Any) -> PaymentState:
    values: dict[str, Any] = {
        "status": "pending",
        "flags": frozenset(),
        "version": 1,
        "options": options or (option(),),
        "option": 0,
        "expires_at": EXPIRES,
    }
    return PaymentState(**(values | changed))


def detected(*options: OptionState, **changed: Any) -> PaymentState:
    paid = options or (option(received_units=25),)
    return payment(
        *paid, **({"status": "detected", "version": 2, "detected_in_block": 10, "detected_at": T0} | changed)
    )


def confirmed(*options: OptionState, **changed: Any) -> PaymentState:
    return detected(*options, **({"status": "confirmed", "version": 3, "confirmed_at": T0} | changed))


def settled(*options: OptionState, **changed: Any) -> PaymentState:
    return confirmed(*options, **({"status": "settled", "version": 4, "settled_at": T0} | changed))


def transfer(units: int = 25, block: int = 10, **changed: Any) -> TransferState:
    """News of USDC on chain A in `block`, mined well in time."""
    values: dict[str, Any] = {
        "chain_id": A,
        "asset": USDC,
        "amount_units": units,
        "block_number": block,
        "order": (0, 0),
        "block_time": T0 + timedelta(seconds=block),
        "canonical": True,
        "verified": False,
        "noted": False,
    }
    return TransferState(**(values | changed))


def known(units: int = 25, block: int = 10, **changed: Any) -> TransferState:
    return transfer(units, block, **({"noted": True} | changed))


def sure(units: int = 25, block: int = 10, **changed: Any) -> TransferState:
    return known(units, block, **({"verified": True} | changed))


def orphaned(units: int = 25, block: int = 10, **changed: Any) -> TransferState:
    return transfer(units, block, **({"canonical": False} | changed))


def head(number: int = 10, **changed: Any) -> ChainHead:
    values: dict[str, Any] = {"number": number, "time": T0, "finalized_number": 0, "regaining": False}
    return ChainHead(**(values | changed))


def at(number: int = 10, **changed: Any) -> dict[int, ChainHead]:
    return {A: head(number, **changed)}


@dataclass(frozen=True)
class Case:
    """What is known, and what must follow: event types without their prefix, then the state after the last one."""

    name: str
    payment: PaymentState
    transfers: Sequence[TransferState] = ()
    heads: Mapping[int, ChainHead] = field(default_factory=at)
    sweeps: Sequence[Sweep] = ()
    events: str = ""
    status: str | None = None
    flags: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


def check(case: Case) -> list[Change]:
    changes = decide(case.payment, case.transfers, case.sweeps, case.heads, NOW)
    assert " ".join(change.type.removeprefix("payment.") for change in changes) == case.events
    versions = [change.state.version for change in changes]
    assert versions == list(range(case.payment.version + 1, case.payment.version + 1 + len(changes)))
    if changes:
        last = changes[-1].state
        assert last.status == (case.status or case.payment.status)
        assert sorted(last.flags) == case.flags.split()
        assert {name: getattr(last, name) for name in case.fields} == dict(case.fields)
    return changes


def params(*cases: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


@params(
    Case("nothing has happened", payment()),
    Case(
        "the whole amount is detected",
        payment(),
        [transfer()],
        events="detected",
        status="detected",
        fields={"detected_in_block": 10, "detected_at": NOW, "confirmed_at": None, "settled_at": None},
    ),
    Case(
        "and told once only",
        detected(),
        [known()],
    ),
    Case(
        "a part is told and keeps the payment pending",
        payment(),
        [transfer(24)],
        events="underpaid",
        status="pending",
        flags="underpaid",
        fields={"detected_in_block": None, "detected_at": None},
    ),
    Case(
        "another part that is still not enough is told again",
        payment(option(received_units=10), flags=frozenset({"underpaid"})),
        [known(10), transfer(10, 11)],
        at(11),
        events="underpaid",
        status="pending",
        flags="underpaid",
    ),
    Case(
        "the last part completes it, and its block is the one that counts",
        payment(option(received_units=24), flags=frozenset({"underpaid"})),
        [known(24), transfer(1, 12)],
        at(12),
        events="detected",
        status="detected",
        fields={"detected_in_block": 12},
    ),
    Case(
        "two parts in one block complete it",
        payment(),
        [transfer(12), transfer(13, order=(0, 1))],
        events="detected",
        status="detected",
    ),
    Case(
        "too much is detected and told as overpaid",
        payment(),
        [transfer(26)],
        events="detected overpaid",
        status="detected",
        flags="overpaid",
    ),
    Case(
        "more money to a detected payment is overpaid",
        detected(),
        [known(), transfer(1, 11)],
        at(11),
        events="overpaid",
        flags="overpaid",
    ),
    Case(
        "more money to a settled payment is overpaid and changes no status",
        settled(),
        [sure(), transfer(1, 90)],
        at(90),
        [Sweep(A, USDC, 25)],
        events="overpaid",
        flags="overpaid",
    ),
    Case(
        "a single unit of 256 bits is not lost",
        payment(option(2**256 - 1)),
        [transfer(2**256 - 2), transfer(1, order=(0, 1))],
        events="detected",
        status="detected",
    ),
    Case(
        "nor is one that is missing",
        payment(option(2**256 - 1)),
        [transfer(2**256 - 2)],
        events="underpaid",
        status="pending",
        flags="underpaid",
    ),
)
def test_money_that_arrives(case: Case) -> None:
    check(case)


WITH_TOLERANCE = option(100, tolerance_units=5)


@params(
    Case("just enough", payment(WITH_TOLERANCE), [transfer(95)], events="detected", status="detected"),
    Case(
        "one unit under it is not",
        payment(WITH_TOLERANCE),
        [transfer(94)],
        events="underpaid",
        status="pending",
        flags="underpaid",
    ),
    Case(
        "the amount in full is not overpaid",
        payment(WITH_TOLERANCE),
        [transfer(100)],
        events="detected",
        status="detected",
    ),
    Case(
        "it is no allowance for more",
        payment(WITH_TOLERANCE),
        [transfer(101)],
        events="detected overpaid",
        status="detected",
        flags="overpaid",
    ),
    Case(
        "it is enough for the confirmations too",
        detected(replace(WITH_TOLERANCE, received_units=95)),
        [sure(95)],
        at(12),
        events="confirmed",
        status="confirmed",
    ),
    Case(
        "it is enough for the treasury too",
        confirmed(replace(WITH_TOLERANCE, received_units=95)),
        [sure(95)],
        at(20),
        [Sweep(A, USDC, 95)],
        events="settled",
        status="settled",
    ),
)
def test_a_tolerance_lowers_what_is_needed(case: Case) -> None:
    check(case)


def test_money_within_the_tolerance_after_detection_is_told_and_counted() -> None:
    """Otherwise the amount received would stay at what it was, and no event would know of the transfer."""
    paid = detected(replace(WITH_TOLERANCE, received_units=95))
    [change] = check(
        Case("", paid, [known(95), transfer(5, 11)], at(11), events="overpaid", status="detected"),
    )
    assert change.state.options[0].received_units == 100


@params(
    Case("two of three are not enough", detected(), [known()], at(11)),
    Case("three of three without the receipt are not", detected(), [known()], at(12)),
    Case("the receipt alone is not", detected(), [sure()], at(11)),
    Case(
        "three of three, and the receipt read again",
        detected(),
        [sure()],
        at(12),
        events="confirmed",
        status="confirmed",
        fields={"confirmed_at": NOW, "detected_at": T0, "settled_at": None},
    ),
    Case(
        "a transfer in the head block has one",
        payment(option(confirmations_required=1)),
        [transfer(verified=True)],
        at(10),
        events="detected confirmed",
        status="confirmed",
        fields={"detected_at": NOW, "confirmed_at": NOW},
    ),
    Case(
        "catching up detects and confirms at once, in order",
        payment(),
        [transfer(verified=True)],
        at(500),
        events="detected confirmed",
        status="confirmed",
    ),
    Case(
        "the youngest of the needed parts decides",
        detected(option(received_units=25)),
        [sure(20), sure(5, 11)],
        at(12),
    ),
    Case(
        "each of the needed parts has them",
        detected(option(received_units=25)),
        [sure(20), sure(5, 11)],
        at(13),
        events="confirmed",
        status="confirmed",
    ),
    Case(
        "a part beyond the amount need not have them",
        detected(option(received_units=30), flags=frozenset({"overpaid"})),
        [sure(25), known(5, 12)],
        at(12),
        events="confirmed",
        status="confirmed",
        flags="overpaid",
    ),
    Case(
        "money in another asset never counts towards them",
        detected(option(received_units=25), flags=frozenset({"wrong_asset"})),
        [known(25), sure(25, asset=DAI)],
        at(50),
    ),
    Case("without a cursor of the chain there are none", detected(), [sure()], {}),
    Case("another chain's cursor gives none", detected(), [sure()], {B: head(500)}),
)
def test_confirmations(case: Case) -> None:
    check(case)


UNSWEPT = option(received_units=25, swept=False)


@params(
    Case(
        "what was swept in full is settled", confirmed(), [sure()], at(20), [Sweep(A, USDC, 25)], "settled", "settled"
    ),
    Case("in parts too", confirmed(), [sure()], at(20), [Sweep(A, USDC, 20), Sweep(A, USDC, 5)], "settled", "settled"),
    Case("a part of it is not", confirmed(), [sure()], at(20), [Sweep(A, USDC, 24)]),
    Case("a sweep of another asset is not", confirmed(), [sure()], at(20), [Sweep(A, DAI, 25)]),
    Case("a sweep of another chain is not", confirmed(), [sure()], at(20), [Sweep(B, USDC, 25)]),
    Case("with sweeping configured, finality is not", confirmed(), [sure()], at(500, finalized_number=499)),
    Case(
        "a sweep that a reorg undid leaves it confirmed, and it is told",
        settled(),
        [sure()],
        at(20),
        [],
        "reverted",
        "confirmed",
        fields={"settled_at": None, "confirmed_at": T0, "detected_at": T0},
    ),
    Case(
        "watching only, final transfers are settled",
        confirmed(UNSWEPT),
        [sure()],
        at(20, finalized_number=10),
        (),
        "settled",
        "settled",
        fields={"settled_at": NOW},
    ),
    Case("watching only, one block short of final is not", confirmed(UNSWEPT), [sure()], at(20, finalized_number=9)),
    Case(
        "watching only, every needed part must be final",
        confirmed(UNSWEPT),
        [sure(20), sure(5, 12)],
        at(20, finalized_number=11),
    ),
    Case(
        "watching only, a block may bring everything at once",
        payment(replace(UNSWEPT, received_units=0)),
        [transfer(verified=True)],
        at(80, finalized_number=16),
        (),
        "detected confirmed settled",
        "settled",
    ),
    Case(
        "watching only, a transfer that is final but not confirmed waits",
        detected(replace(UNSWEPT, confirmations_required=100)),
        [sure()],
        at(80, finalized_number=79),
    ),
    Case("watching only, it stays settled", settled(UNSWEPT), [sure()], at(20, finalized_number=9)),
)
def test_settlement(case: Case) -> None:
    check(case)


@params(
    Case("time is not up", payment(), heads=at(time=EXPIRES - timedelta(seconds=1))),
    Case("a block of the very second may still have siblings", payment(), heads=at(time=EXPIRES)),
    Case(
        "the cursor's block is past it",
        payment(),
        heads=at(time=LATE),
        events="expired",
        status="expired",
    ),
    Case(
        "an idle chain is past it",
        payment(),
        heads=at(caught_up_at=EXPIRES + GRACE),
        events="expired",
        status="expired",
    ),
    Case(
        "a head read that began too early proves nothing",
        payment(),
        heads=at(caught_up_at=EXPIRES + GRACE - timedelta(microseconds=1)),
    ),
    Case("our own clock proves nothing", payment(), heads=at(time=T0)),
    Case("nothing expires without a cursor", payment(), heads={}),
    Case("nothing expires while the cursor regains its height", payment(), heads=at(time=LATE, regaining=True)),
    Case(
        "not on an idle chain either",
        payment(),
        heads=at(caught_up_at=EXPIRES + GRACE, regaining=True),
    ),
    Case(
        "all chains are past it, each in its own way",
        payment(option(), option(chain_id=B)),
        heads={A: head(time=LATE), B: head(caught_up_at=EXPIRES + GRACE)},
        events="expired",
        status="expired",
    ),
    Case(
        "one of two chains is not past it",
        payment(option(), option(chain_id=B)),
        heads={A: head(time=LATE), B: head(time=EXPIRES)},
    ),
    Case(
        "one of two chains regains its height",
        payment(option(), option(chain_id=B)),
        heads={A: head(time=LATE), B: head(time=LATE, regaining=True)},
    ),
    Case(
        "one of two chains has no cursor",
        payment(option(), option(chain_id=B)),
        heads={A: head(time=LATE)},
    ),
    Case(
        "a chain that is no option does not hold it open",
        payment(),
        heads={A: head(time=LATE), B: head(time=T0)},
        events="expired",
        status="expired",
    ),
    Case(
        "a part does not keep it open",
        payment(option(received_units=24), flags=frozenset({"underpaid"})),
        [known(24)],
        at(time=LATE),
        events="expired",
        status="expired",
        flags="underpaid",
    ),
    Case(
        "the last part and the end in one step: the part is told first",
        payment(),
        [transfer(24)],
        at(time=LATE),
        events="underpaid expired",
        status="expired",
        flags="underpaid",
    ),
    Case(
        "a payment found only after an outage is paid, not expired",
        payment(),
        [transfer()],
        at(time=LATE),
        events="detected",
        status="detected",
    ),
    Case("a detected payment never expires", detected(), [known()], at(time=LATE)),
    Case("nor does a cancelled one", payment(status="cancelled"), heads=at(time=LATE)),
    Case("and it expires once", payment(status="expired"), heads=at(time=LATE)),
)
def test_expiry(case: Case) -> None:
    check(case)


@params(
    Case(
        "a full payment after the end moves an expired one on",
        payment(status="expired"),
        [transfer(block_time=LATE)],
        at(time=LATE),
        events="late detected",
        status="detected",
        flags="late",
    ),
    Case(
        "a full payment that came in time, seen after we expired it, is not late",
        payment(status="expired"),
        [transfer(block_time=EXPIRES)],
        at(time=LATE),
        events="detected",
        status="detected",
    ),
    Case(
        "the last second is in time",
        payment(),
        [transfer(block_time=EXPIRES)],
        events="detected",
        status="detected",
    ),
    Case(
        "the block's time judges, although we had not expired it yet",
        payment(),
        [transfer(block_time=LATE)],
        events="late detected",
        status="detected",
        flags="late",
    ),
    Case(
        "a late part is told as late and as too little",
        payment(status="expired"),
        [transfer(24, block_time=LATE)],
        at(time=LATE),
        events="late underpaid",
        status="expired",
        flags="late underpaid",
    ),
    Case(
        "a part in time and the rest late is late",
        payment(option(received_units=24), status="expired", flags=frozenset({"underpaid"})),
        [known(24), transfer(1, 11, block_time=LATE)],
        at(time=LATE),
        events="late detected",
        status="detected",
        flags="late",
    ),
    Case(
        "more money after the end does not make a payment late that was in time",
        confirmed(),
        [sure(), transfer(1, 90, block_time=LATE)],
        at(90, time=LATE),
        events="overpaid",
        flags="overpaid",
    ),
    Case(
        "a late payment confirms like any other",
        detected(flags=frozenset({"late"})),
        [sure(block_time=LATE)],
        at(12, time=LATE),
        events="confirmed",
        status="confirmed",
        flags="late",
    ),
    Case(
        "a late payment that is gone again is late no more, but its end has come",
        detected(flags=frozenset({"late"})),
        [orphaned(block_time=LATE)],
        at(9, time=LATE, regaining=True),
        events="reverted",
        status="pending",
        flags="reorged",
    ),
)
def test_late_is_judged_by_the_time_of_the_block(case: Case) -> None:
    check(case)


CANCELLED = payment(status="cancelled", version=2)


@params(
    Case("nothing follows", CANCELLED),
    Case("money for it is late, and its status stays", CANCELLED, [transfer()], events="late", flags="late"),
    Case("a part too", CANCELLED, [transfer(24)], events="late", flags="late underpaid"),
    Case("too much too", CANCELLED, [transfer(26)], events="late", flags="late overpaid"),
    Case("another asset too", CANCELLED, [transfer(asset=DAI)], events="late", flags="late wrong_asset"),
    Case("told once", replace(CANCELLED, flags=frozenset({"late"})), [known()], at(50)),
    Case(
        "it never confirms or settles",
        replace(CANCELLED, options=(replace(UNSWEPT, received_units=25),), flags=frozenset({"late"})),
        [sure()],
        at(500, finalized_number=499),
    ),
    Case(
        "a part from before is not news, and is not late",
        replace(CANCELLED, options=(option(received_units=5),), flags=frozenset({"underpaid"})),
        [known(5)],
    ),
    Case(
        "a reorg takes the money back, told",
        replace(CANCELLED, options=(option(received_units=25),), flags=frozenset({"late"})),
        [orphaned()],
        events="reverted",
        flags="late reorged",
    ),
)
def test_a_cancelled_payment(case: Case) -> None:
    check(case)


@params(
    Case(
        "another asset of the chain is told and counts nothing",
        payment(),
        [transfer(asset=DAI)],
        events="underpaid",
        status="pending",
        flags="wrong_asset",
        fields={"options": (option(),)},
    ),
    Case(
        "native coin for a token payment",
        payment(),
        [transfer(asset=ETHER)],
        events="underpaid",
        status="pending",
        flags="wrong_asset",
    ),
    Case(
        "the right asset on the wrong chain",
        payment(),
        [transfer(chain_id=ELSEWHERE)],
        events="underpaid",
        status="pending",
        flags="wrong_asset",
    ),
    Case(
        "it is told to a paid payment too",
        detected(),
        [known(), transfer(7, 11, asset=DAI)],
        at(11),
        events="overpaid",
        flags="wrong_asset",
    ),
    Case(
        "it does not complete a part",
        payment(option(received_units=24), flags=frozenset({"underpaid"})),
        [known(24), transfer(1, asset=DAI)],
        events="underpaid",
        status="pending",
        flags="underpaid wrong_asset",
    ),
    Case(
        "the flag goes when a reorg takes it",
        payment(flags=frozenset({"wrong_asset"})),
        [orphaned(asset=DAI)],
        events="reverted",
        status="pending",
        flags="reorged",
    ),
)
def test_the_wrong_asset(case: Case) -> None:
    check(case)


FIRST, SECOND = option(100), option(10, chain_id=B, asset=ETHER)
BOTH = {A: head(10), B: head(10)}


def on_b(units: int, block: int = 10, **changed: Any) -> TransferState:
    return transfer(units, block, **({"chain_id": B, "asset": ETHER} | changed))


@params(
    Case(
        "nothing paid: the first",
        payment(FIRST, SECOND),
        [transfer(1, asset=DAI)],
        BOTH,
        events="underpaid",
        status="pending",
        flags="wrong_asset",
        fields={"option": 0},
    ),
    Case(
        "the higher fraction, not the higher number of units",
        payment(FIRST, SECOND),
        [transfer(30), on_b(4)],
        BOTH,
        events="underpaid",
        status="pending",
        flags="underpaid",
        fields={"option": 1},
    ),
    Case(
        "the first on a tie",
        payment(FIRST, SECOND),
        [transfer(50), on_b(5)],
        BOTH,
        events="underpaid",
        status="pending",
        flags="underpaid",
        fields={"option": 0},
    ),
    Case(
        "halves of two options are no whole",
        payment(FIRST, SECOND),
        [transfer(99), on_b(9)],
        BOTH,
        events="underpaid",
        status="pending",
        flags="underpaid",
        fields={"option": 0},
    ),
    Case(
        "the one that is paid",
        payment(FIRST, SECOND),
        [on_b(10)],
        BOTH,
        events="detected",
        status="detected",
        fields={"option": 1, "detected_in_block": 10},
    ),
    Case(
        "the first that is fully paid, and what the other had received pays none of it",
        payment(replace(FIRST, received_units=99), SECOND, flags=frozenset({"underpaid"})),
        [known(99), on_b(9, 11), on_b(1, 12)],
        {A: head(12), B: head(12)},
        events="detected overpaid",
        status="detected",
        flags="overpaid",
        fields={"option": 1, "detected_in_block": 12},
    ),
    Case(
        "one that is paid within its tolerance beats a higher fraction that is not",
        payment(replace(FIRST, tolerance_units=20), SECOND),
        [transfer(80), on_b(9)],
        BOTH,
        events="detected overpaid",
        status="detected",
        flags="overpaid",
        fields={"option": 0},
    ),
    Case(
        "of two that are paid the higher fraction",
        payment(FIRST, SECOND),
        [transfer(100), on_b(11)],
        BOTH,
        events="detected overpaid",
        status="detected",
        flags="overpaid",
        fields={"option": 1},
    ),
    Case(
        "fixed once detected; later money in another is overpaid",
        detected(replace(FIRST, received_units=100), SECOND),
        [known(100), on_b(30, 11)],
        {A: head(11), B: head(11)},
        events="overpaid",
        flags="overpaid",
        fields={"option": 0},
    ),
    Case(
        "free again when a reorg takes the money of the chosen one",
        detected(replace(FIRST, received_units=100), replace(SECOND, received_units=5), flags=frozenset({"overpaid"})),
        [orphaned(100), on_b(5, noted=True)],
        {A: head(9, regaining=True), B: head(10)},
        events="reverted",
        status="pending",
        flags="reorged underpaid",
        fields={"option": 1},
    ),
    Case(
        "a reorg that leaves the other one paid moves over to it",
        confirmed(
            replace(FIRST, received_units=100), replace(SECOND, received_units=10), flags=frozenset({"overpaid"})
        ),
        [orphaned(100), on_b(10, 8, noted=True)],
        {A: head(9, regaining=True), B: head(10)},
        events="reverted",
        status="detected",
        flags="reorged",
        fields={"option": 1, "detected_in_block": 8},
    ),
    Case(
        "earlier money in another option makes the payment overpaid, which is told",
        payment(FIRST, replace(SECOND, received_units=5), option=1, flags=frozenset({"underpaid"})),
        [on_b(5, noted=True), transfer(100, 11)],
        {A: head(11), B: head(10)},
        events="detected overpaid",
        status="detected",
        flags="overpaid",
        fields={"option": 0},
    ),
    Case(
        "each option has its own confirmations",
        detected(FIRST, replace(SECOND, received_units=10, confirmations_required=1), option=1),
        [sure(10, chain_id=B, asset=ETHER)],
        {A: head(3), B: head(10)},
        events="confirmed",
        status="confirmed",
        fields={"option": 1},
    ),
)
def test_several_options(case: Case) -> None:
    check(case)


REORGED = frozenset({"reorged"})


@params(
    Case(
        "a detected payment falls back",
        detected(),
        [orphaned()],
        at(9, regaining=True),
        events="reverted",
        status="pending",
        flags="reorged",
        fields={"detected_in_block": None, "detected_at": None},
    ),
    Case(
        "a confirmed one too",
        confirmed(),
        [orphaned()],
        at(9, regaining=True),
        events="reverted",
        status="pending",
        flags="reorged",
        fields={"detected_in_block": None, "detected_at": None, "confirmed_at": None},
    ),
    Case(
        "a settled one too, when its own money is gone",
        settled(UNSWEPT),
        [orphaned()],
        at(9, regaining=True),
        events="reverted",
        status="pending",
        flags="reorged",
        fields={"detected_at": None, "confirmed_at": None, "settled_at": None},
    ),
    Case(
        "an expired one that was paid late is pending again, for now",
        detected(flags=frozenset({"late"})),
        [orphaned(block_time=LATE)],
        at(9, time=T0, regaining=True),
        events="reverted",
        status="pending",
        flags="reorged",
    ),
    Case("told once", payment(flags=REORGED), [orphaned(noted=True)], at(9, regaining=True)),
    Case(
        "a part of the money is gone",
        detected(),
        [known(20), orphaned(5, 11)],
        events="reverted",
        status="pending",
        flags="reorged underpaid",
    ),
    Case(
        "a part is gone of what was too little anyway",
        payment(option(received_units=20), flags=frozenset({"underpaid"})),
        [orphaned(20)],
        at(9, regaining=True),
        events="reverted",
        status="pending",
        flags="reorged",
    ),
    Case(
        "more than enough remains: told, and the status stays",
        confirmed(option(received_units=30), flags=frozenset({"overpaid"})),
        [sure(25), orphaned(5, 12)],
        at(12),
        events="reverted",
        status="confirmed",
        flags="reorged",
        fields={"confirmed_at": T0},
    ),
    Case(
        "enough remains, but not of what was confirmed",
        confirmed(option(received_units=50), flags=frozenset({"overpaid"})),
        [orphaned(25), known(25, 11)],
        at(12),
        events="reverted",
        status="detected",
        flags="reorged",
        fields={"confirmed_at": None, "detected_at": T0},
    ),
    Case(
        "mined again, it is detected again and stays reorged",
        payment(version=4, flags=REORGED),
        [orphaned(noted=True), transfer(block=12)],
        at(12),
        events="detected",
        status="detected",
        flags="reorged",
        fields={"detected_in_block": 12},
    ),
    Case(
        "gone and mined again in one step",
        confirmed(),
        [orphaned(), transfer(block=11)],
        at(12),
        events="reverted",
        status="detected",
        flags="reorged",
        fields={"detected_in_block": 11},
    ),
    Case(
        "and confirmed again",
        detected(flags=REORGED),
        [orphaned(block=8, noted=True), sure()],
        at(12),
        events="confirmed",
        status="confirmed",
        flags="reorged",
    ),
    Case(
        "a cursor that fell back takes no confirmation from a transfer that stays canonical",
        confirmed(),
        [sure()],
        at(10, regaining=True),
    ),
)
def test_a_reorg(case: Case) -> None:
    check(case)


def test_every_event_shows_the_payment_as_it_was_with_it() -> None:
    changes = check(
        Case(
            "",
            payment(replace(UNSWEPT, received_units=0)),
            [transfer(30, verified=True, block_time=LATE)],
            at(80, finalized_number=16, time=LATE),
            events="late detected confirmed settled overpaid",
            status="settled",
            flags="late overpaid",
        )
    )
    assert [change.state.status for change in changes] == ["pending", "detected", "confirmed", "settled", "settled"]
    assert [change.state.version for change in changes] == [2, 3, 4, 5, 6]
    assert [change.state.confirmed_at for change in changes] == [None, None, NOW, NOW, NOW]
    assert all(change.state.options[0].received_units == 30 for change in changes)


def test_the_completing_transfer_is_found_in_chain_order() -> None:
    """Three transfers of one block and of another; the sum is reached with the second of the first block."""
    transfers = [
        transfer(10, 12),
        transfer(15, 11, order=(3, 7), block_time=LATE),
        transfer(10, 11, order=(3, 2), block_time=LATE),
        transfer(10, 9),
    ]
    for given in (transfers, transfers[::-1]):
        [late, found, over] = decide(payment(), given, [], at(12), NOW)
        assert found.state.detected_in_block == 11
        assert (late.type, over.type) == ("payment.late", "payment.overpaid")

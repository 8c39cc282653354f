"""Rows that contradict each other. The rules are those that the services write by; nothing is mended here."""

from itertools import pairwise

from app.core import limits
from app.core.clock import utc_now
from app.core.evm import checksum
from app.db.models import ChainState
from app.db.repositories import chains, diagnosis, payments
from app.db.repositories.payments import PaymentRecord
from app.services.decide import PAID
from app.services.doctor.finding import Finding, Patient, failed, ok
from app.services.ledger import Audit, audit

_RESTORE = "paywatch restore of a good backup, or paywatch doctor --bundle FILE for whoever helps"


async def check_rows(patient: Patient) -> list[Finding]:
    """References to rows that are gone."""
    if not patient.context.db.is_sqlite:
        return [ok("orphan rows", "PostgreSQL enforces every foreign key")]
    async with patient.context.db.read() as session:
        orphans = await diagnosis.orphan_rows(session)
    if orphans:
        named = ", ".join(sorted({f"{table} without its {parent}" for table, parent in orphans}))
        return [failed("orphan rows", f"{len(orphans)} or more: {named}", _RESTORE)]
    return [ok("orphan rows", "none")]


async def check_payments(patient: Patient) -> list[Finding]:
    """States that cannot be, and amounts that are not the sum of their transfers."""
    context = patient.context
    wrong_states: list[str] = []
    wrong_amounts: list[tuple[str, str, int]] = []
    async with diagnosis.snapshot(context.db) as session:
        ids = await diagnosis.payments_to_audit(session)
        cursors = await chains.list_states(session)
        for start in range(0, len(ids), limits.PAGE_MAX):
            some = ids[start : start + limits.PAGE_MAX]
            told = await diagnosis.event_versions(session, some)
            for record in await payments.load(session, some):
                found = audit(context, record, cursors, utc_now())
                why = _impossible(record, found, told.get(record.payment.id, (0, 0)))
                if why is not None:
                    wrong_states.append(f"{record.payment.id} {why}")
                wrong_amounts += _amounts(record, found)
    return [_states_finding(wrong_states, len(ids)), _amounts_finding(wrong_amounts, len(ids))]


async def check_headers(patient: Patient) -> list[Finding]:
    """Whether each chain's kept headers reach down from its cursor without a gap, each the child of the one before."""
    found: list[Finding] = []
    async with diagnosis.snapshot(patient.context.db) as session:
        states = await chains.list_states(session)
        for chain in patient.chains:
            state = states.get(chain.chain_id)
            if state is None:
                continue  # `chain:` says it
            headers = await diagnosis.newest_headers(session, chain.chain_id)
            gap = _gap(state, [(row.number, row.hash, row.parent_hash) for row in headers])
            check = f"headers:{chain.name}"
            if gap is not None:
                number, what = gap
                found.append(failed(check, what, f"paywatch rescan --chain {chain.name} --from {number}"))
            else:
                found.append(ok(check, f"{len(headers)} in an unbroken line up to the cursor"))
    return found


def _gap(state: ChainState, headers: list[tuple[int, bytes, bytes]]) -> tuple[int, str] | None:
    """Where the line breaks, and how; `headers` from the highest down."""
    if not headers or headers[0][:2] != (state.last_scanned_block, state.last_scanned_hash):
        return (
            state.last_scanned_block,
            f"the header of the cursor, block {state.last_scanned_block}, is missing or another",
        )
    for (number, _, parent_hash), (below, hash_, _) in pairwise(headers):
        if below != number - 1:
            return below + 1, f"blocks {below + 1} to {number - 1} are missing between the kept headers"
        if parent_hash != hash_:
            return below, f"block {number} is not the child of the kept block {below}"
    return None


def _impossible(record: PaymentRecord, found: Audit, told: tuple[int, int]) -> str | None:
    """Why the payment cannot be in its state; None when it can."""
    row = record.payment
    if any(change.type == "payment.reverted" for change in found.changes):
        return f"is {row.status}, and its transfers and outflows do not bear that out"
    if told != (row.version, row.version):
        return f"is at version {row.version} with {told[0]} events up to version {told[1]}"
    rank = PAID.index(found.state.status) + 1 if found.state.status in PAID else 0
    times = (row.detected_at, row.confirmed_at, row.settled_at)
    if any(moment is None for moment in times[:rank]) or any(moment is not None for moment in times[rank:]):
        return f"is {row.status}, and its times say otherwise"
    return None


def _amounts(record: PaymentRecord, found: Audit) -> list[tuple[str, str, int]]:
    """(what is wrong, chain, block to read again from) of options that do not have what their transfers brought."""
    wrong = []
    for option, units in zip(record.options, found.received_units, strict=True):
        if option.received_units != units:
            token = record.tokens[option.chain_id, option.asset]
            what = f"{record.payment.id} has {option.received_units} {token.symbol} units, its transfers {units}"
            blocks = [each.block_number for each in record.transactions if each.chain_id == option.chain_id]
            wrong.append((f"{what} at {checksum(record.address)}", option.chain, min(blocks, default=0)))
    return wrong


def _states_finding(wrong: list[str], count: int) -> Finding:
    if not wrong:
        return ok("payment states", f"{count} payments looked at")
    named = "; ".join(wrong[: limits.HEALTH_NAMES])
    one = wrong[0].partition(" ")[0]
    return failed(
        "payment states", f"{len(wrong)} cannot be: {named}", f"paywatch payments show {one}; then {_RESTORE}"
    )


def _amounts_finding(wrong: list[tuple[str, str, int]], count: int) -> Finding:
    if not wrong:
        return ok("amounts", f"{count} payments add up")
    _, chain, block = wrong[0]
    named = "; ".join(each[0] for each in wrong[: limits.HEALTH_NAMES])
    remedy = f"paywatch reconcile --chain {chain}; paywatch rescan --chain {chain} --from {block}"
    return failed("amounts", f"{len(wrong)} do not add up: {named}", remedy)

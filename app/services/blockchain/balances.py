"""Native coin that shows only in balances: what an address holds beyond what was recorded (DESIGN section 4)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.balances import fetch_balances, fetch_history
from app.blockchain.blocks import BlockRun
from app.blockchain.errors import NodeError, PrunedError
from app.blockchain.headers import Header
from app.blockchain.rpc import Endpoint
from app.blockchain.transfers import ObservedTransfer
from app.core.chains import Chain
from app.core.evm import NATIVE_ASSET
from app.core.logger import get_logger
from app.db.models import Transaction
from app.db.repositories import addresses, outflows
from app.services.context import Context

log = get_logger(__name__)

POSITION = outflows.BALANCE
Holdings = dict[tuple[bytes, bytes], int]  # base units by (address, asset)


@dataclass(frozen=True, slots=True)
class Surpluses:
    """Transfers that only balances show, with their payments' ids, and the `holdings` that they are a surplus over.

    `rotated_address_id`: how far the rotation has come, None when it was not its turn.
    """

    transfers: Sequence[tuple[ObservedTransfer, str]] = ()
    rotated_address_id: int | None = None
    holdings: Holdings = field(default_factory=dict)


async def find_surpluses(
    context: Context, chain: Chain, endpoint: Endpoint, run: BlockRun, matched: Sequence[tuple[ObservedTransfer, str]]
) -> Surpluses:
    """What addresses hold at the end of `run` beyond what was recorded: those of all open payments, and the next few
    of all others in rotation.

    Where the node has no state of the run any more, nothing is found now: the first block that has state shows the
    same money. Raises NodeError.
    """
    turn = context.rotation.is_due(chain.chain_id)
    async with context.db.read() as session:
        owners = await addresses.open_addresses(session, chain.chain_id)
        rotated: int | None = None
        if turn:
            others, rotated = await addresses.rotate(session, chain.chain_id)
            owners |= others
        recorded = await outflows.holdings(session, chain.chain_id, owners, run.headers[-1].number)
    if not owners:
        return Surpluses(rotated_address_id=rotated)
    tip = run.headers[-1]
    try:
        balances = await fetch_balances(endpoint, owners, tip.hash)
    except PrunedError:
        log.warning("no state at this block; balances wait for the first block that has it", block=tip.number)
        return Surpluses()
    context.rotation.turned(chain.chain_id, turn)
    found: list[ObservedTransfer] = []
    for address, wei in balances.items():
        known = [t for t, _ in matched if t.asset == NATIVE_ASSET and t.recipient == address]
        surplus = wei - recorded.get((address, NATIVE_ASSET), 0) - sum(t.amount_units for t in known)
        if surplus > 0:  # money that left in this very run hides one until the next
            found += await _locate(endpoint, run, address, surplus, known)
    over = {(each.recipient, NATIVE_ASSET): recorded.get((each.recipient, NATIVE_ASSET), 0) for each in found}
    return Surpluses([(transfer, owners[transfer.recipient]) for transfer in found], rotated, over)


async def surpluses_hold(session: AsyncSession, chain: Chain, holdings: Holdings, upto: int) -> bool:
    """Whether what was recorded for the recipients of surpluses is still what it was; under the chain's lock.

    The cursor does not tell: a backup pass or a rescan credits blocks below it, and money would count twice.
    """
    if not holdings:
        return True
    now = await outflows.holdings(session, chain.chain_id, {address for address, _ in holdings}, upto)
    return all(now.get(key, 0) == units for key, units in holdings.items())


async def still_there(
    context: Context, chain: Chain, endpoint: Endpoint, rows: Sequence[Transaction], reached: Header
) -> set[bytes]:
    """Recipients of `balance` transfers whose balance at `reached` still covers all that was recorded.

    None of them where the node has no state of that block any more: a later block will tell. Raises NodeError.
    """
    recipients = {row.recipient for row in rows}
    if not recipients:
        return set()
    async with context.db.read() as session:
        recorded = await outflows.holdings(session, chain.chain_id, recipients, reached.number)
    try:
        balances = await fetch_balances(endpoint, recipients, reached.hash)
    except PrunedError:
        return set()
    return {address for address, wei in balances.items() if wei >= recorded.get((address, NATIVE_ASSET), 0)}


async def _locate(
    endpoint: Endpoint, run: BlockRun, address: bytes, surplus: int, known: Sequence[ObservedTransfer]
) -> list[ObservedTransfer]:
    """The surplus by the blocks in which it arrived, and by its transactions where the node can trace."""
    try:
        history = await fetch_history(endpoint, address, run.headers)
    except PrunedError:
        return [_balance_transfer(run.headers[-1], address, surplus)]
    found: list[ObservedTransfer] = []
    remaining = surplus
    for index in range(len(run.headers) - 1, 0, -1):
        header = run.headers[index]
        explained = sum(t.amount_units for t in known if t.block == header)
        units = min(history[index] - history[index - 1] - explained, remaining)
        if units > 0:
            found += await _name(endpoint, run, header, address, units)
            remaining -= units
    if remaining > 0:  # it was there at the run's first block, or before it
        found += await _name(endpoint, run, run.headers[0], address, remaining)
    return found


async def _name(
    endpoint: Endpoint, run: BlockRun, header: Header, address: bytes, units: int
) -> list[ObservedTransfer]:
    try:
        internal = [t for t in await run.internal_of(endpoint, header) if t.recipient == address]
    except NodeError as error:  # it does not trace, or not this block, now or ever: the balance alone must do
        log.info("surplus not traced", block=header.number, reason=str(error))
        internal = []
    if sum(t.amount_units for t in internal) == units:
        return internal
    return [_balance_transfer(header, address, units)]


def _balance_transfer(header: Header, address: bytes, units: int) -> ObservedTransfer:
    return ObservedTransfer(
        block=header,
        tx_index=-1,
        position=POSITION,
        recipient=address,
        asset=NATIVE_ASSET,
        amount_units=units,
        sender=None,
        tx_hash=None,
        log_index=None,
    )

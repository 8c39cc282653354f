"""Money that leaves deposit addresses for the treasury, as the chain shows it: whatever took it there settles.

What our own records of sweeps say plays no part in that: a restored database, an operator's own transaction and any
of several competing ones are all seen here.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.errors import NodeBehindError
from app.blockchain.fees import add_prices, paid_wei
from app.blockchain.headers import Header
from app.blockchain.receipts import fetch_receipts, proves
from app.blockchain.rpc import Endpoint
from app.blockchain.transfers import ObservedTransfer
from app.blockchain.wire import TRANSFER_TOPIC, RawReceipt, to_bytes, to_int
from app.core import limits
from app.core.chains import Chain
from app.core.clock import from_unix
from app.core.evm import NATIVE_ASSET, hex0x
from app.core.logger import get_logger
from app.db.models import Outflow, Transaction
from app.db.repositories import addresses, outflows, sweeps, transactions
from app.services.context import Context

log = get_logger(__name__)

ReadReceipts = Callable[[set[bytes]], Awaitable[dict[bytes, RawReceipt | None]]]


@dataclass(frozen=True, slots=True)
class ObservedOutflow:
    """A transfer from a deposit address to the treasury. `fee_units`: native coin that the address itself paid for it.

    `covers_units`: what left the address with it; more than arrived where a token takes a fee.
    """

    transfer: ObservedTransfer
    payment_id: str
    fee_units: int
    covers_units: int


async def known_treasuries(session: AsyncSession, chain: Chain) -> set[bytes]:
    """The configured treasury, and those that sweeps under way were signed for."""
    configured = {chain.sweep.treasury} if chain.sweep.treasury is not None else set()
    return configured | await outflows.live_treasuries(session, chain.chain_id)


async def without_own(
    session: AsyncSession, chain: Chain, transfers: Sequence[ObservedTransfer]
) -> list[ObservedTransfer]:
    """Transfers without native coin of Paywatch's own accounts: a top-up is no payment."""
    senders = {each.sender for each in transfers if each.asset == NATIVE_ASSET and each.sender is not None}
    own = await outflows.own_accounts(session, chain.chain_id, senders) if senders else set()
    return [each for each in transfers if each.asset != NATIVE_ASSET or each.sender not in own]


async def from_deposits(
    session: AsyncSession, transfers: Sequence[ObservedTransfer]
) -> list[tuple[ObservedTransfer, str]]:
    """Those of the transfers to a treasury that came from deposit addresses, with the addresses' payments."""
    senders = {each.sender for each in transfers if each.sender is not None and each.tx_hash is not None}
    owners = await addresses.payments_by_address(session, senders) if senders else {}
    return [(each, owners[each.sender]) for each in transfers if each.sender is not None and each.sender in owners]


async def read_outflows(
    endpoint: Endpoint, leaving: Sequence[tuple[ObservedTransfer, str]]
) -> tuple[ObservedOutflow, ...]:
    """What the receipts say of transfers that left deposit addresses; those that failed are left out.

    Raises NodeError; NodeBehindError when the node has no receipt of them in their block.
    """
    receipts = await fetch_receipts(endpoint, {each.tx_hash for each, _ in leaving if each.tx_hash is not None})
    await add_prices(endpoint, receipts.values())
    found: list[ObservedOutflow] = []
    told: set[tuple[bytes, ...]] = set()
    for transfer, payment_id in leaving:
        tx_hash, sender = transfer.tx_hash or b"", transfer.sender or b""
        receipt = receipts[tx_hash]
        if receipt is None or receipt.blockHash != hex0x(transfer.block.hash):
            raise NodeBehindError(f"no receipt of {hex0x(tx_hash)} in the block that holds it")
        if receipt.status != "0x1":
            continue
        # A transaction's fee, and what a token took for itself, count once, however many transfers it made.
        pays = receipt.from_ is not None and to_bytes(receipt.from_) == sender and (tx_hash, sender) not in told
        covers_units = transfer.amount_units
        if transfer.asset != NATIVE_ASSET and (tx_hash, sender, transfer.asset) not in told:
            covers_units += _spent_elsewhere(receipt, transfer)
        told |= {(tx_hash, sender), (tx_hash, sender, transfer.asset)}
        found.append(
            ObservedOutflow(
                transfer=transfer,
                payment_id=payment_id,
                fee_units=paid_wei(receipt) if pays else 0,
                covers_units=min(covers_units, limits.MAX_UNITS),
            )
        )
    return tuple(found)


def _spent_elsewhere(receipt: RawReceipt, transfer: ObservedTransfer) -> int:
    """What the address lost of the token in this transaction to others than the treasury: a fee, or burned."""
    units = 0
    for entry in receipt.logs:
        if len(entry.topics) != 3 or len(entry.data) != 66 or entry.topics[0] != TRANSFER_TOPIC:
            continue
        sender, recipient = to_bytes(entry.topics[1])[12:], to_bytes(entry.topics[2])[12:]
        elsewhere = recipient not in (transfer.recipient, sender)
        if to_bytes(entry.address) == transfer.asset and sender == transfer.sender and elsewhere:
            units += to_int(entry.data)
    return units


async def record_outflows(session: AsyncSession, chain: Chain, found: Sequence[ObservedOutflow]) -> list[Outflow]:
    """Store what was seen; returns what is new. The chain's lock is held, and transfers to the addresses are stored."""
    news = await outflows.record(session, [_row(chain, each) for each in found])
    for row in news:
        if row.asset == NATIVE_ASSET:
            row.covers_units = await _native_covers(session, row)
            await session.flush()
    return news


async def _native_covers(session: AsyncSession, row: Outflow) -> int:
    """What an outflow of native coin accounts for: what arrived, its fee, and dust.

    When what is left would not pay for another transfer, the address counts as empty: what was left over, and what
    other transactions of it cost, went with this one. Otherwise a payment would wait for ever for a fee to come back.
    """
    covers_units = row.amount_units + row.fee_units
    held = await outflows.holdings(session, row.chain_id, {row.sender}, row.block_number)
    if held.get((row.sender, NATIVE_ASSET), 0) <= row.fee_units:
        received = await outflows.transfers_to(session, row.chain_id, {row.sender})
        earlier = [
            each
            for each in await outflows.outflows_of(session, row.chain_id, {row.sender})
            if each.canonical and each.asset == NATIVE_ASSET and each.block_number <= row.block_number
        ]
        before = accounted([each for each in earlier if each.id != row.id], received)
        covers_units = max(
            covers_units,
            sum(t.amount_units for t in received if t.asset == NATIVE_ASSET and t.block_number <= row.block_number)
            - sum(before.values()),
        )
    return min(covers_units, limits.MAX_UNITS)


async def orphan_outflows(session: AsyncSession, chain: Chain, above: int) -> set[str]:
    """Take back what a reorg took back; returns the payments. The transfers above the block are orphaned already."""
    orphaned = await outflows.orphan_above(session, chain.chain_id, above)
    await mark_swept(session, chain, {row.sender for row in orphaned})
    return {row.payment_id for row in orphaned}


async def orphan_replaced(session: AsyncSession, chain: Chain, headers: Sequence[Header], highest: int) -> set[str]:
    """Take back what stands at these blocks' heights and in none of them; returns the payments.

    Above a cursor that an operator has set back, what was recorded stays until its block is read again. `highest`: that
    was ever scanned, and no sweep has ended without its confirmations there.
    """
    first, last, hashes = headers[0].number, headers[-1].number, [header.hash for header in headers]
    if first <= highest - chain.confirmations_required + 1:
        await sweeps.follow_again(session, chain.chain_id, first, last, hashes)
    touched = await transactions.orphan_replaced(session, chain.chain_id, first, last, hashes)
    left = await outflows.orphan_replaced(session, chain.chain_id, first, last, hashes)
    await mark_swept(session, chain, {row.sender for row in left})
    return touched | {row.payment_id for row in left}


async def mark_swept(session: AsyncSession, chain: Chain, senders: Collection[bytes]) -> None:
    """Say anew which transfers to these addresses have left them: the first ones, as far as the outflows reach.

    Not by their blocks: what arrived between a sweep's signature and its block is still there.
    """
    rows = await outflows.outflows_of(session, chain.chain_id, senders)
    received = await outflows.transfers_to(session, chain.chain_id, {row.sender for row in rows})
    left = accounted([row for row in rows if row.canonical], received)
    for transfer in received:
        key = (transfer.chain_id, transfer.recipient, transfer.asset)
        left[key] = left.get(key, 0) - transfer.amount_units
        transfer.swept = left[key] >= 0
    await session.flush()


def accounted(left: Sequence[Outflow], received: Sequence[Transaction]) -> dict[tuple[int, bytes, bytes], int]:
    """How much of what addresses received these outflows account for, in base units by (chain, address, asset).

    Never more than had arrived by an outflow's block: when it took money that nobody had recorded too, that surplus
    says nothing of what arrives later.
    """
    arrivals: dict[tuple[int, bytes, bytes], list[Transaction]] = {}
    for transfer in received:
        arrivals.setdefault((transfer.chain_id, transfer.recipient, transfer.asset), []).append(transfer)
    found: dict[tuple[int, bytes, bytes], int] = {}
    for row in sorted(left, key=lambda row: (row.block_number, row.tx_index)):
        key = (row.chain_id, row.sender, row.asset)
        arrived = sum(each.amount_units for each in arrivals.get(key, ()) if each.block_number <= row.block_number)
        found[key] = min(found.get(key, 0) + row.covers_units, arrived)
    return found


async def verify_outflows(
    context: Context, chain: Chain, reached: Header, read_receipts: ReadReceipts
) -> tuple[int, ...]:
    """Ids of the outflows with their required confirmations at `reached` that a second look confirms. Raises NodeError.

    `read_receipts` asks another endpoint when there is one.
    """
    async with context.db.read() as session:
        after_id, confirmations = context.looked_outflows.get(chain.chain_id, 0), chain.confirmations_required
        rows = await outflows.unverified(session, chain.chain_id, reached.number, confirmations, after_id)
    if rows:
        context.looked_outflows[chain.chain_id] = rows[-1].id
    receipts = await read_receipts({row.tx_hash for row in rows}) if rows else {}
    verified = tuple(row.id for row in rows if _proved(row, receipts[row.tx_hash]))
    for row in rows:
        if row.id not in verified:
            log.warning("outflow not confirmed by its receipt", payment=row.payment_id, tx_hash=hex0x(row.tx_hash))
    return verified


def _proved(row: Outflow, receipt: RawReceipt | None) -> bool:
    kind, _, index = row.position.partition(":")
    if kind == "tx" and receipt is not None:
        ends = (receipt.from_ and to_bytes(receipt.from_), receipt.to and to_bytes(receipt.to))
        if ends != (row.sender, row.treasury):
            return False
    return proves(
        receipt,
        block_hash=row.block_hash,
        asset=row.asset,
        log_index=int(index) if kind == "log" else None,
        recipient=row.treasury,
        units=row.amount_units,
        sender=row.sender,
    )


def _row(chain: Chain, found: ObservedOutflow) -> dict[str, object]:
    transfer = found.transfer
    return {
        "payment_id": found.payment_id,
        "chain_id": chain.chain_id,
        "block_number": transfer.block.number,
        "block_hash": transfer.block.hash,
        "block_time": from_unix(transfer.block.time),
        "tx_index": transfer.tx_index,
        "position": transfer.position,
        "sender": transfer.sender,
        "treasury": transfer.recipient,
        "asset": transfer.asset,
        "amount_units": transfer.amount_units,
        "fee_units": found.fee_units,
        "covers_units": found.covers_units,
        "tx_hash": transfer.tx_hash,
    }

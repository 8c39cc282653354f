"""Compares what deposit addresses hold with what was recorded for them."""

from dataclasses import dataclass

from app.blockchain.balances import fetch_balances, fetch_token_balances
from app.blockchain.errors import FatalError, InvalidAnswerError, NodeBehindError, NodeError
from app.blockchain.rpc import Endpoint
from app.core.chains import Chain
from app.core.evm import NATIVE_ASSET, checksum
from app.core.logger import get_logger
from app.db.repositories import addresses, chains, outflows
from app.services.context import Context

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """An address whose balance is not what was recorded, in base units of `symbol`."""

    chain: str
    payment_id: str
    address: str
    symbol: str
    decimals: int
    recorded_units: int
    held_units: int


@dataclass(frozen=True, slots=True)
class Report:
    """`problem`: why the node could not be asked, or not for some assets; the others were compared all the same."""

    differences: tuple[Difference, ...] = ()
    problem: str | None = None


async def reconcile_chain(context: Context, chain: Chain) -> Report:
    """Every difference at the cursor's block, for addresses of open and recently paid payments, in all assets.

    Addresses whose money is on its way are left for the next time. What was moved elsewhere than to the treasury by
    the merchant's own hand shows as a difference too: it is one.
    """
    endpoint = context.nodes.nodes(chain).pick()
    if endpoint is None:
        return Report(problem="no endpoint is on this chain")
    try:
        report = await _compare(context, chain, endpoint)
    except NodeError as error:
        return Report(problem=f"{endpoint.name}: {error}")
    for each in report.differences:
        log.error(
            "recorded transfers and balance differ",
            chain=chain.name,
            payment=each.payment_id,
            token=each.symbol,
            recorded_units=str(each.recorded_units),
            held_units=str(each.held_units),
        )
    return report


async def _compare(context: Context, chain: Chain, endpoint: Endpoint) -> Report:
    async with context.db.write() as session:  # locked, so that no step comes between the cursor and the records
        state = await chains.lock_state(session, chain.chain_id)
        if state is None:
            return Report()
        if chain.native.detect == "balances" and state.last_scanned_block < state.highest_block:
            raise NodeBehindError("blocks are being read again; what balances showed counts already")
        moving = await outflows.moving_addresses(session, chain.chain_id)
        recent = await addresses.recent_addresses(session)
        owners = {address: payment_id for address, payment_id in recent.items() if address not in moving}
        recorded = await outflows.holdings(session, chain.chain_id, owners, state.last_scanned_block)
    if not owners:
        return Report()
    differences: list[Difference] = []
    problems: list[str] = []
    for asset in chain.assets:
        try:
            if asset.address == NATIVE_ASSET:
                held = await fetch_balances(endpoint, owners, state.last_scanned_hash)
            else:
                held = await fetch_token_balances(endpoint, asset.address, owners, state.last_scanned_hash)
        except (FatalError, InvalidAnswerError) as error:  # a broken token hides no other's differences
            problems.append(f"{asset.symbol}: {error}")
            continue
        differences += [
            Difference(
                chain=chain.name,
                payment_id=owners[address],
                address=checksum(address),
                symbol=asset.symbol,
                decimals=asset.decimals,
                recorded_units=recorded.get((address, asset.address), 0),
                held_units=units,
            )
            for address, units in held.items()
            if units != recorded.get((address, asset.address), 0)
        ]
    return Report(tuple(differences), f"{endpoint.name}: {'; '.join(problems)}" if problems else None)

"""Payments whose money an operator took elsewhere than to the treasury: nothing on the chain settles them."""

from sqlalchemy.ext.asyncio import AsyncSession

from app.blockchain.balances import fetch_balances, fetch_token_balances
from app.blockchain.errors import NodeError
from app.blockchain.headers import fetch_header
from app.core.chains import Chain
from app.core.clock import utc_now
from app.core.errors import Conflict, NotFound
from app.core.evm import NATIVE_ASSET, checksum
from app.core.logger import get_logger
from app.core.money import format_units
from app.db.models import PaymentOption
from app.db.repositories import chains, payments, sweeps
from app.db.repositories.payments import PaymentRecord
from app.services.blockchain.chains import require_same_chain
from app.services.context import Context
from app.services.decide import PaymentState, settle_by_hand
from app.services.ledger import Cause, Story, arrived, payment_state, store

log = get_logger(__name__)


async def can_settle(context: Context, payment_id: str) -> bool:
    """Whether `mark_settled` would do something; False for a payment that is settled already.

    Raises NotFound; Conflict where it makes no sense: the payment is not confirmed, its chain settles it without a
    sweep, a sweep is under way, or its address still holds what the sweeper needs (the node is asked).
    """
    async with context.db.read() as session:
        found = await _require(context, session, payment_id)
    if found is None:
        return False
    record, state, option = found
    chain = context.by_id[option.chain_id]
    try:
        held_units = await _held_units(context, chain, record.address, option.asset)
    except NodeError as error:
        raise Conflict(f"chain {chain.name!r}: its node cannot say what the address holds: {error}") from error
    there = sum(each.amount_units for each in arrived(record) if (each.chain_id, each.asset) == _key(option))
    if held_units + there >= state.options[state.option].needed_units:
        token = record.tokens[_key(option)]
        held = f"{format_units(held_units, token.decimals)} {token.symbol}"
        raise Conflict(
            f"{checksum(record.address)} still holds {held}: the sweeper takes it, and that settles the payment"
        )
    return True


async def mark_settled(context: Context, payment_id: str, reason: str, by: str) -> bool:
    """Settle a confirmed payment on the operator's word, with its event and webhooks; False when it was settled.

    Raises as `can_settle`, which asks the node as well and goes before. What its address still holds, or gets later,
    is swept as before.
    """
    async with context.db.write() as session:
        await payments.lock(session, [payment_id], and_their_rows=True)
        found = await _require(context, session, payment_id)
        if found is None:
            return False
        record, state, _ = found
        now = utc_now()
        cause = Cause("operator", {"command": "payments mark-settled", "reason": reason, "operator": by})
        cursors = await chains.list_states(session)
        await store(context, session, [Story(record, [settle_by_hand(state, now)])], cause, cursors, now)
    log.warning("payment settled by an operator", payment=payment_id, reason=reason, operator=by)
    return True


async def _require(
    context: Context, session: AsyncSession, payment_id: str
) -> tuple[PaymentRecord, PaymentState, PaymentOption] | None:
    """The payment and the option that it was paid by; None when it is settled. Raises as `can_settle`."""
    records = await payments.load(session, [payment_id])
    if not records:
        raise NotFound(f"there is no payment {payment_id!r}")
    [record] = records
    state = payment_state(context, record)
    option = record.options[state.option]
    if state.status == "settled":
        return None
    if state.status != "confirmed":
        raise Conflict(f"the payment is {state.status}; only a confirmed one can be marked settled")
    if option.chain not in context.by_name:
        raise Conflict(f"chain {option.chain!r} is not watched, so nobody can say where the money is")
    if not state.options[state.option].swept:
        raise Conflict(
            f"chain {option.chain!r} is not swept: the payment settles by itself once its transfers are final"
        )
    touching = await sweeps.touching(session, option.chain_id, [record.address])
    if touching:
        named = ", ".join(f"{sweep.id} ({sweep.status})" for sweep in touching[record.address])
        raise Conflict(
            f"a sweep of its address is under way: {named}; a frozen one is ended by `paywatch sweep release`"
        )
    return record, state, option


async def _held_units(context: Context, chain: Chain, address: bytes, asset: bytes) -> int:
    """What the address holds at the node's head. Raises NodeError."""
    endpoint = context.nodes.nodes(chain).pick()
    if endpoint is None:
        raise Conflict(f"no endpoint is on chain {chain.name!r}")
    await require_same_chain(context, chain, endpoint)
    head = await fetch_header(endpoint, "latest")
    if asset == NATIVE_ASSET:
        held = await fetch_balances(endpoint, [address], head.hash)
    else:
        held = await fetch_token_balances(endpoint, asset, [address], head.hash)
    return held[address]


def _key(option: PaymentOption) -> tuple[int, bytes]:
    return option.chain_id, option.asset

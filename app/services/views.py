"""The payment as everybody sees it: the API, events and webhooks all show this one form."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.clock import rfc3339
from app.core.evm import NATIVE_ASSET, checksum, hex0x, payment_uri
from app.core.money import format_units
from app.db.models import ChainState, Outflow, Payment, PaymentOption, Token, Transaction
from app.db.repositories.payments import PaymentRecord
from app.services.decide import Flag, OptionState, PaymentState, Status


class View(BaseModel):
    model_config = ConfigDict(frozen=True)


class TransactionView(View):
    """One observed transfer. `position` tells two of one transaction apart; orphaned ones have 0 confirmations."""

    chain: str
    tx_hash: str | None
    block_number: int
    block_hash: str
    log_index: int | None
    position: str
    sender: str | None = Field(alias="from")
    token: str
    token_address: str | None
    amount: str
    amount_units: str
    confirmations: int
    status: Literal["canonical", "orphaned"]


class OutflowView(View):
    """Money of the payment's address that reached the treasury; `fee_units` is native coin that the address paid.

    `sweep_id`: the sweep that took it there; null when somebody else's transaction did.
    """

    sweep_id: str | None
    chain: str
    tx_hash: str
    block_number: int
    token: str
    amount: str
    amount_units: str
    fee_units: str
    confirmations: int
    status: Literal["canonical", "orphaned"]


class PriceView(View):
    """What a payment was asked for in a currency."""

    amount: str
    currency: str


class OptionView(View):
    """One way to pay; options are never added together.

    `rate` is what one whole token was worth in the price's currency, by `rate_source` at `rate_at`; null without one.
    """

    chain: str
    chain_id: int
    token: str
    token_address: str | None
    decimals: int
    amount: str
    amount_units: str
    amount_received: str
    amount_received_units: str
    amount_due: str
    confirmations_required: int
    payment_uri: str
    rate: str | None
    rate_source: str | None
    rate_at: str | None


class PaymentView(View):
    """A payment; the top-level token and amounts describe the option with the highest paid fraction."""

    id: str
    object: Literal["payment"] = "payment"
    status: Status
    flags: list[Flag]
    version: int
    chain: str
    chain_id: int
    token: str
    token_address: str | None
    decimals: int
    amount: str
    amount_units: str
    amount_received: str
    amount_received_units: str
    amount_due: str
    price: PriceView | None
    address: str
    payment_uri: str
    checkout_url: str
    confirmations_required: int
    detected_in_block: int | None
    transactions: list[TransactionView]
    sweeps: list[OutflowView]
    options: list[OptionView]
    order_id: str | None
    metadata: dict[str, Any]
    description: str | None
    redirect_url: str | None
    webhook_url: str | None
    created_at: str
    expires_at: str
    detected_at: str | None
    confirmed_at: str | None
    settled_at: str | None


def payment_view(
    record: PaymentRecord, state: PaymentState, cursors: Mapping[int, ChainState], public_url: str
) -> PaymentView:
    """Show `record` as it is in `state`; `cursors` by chain id give the confirmations."""
    row = record.payment
    paid = any(option.received_units >= option.needed_units for option in state.options)
    options = [
        _option_view(record, option, option_state, paid)
        for option, option_state in zip(record.options, state.options, strict=True)
    ]
    shown = options[state.option]
    return PaymentView(
        id=row.id,
        status=state.status,
        flags=sorted(state.flags),
        version=state.version,
        **shown.model_dump(),
        price=_price_view(row),
        address=checksum(record.address),
        checkout_url=f"{public_url}/pay/{row.id}",
        detected_in_block=state.detected_in_block,
        transactions=[_transaction_view(record, transaction, cursors) for transaction in record.transactions],
        sweeps=[_outflow_view(record, outflow, cursors) for outflow in record.outflows],
        options=options,
        order_id=row.order_id,
        metadata=row.metadata_,
        description=row.description,
        redirect_url=row.redirect_url,
        webhook_url=row.webhook_url,
        created_at=rfc3339(row.created_at),
        expires_at=rfc3339(row.expires_at),
        detected_at=rfc3339(state.detected_at) if state.detected_at else None,
        confirmed_at=rfc3339(state.confirmed_at) if state.confirmed_at else None,
        settled_at=rfc3339(state.settled_at) if state.settled_at else None,
    )


def _price_view(row: Payment) -> PriceView | None:
    if row.price_amount is None or row.price_currency is None:
        return None
    return PriceView(amount=row.price_amount, currency=row.price_currency)


def _option_view(record: PaymentRecord, option: PaymentOption, state: OptionState, paid: bool) -> OptionView:
    """`paid`: by this option or another; nothing is due in any of them then."""
    token = record.tokens[option.chain_id, option.asset]
    due_units = 0 if paid else state.amount_units - state.received_units
    return OptionView(
        chain=option.chain,
        chain_id=option.chain_id,
        token=token.symbol,
        token_address=_token_address(token),
        decimals=token.decimals,
        amount=format_units(state.amount_units, token.decimals),
        amount_units=str(state.amount_units),
        amount_received=format_units(state.received_units, token.decimals),
        amount_received_units=str(state.received_units),
        amount_due=format_units(due_units, token.decimals),
        confirmations_required=state.confirmations_required,
        # A payer who sent a part is asked for the rest.
        payment_uri=payment_uri(option.chain_id, record.address, option.asset, due_units or state.amount_units),
        rate=option.rate,
        rate_source=option.rate_source,
        rate_at=rfc3339(option.rate_at) if option.rate_at else None,
    )


def _transaction_view(record: PaymentRecord, row: Transaction, cursors: Mapping[int, ChainState]) -> TransactionView:
    token = record.tokens[row.chain_id, row.asset]
    cursor = cursors.get(row.chain_id)
    return TransactionView(
        chain=cursor.name if cursor else str(row.chain_id),
        tx_hash=hex0x(row.tx_hash) if row.tx_hash else None,
        block_number=row.block_number,
        block_hash=hex0x(row.block_hash),
        log_index=row.log_index,
        position=row.position,
        **{"from": checksum(row.sender) if row.sender else None},
        token=token.symbol,
        token_address=_token_address(token),
        amount=format_units(row.amount_units, token.decimals),
        amount_units=str(row.amount_units),
        confirmations=_confirmations(row, cursor),
        status="canonical" if row.canonical else "orphaned",
    )


def _outflow_view(record: PaymentRecord, row: Outflow, cursors: Mapping[int, ChainState]) -> OutflowView:
    token = record.tokens[row.chain_id, row.asset]
    cursor = cursors.get(row.chain_id)
    return OutflowView(
        sweep_id=record.sweep_ids.get(row.tx_hash),
        chain=cursor.name if cursor else str(row.chain_id),
        tx_hash=hex0x(row.tx_hash),
        block_number=row.block_number,
        token=token.symbol,
        amount=format_units(row.amount_units, token.decimals),
        amount_units=str(row.amount_units),
        fee_units=str(row.fee_units),
        confirmations=_confirmations(row, cursor),
        status="canonical" if row.canonical else "orphaned",
    )


def _confirmations(row: Transaction | Outflow, cursor: ChainState | None) -> int:
    return max(cursor.last_scanned_block - row.block_number + 1, 0) if cursor and row.canonical else 0


def _token_address(token: Token) -> str | None:
    return None if token.address == NATIVE_ASSET else checksum(token.address)

"""Decides payments anew in a transaction, and writes what follows: state, events and deliveries together."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits, metrics
from app.core.clock import rfc3339, utc_now
from app.core.evm import hex0x
from app.core.ids import new_id
from app.core.logger import get_logger, redact_url
from app.db.engine import after_commit
from app.db.models import ChainState, Event, Payment, Transaction, WebhookDelivery
from app.db.repositories import chains, payments, transactions, webhooks
from app.db.repositories.payments import PaymentRecord
from app.db.repositories.webhooks import HeldEndpoint
from app.services.blockchain.outflows import accounted
from app.services.context import Context
from app.services.decide import ChainHead, Change, OptionState, PaymentState, Sweep, TransferState, counted, decide
from app.services.views import payment_view

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a payment changed; `detail` says which one it was.

    `kind`: transfer, block (confirmations, finality), reorg, clock (it expired), api_key, operator (a command), or
    backup (the backup pass). Who decides payments names what made it look; `events_of` what each change comes from.
    """

    kind: str
    detail: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.detail}


@dataclass(frozen=True, slots=True)
class Story:
    """A payment and what has just happened to it; `news` are the canonical transfers that were new, in chain order."""

    record: PaymentRecord
    changes: Sequence[Change]
    news: Sequence[Transaction] = ()


def payment_state(context: Context, record: PaymentRecord) -> PaymentState:
    """The stored state of a payment as `decide` takes it."""
    row = record.payment
    return PaymentState(
        status=row.status,  # type: ignore[arg-type]
        flags=frozenset(row.flags),  # type: ignore[arg-type]
        version=row.version,
        options=tuple(
            OptionState(
                chain_id=option.chain_id,
                asset=option.asset,
                amount_units=option.amount_units,
                tolerance_units=option.tolerance_units,
                confirmations_required=option.confirmations_required,
                received_units=option.received_units,
                swept=_swept(context, record, option.chain_id),
            )
            for option in record.options
        ),
        option=row.option_position,
        expires_at=row.expires_at,
        detected_in_block=row.detected_in_block,
        detected_at=row.detected_at,
        confirmed_at=row.confirmed_at,
        settled_at=row.settled_at,
    )


async def decide_again(
    context: Context, session: AsyncSession, payment_ids: Collection[str], cause: Cause
) -> list[Change]:
    """Lock the payments, decide each, and store the outcome. The caller holds what ChainState locks it needs.

    Returns the changes; when there are any, the webhook sender is worth waking after the commit.
    """
    if not payment_ids:
        return []
    await payments.lock(session, payment_ids)
    await _set_aside(session, payment_ids)
    cursors = await chains.list_states(session)
    heads = heads_of(cursors)
    now = utc_now()
    stories: list[Story] = []
    for record in await payments.load(session, payment_ids):
        transfers = [_transfer_state(row) for row in record.transactions]
        changes = decide(payment_state(context, record), transfers, arrived(record), heads, now)
        news = [row for row in record.transactions if row.canonical and not row.noted]
        for row in record.transactions:
            if not row.noted:
                row.noted = True
        if changes:
            stories.append(Story(record, changes, news))
    await store(context, session, stories, cause, cursors, now)
    return [change for story in stories for change in story.changes]


async def _set_aside(session: AsyncSession, payment_ids: Collection[str]) -> None:
    for payment_id, count in (await transactions.set_aside(session, payment_ids)).items():
        log.error("transfers set aside", payment=payment_id, count=count, counting=limits.PAYMENT_TRANSFERS)
        after_commit(session, partial(metrics.TRANSFERS_SET_ASIDE.inc, count))


@dataclass(frozen=True, slots=True)
class Audit:
    """A stored payment beside what the rules say of it. `received_units`: of each option, by its transfers."""

    state: PaymentState
    received_units: Sequence[int]
    changes: Sequence[Change]


def audit(context: Context, record: PaymentRecord, cursors: Mapping[int, ChainState], now: datetime) -> Audit:
    """Decide a payment without writing anything: what is stored is right when nothing follows."""
    state = payment_state(context, record)
    transfers = [_transfer_state(row) for row in record.transactions]
    heads = heads_of(cursors)
    options = counted(state.options, [each for each in transfers if each.canonical])
    changes = decide(state, transfers, arrived(record), heads, now)
    return Audit(state, [option.received_units for option in options], changes)


async def store(
    context: Context,
    session: AsyncSession,
    stories: Sequence[Story],
    cause: Cause,
    cursors: Mapping[int, ChainState],
    now: datetime,
) -> None:
    """Write payments' new states with their events and the events' deliveries (the outbox); tell of them afterwards."""
    receivers: dict[str, Sequence[HeldEndpoint]] = {}
    deliveries: list[WebhookDelivery] = []
    for story in stories:
        _write_state(story.record, story.changes[-1].state)
        merchant_id = story.record.payment.merchant_id
        if merchant_id not in receivers:
            receivers[merchant_id] = await webhooks.hold_endpoints(session, merchant_id)
        for event in events_of(context, story, cause, cursors, now):
            session.add(event)
            deliveries += deliveries_of(story.record.payment, event, receivers[merchant_id], now)
    await session.flush()  # the deliveries refer to the events
    session.add_all(deliveries)
    for story in stories:
        after_commit(session, partial(_tell, story, cause, cursors))


def _tell(story: Story, cause: Cause, cursors: Mapping[int, ChainState]) -> None:
    """What logs and metrics say of a story that was committed."""
    for change in story.changes:
        metrics.PAYMENT_EVENTS.labels(change.type).inc()
        log.info(
            "payment changed",
            payment=story.record.payment.id,
            event_type=change.type,
            status=change.state.status,
            version=change.state.version,
            cause=cause.kind,
        )
        if cause.kind == "block" and "reorged" not in change.state.flags:
            _measure(story.record, change, cursors)


def _measure(record: PaymentRecord, change: Change, cursors: Mapping[int, ChainState]) -> None:
    """How long it took since the block that paid it, unless that was found while catching up with the chain."""
    option, block = change.state.options[change.state.option], change.state.detected_in_block
    chain = cursors.get(option.chain_id)
    times = [row.block_time for row in record.transactions if row.canonical and row.block_number == block]
    if chain is None or block is None or not times:
        return
    seconds = max((utc_now() - max(times)).total_seconds(), 0.0)
    depth = chain.head_block - block
    if change.type == "payment.detected" and depth <= limits.NEAR_TIP_BLOCKS:
        metrics.PAYMENT_DETECTED_SECONDS.labels(chain.name).observe(seconds)
    if change.type == "payment.confirmed" and depth <= limits.NEAR_TIP_BLOCKS + option.confirmations_required:
        metrics.PAYMENT_CONFIRMED_SECONDS.labels(chain.name).observe(seconds)


def events_of(
    context: Context, story: Story, cause: Cause, cursors: Mapping[int, ChainState], now: datetime
) -> list[Event]:
    """The events that a payment's changes are told by."""
    url = context.settings.effective_public_url
    return [
        Event(
            id=new_id("evt"),
            merchant_id=story.record.payment.merchant_id,
            payment_id=story.record.payment.id,
            type=change.type,
            version=change.state.version,
            cause=_own_cause(story, change, cause, cursors).as_json(),
            data=payment_view(story.record, change.state, cursors, url).model_dump(mode="json", by_alias=True),
            created_at=now,
        )
        for change in story.changes
    ]


def _own_cause(story: Story, change: Change, cause: Cause, cursors: Mapping[int, ChainState]) -> Cause:
    """What a change comes from, where `cause` is only what made us look: its transfer, or the clock.

    A transfer that a command or the backup pass found keeps that as its kind.
    """
    if change.type == "payment.expired":
        return Cause("clock", {"expires_at": rfc3339(change.state.expires_at), **cause.detail})
    row = _transfer_behind(story, change)
    if row is None:
        return cause
    transfer = {
        "chain": cursors[row.chain_id].name,
        "block_number": row.block_number,
        "block_hash": hex0x(row.block_hash),
        "tx_hash": hex0x(row.tx_hash) if row.tx_hash else None,
        "position": row.position,
    }
    return Cause("transfer" if cause.kind == "block" else cause.kind, {**cause.detail, **transfer})


def _transfer_behind(story: Story, change: Change) -> Transaction | None:
    """The newest of the new transfers; where it made the payment whole, the newest of the block that did."""
    if change.type not in ("payment.underpaid", "payment.detected", "payment.overpaid", "payment.late"):
        return None
    news = story.news
    if change.type == "payment.detected":
        option, block = change.state.options[change.state.option], change.state.detected_in_block
        paying = (option.chain_id, option.asset)
        news = [row for row in news if (row.chain_id, row.asset) == paying and row.block_number == block]
    return news[-1] if news else None


def _write_state(record: PaymentRecord, state: PaymentState) -> None:
    row = record.payment
    if state.status != "settled":
        row.settled_by_sweep = False
    elif row.status != "settled":
        row.settled_by_sweep = state.options[state.option].swept
    if {row.status, state.status} & {"expired", "cancelled"}:  # also one that an older version closed
        row.holds_order = False
    row.status = state.status
    row.flags = sorted(state.flags)
    row.version = state.version
    row.option_position = state.option
    row.detected_in_block = state.detected_in_block
    row.detected_at = state.detected_at
    row.confirmed_at = state.confirmed_at
    row.settled_at = state.settled_at
    for option, option_state in zip(record.options, state.options, strict=True):
        option.received_units = option_state.received_units


def deliveries_of(
    payment: Payment, event: Event, endpoints: Iterable[HeldEndpoint], now: datetime
) -> list[WebhookDelivery]:
    """An event's deliveries to the endpoints that want it, and to the payment's own URL."""
    receivers: list[tuple[HeldEndpoint | None, str, str]] = [
        (endpoint, endpoint.id, endpoint.url)
        for endpoint in endpoints
        if endpoint.event_types is None or event.type in endpoint.event_types
    ]
    if payment.webhook_url is not None:
        own = f"{payment.merchant_id} {redact_url(payment.webhook_url)}"
        receivers.append((None, own, payment.webhook_url))
    return [_delivery(payment, event, endpoint, receiver, url, now) for endpoint, receiver, url in receivers]


def _delivery(
    payment: Payment, event: Event, endpoint: HeldEndpoint | None, receiver: str, url: str, now: datetime
) -> WebhookDelivery:
    """To a disabled endpoint a dead one, so that the event can be replayed once it is enabled."""
    is_disabled = endpoint is not None and endpoint.disabled_at is not None
    return WebhookDelivery(
        id=new_id("dlv"),
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        event_id=event.id,
        event_version=event.version,
        endpoint_id=endpoint.id if endpoint is not None else None,
        url=url,
        receiver=receiver,
        status="dead" if is_disabled else "pending",
        dead_reason="endpoint_disabled" if is_disabled else None,
        attempt_count=0,
        failure_count=0,
        manual=False,
        next_attempt_at=None if is_disabled else now,
        created_at=now,
    )


def _swept(context: Context, record: PaymentRecord, chain_id: int) -> bool:
    """Whether a sweep settles. What was settled by finality stays so when sweeping is switched on later."""
    chain = context.by_id.get(chain_id)
    before = record.payment.status == "settled" and not record.payment.settled_by_sweep
    return chain is not None and chain.sweep.mode != "off" and not before


def arrived(record: PaymentRecord) -> list[Sweep]:
    """What reached the treasury for good: an outflow is verified once it has the option's confirmations."""
    left = [row for row in record.outflows if row.canonical and row.verified]
    received = [row for row in record.transactions if row.canonical]
    return [Sweep(chain_id, asset, units) for (chain_id, _, asset), units in accounted(left, received).items()]


def heads_of(cursors: Mapping[int, ChainState]) -> dict[int, ChainHead]:
    """The cursors as `decide` takes them, by chain id."""
    return {
        chain_id: ChainHead(
            number=state.last_scanned_block,
            time=state.last_scanned_time,
            finalized_number=state.finalized_block,
            regaining=state.last_scanned_block < state.highest_block,
            caught_up_at=state.caught_up_at,
        )
        for chain_id, state in cursors.items()
    }


def _transfer_state(row: Transaction) -> TransferState:
    return TransferState(
        chain_id=row.chain_id,
        asset=row.asset,
        amount_units=row.amount_units,
        block_number=row.block_number,
        order=(row.tx_index, -1 if row.log_index is None else row.log_index),
        block_time=row.block_time,
        canonical=row.canonical,
        verified=row.verified,
        noted=row.noted,
    )

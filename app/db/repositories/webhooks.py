"""Endpoints, and the outbox with its leases."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Integer,
    Subquery,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, aliased

from app.core import limits
from app.db.driver import QuickSession
from app.db.models import (
    Event,
    Merchant,
    Payment,
    Transaction,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookReceiver,
)
from app.db.repositories import receivers

# Made once: every change of a payment runs it.
_ENDPOINTS: Final = (
    select(WebhookEndpoint)
    .where(WebhookEndpoint.merchant_id == bindparam("merchant_id"), WebhookEndpoint.deleted_at.is_(None))
    .order_by(WebhookEndpoint.id.desc())
    .limit(bindparam("limit", type_=Integer))
)

_HELD: Final = (
    select(WebhookEndpoint.id, WebhookEndpoint.url, WebhookEndpoint.event_types, WebhookEndpoint.disabled_at)
    .where(WebhookEndpoint.merchant_id == bindparam("merchant_id"), WebhookEndpoint.deleted_at.is_(None))
    .order_by(WebhookEndpoint.id)
    .with_for_update(read=True)
)


@dataclass(frozen=True, slots=True)
class HeldEndpoint:
    """What deliveries ask of an endpoint; it stays so until the transaction ends."""

    id: str
    url: str
    event_types: Sequence[str] | None
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A claimed delivery with all that sending needs; no session is held while it is sent.

    `secret` and `old_secrets` are encrypted; the old ones are `{"secret", "until"}`.
    """

    id: str
    receiver: str
    endpoint_id: str | None
    url: str
    event_id: str
    event_type: str
    payment_id: str
    event_created_at: datetime
    data: dict[str, object]
    secret: bytes
    old_secrets: Sequence[Mapping[str, str]]
    manual: bool
    leased_until: datetime
    # When the block was mined that paid the payment; None when none has.
    mined_at: datetime | None = None


async def get_endpoint(
    session: AsyncSession, merchant_id: str, endpoint_id: str, for_update: bool = False
) -> WebhookEndpoint | None:
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id,
        WebhookEndpoint.merchant_id == merchant_id,
        WebhookEndpoint.deleted_at.is_(None),
    )
    return await session.scalar(query.with_for_update() if for_update else query)


async def list_endpoints(
    session: AsyncSession, merchant_id: str, before_id: str | None = None, limit: int = limits.ENDPOINTS_PER_MERCHANT
) -> Sequence[WebhookEndpoint]:
    query = _ENDPOINTS if before_id is None else _ENDPOINTS.where(WebhookEndpoint.id < before_id)
    return (await session.scalars(query, {"merchant_id": merchant_id, "limit": limit})).all()


async def hold_endpoints(session: QuickSession, merchant_id: str) -> list[HeldEndpoint]:
    """The merchant's endpoints under shared locks, for whoever makes deliveries pending.

    One that is being disabled or deleted is waited for: its pending deliveries would be ended before these are there.
    """
    return [HeldEndpoint(*row) for row in await session.execute(_HELD, {"merchant_id": merchant_id})]


async def urls_of(session: AsyncSession, endpoint_ids: Collection[str]) -> dict[str, str]:
    """By endpoint."""
    query = select(WebhookEndpoint.id, WebhookEndpoint.url).where(WebhookEndpoint.id.in_(endpoint_ids))
    return {endpoint_id: url for endpoint_id, url in await session.execute(query)}


async def lock_endpoint(session: AsyncSession, endpoint_id: str) -> WebhookEndpoint:
    query = select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id).with_for_update()
    return (await session.scalars(query)).one()


async def claim_due(session: AsyncSession, now: datetime, leased_until: datetime, rows: int) -> list[DueDelivery]:
    """Lease at most `rows` due deliveries so that no other sender takes them; merchants take turns, and so do the
    receivers of each, every receiver's oldest first.

    A merchant's turn counts what it has under way, so that one with many receivers that hang takes no more sockets
    than others leave. A receiver never gets more than `WEBHOOK_ENDPOINT_CONCURRENCY` at once, and one that keeps
    failing a single one when its next probe is due (or a person asked for it), so that a slow or dead one keeps no
    others waiting. A payment's events reach a receiver in order while it answers: a later one waits for the first
    attempt of an earlier one, and no longer.

    What goes to an endpoint goes to the URL that it has now.
    """
    takeable = _takeable(now, await _without_room(session, now))
    chosen = (
        select(WebhookDelivery.id)
        .join(takeable, takeable.c.id == WebhookDelivery.id)
        .where(_is_free(now))  # asked of locked rows
        .order_by(takeable.c.turn, takeable.c.rank, WebhookDelivery.id)
        .limit(rows)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    )
    ids = list(await session.scalars(chosen))
    if not ids:
        return []
    url_now = select(WebhookEndpoint.url).where(WebhookEndpoint.id == WebhookDelivery.endpoint_id).scalar_subquery()
    await session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(ids))
        .values(leased_until=leased_until, url=func.coalesce(url_now, WebhookDelivery.url))
        .execution_options(synchronize_session=False)
    )
    return await _load_due(session, ids, leased_until)


def _is_free(now: datetime) -> ColumnElement[bool]:
    """Due, and no sender's."""
    return and_(
        or_(WebhookDelivery.leased_until.is_(None), WebhookDelivery.leased_until < now),
        WebhookDelivery.status == "pending",
        WebhookDelivery.next_attempt_at <= now,
    )


def _takeable(now: datetime, without_room: Collection[str]) -> Subquery:
    """What is due and within its receiver's share: `rank` is its place at its receiver, `turn` at its merchant."""
    earlier = aliased(WebhookDelivery)
    waits_for_earlier = exists().where(
        earlier.payment_id == WebhookDelivery.payment_id,
        earlier.endpoint_id.is_not_distinct_from(WebhookDelivery.endpoint_id),
        earlier.event_version < WebhookDelivery.event_version,
        earlier.status == "pending",
        earlier.attempt_count == 0,
    )
    of_receiver = _in_flight(WebhookDelivery.receiver, now)
    is_failing = WebhookReceiver.failure_count >= limits.WEBHOOK_BREAKER_FAILURES
    rank = func.row_number().over(partition_by=WebhookDelivery.receiver, order_by=WebhookDelivery.id)
    due = (
        select(
            WebhookDelivery.id,
            WebhookDelivery.merchant_id,
            (rank + func.coalesce(of_receiver.c.number, 0)).label("rank"),
            case((is_failing, 1), else_=limits.WEBHOOK_ENDPOINT_CONCURRENCY).label("share"),
        )
        .outerjoin(of_receiver, of_receiver.c.whose == WebhookDelivery.receiver)
        .outerjoin(WebhookReceiver, WebhookReceiver.receiver == WebhookDelivery.receiver)
        .where(
            _is_free(now),
            WebhookDelivery.receiver.not_in(select(WebhookEndpoint.id).where(is_closed())),
            or_(WebhookDelivery.receiver.not_in(without_room), WebhookDelivery.manual),
            ~waits_for_earlier,
        )
        .subquery()
    )
    of_merchant = _in_flight(WebhookDelivery.merchant_id, now)
    turn = func.row_number().over(partition_by=due.c.merchant_id, order_by=(due.c.rank, due.c.id))
    return (
        select(due.c.id, due.c.rank, (turn + func.coalesce(of_merchant.c.number, 0)).label("turn"))
        .outerjoin(of_merchant, of_merchant.c.whose == due.c.merchant_id)
        .where(due.c.rank <= due.c.share)
        .subquery()
    )


def _in_flight(whose: InstrumentedAttribute[str], now: datetime) -> Subquery:
    return (
        select(whose.label("whose"), func.count().label("number"))
        .where(WebhookDelivery.leased_until >= now)
        .group_by(whose)
        .subquery()
    )


def is_closed() -> ColumnElement[bool]:
    """Endpoints that get nothing. A large backlog of theirs is pending until the worker has ended it."""
    return or_(WebhookEndpoint.disabled_at.is_not(None), WebhookEndpoint.deleted_at.is_not(None))


async def _without_room(session: AsyncSession, now: datetime) -> list[str]:
    """Receivers that get nothing now: their pauses last, all of their share is under way, or they were given up.

    What waits for them is passed over before anything else is asked of it: a dead receiver's thousands of deliveries
    would otherwise be ranked in every claim, and took as long as the sending of the others'.
    """
    under_way = _in_flight(WebhookDelivery.receiver, now)
    busy = {receiver: number for receiver, number in await session.execute(select(under_way))}
    asked = or_(WebhookReceiver.probe_at > now, receivers.may_be_given_up(now), WebhookReceiver.receiver.in_(busy))
    failing = {row.receiver: row for row in await session.scalars(select(WebhookReceiver).where(asked))}
    full = [receiver for receiver, number in busy.items() if number >= _share(failing.get(receiver))]
    rests = [name for name, row in failing.items() if row.probe_at is not None and row.probe_at > now]
    return [*full, *rests, *(name for name, row in failing.items() if receivers.is_given_up(row))]


def _share(failing: WebhookReceiver | None) -> int:
    is_probed = failing is not None and failing.failure_count >= limits.WEBHOOK_BREAKER_FAILURES
    return 1 if is_probed else limits.WEBHOOK_ENDPOINT_CONCURRENCY


async def _load_due(session: AsyncSession, ids: list[str], leased_until: datetime) -> list[DueDelivery]:
    mined_at = (
        select(func.max(Transaction.block_time))
        .join(Payment, (Payment.id == Transaction.payment_id) & (Payment.detected_in_block == Transaction.block_number))
        .where(Transaction.payment_id == WebhookDelivery.payment_id, Transaction.canonical, ~Transaction.set_aside)
        .correlate(WebhookDelivery)
    )
    found = await session.execute(
        select(WebhookDelivery, Event, WebhookEndpoint, Merchant, mined_at.scalar_subquery())
        .join(Event, Event.id == WebhookDelivery.event_id)
        .join(Merchant, Merchant.id == WebhookDelivery.merchant_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id.in_(ids))
        .order_by(WebhookDelivery.id)
    )
    return [
        DueDelivery(
            id=row.id,
            receiver=row.receiver,
            endpoint_id=row.endpoint_id,
            url=row.url,
            event_id=event.id,
            event_type=event.type,
            payment_id=row.payment_id,
            event_created_at=event.created_at,
            data=event.data,
            secret=merchant.webhook_secret if row.endpoint_id is None else endpoint.secret,
            old_secrets=merchant.old_webhook_secrets if row.endpoint_id is None else endpoint.old_secrets,
            manual=row.manual,
            leased_until=leased_until,
            mined_at=mined,
        )
        for row, event, endpoint, merchant, mined in found
    ]


async def lock_deliveries(session: AsyncSession, ids: Collection[str]) -> dict[str, WebhookDelivery]:
    """By id; locked in the order of their ids."""
    query = select(WebhookDelivery).where(WebhookDelivery.id.in_(ids)).order_by(WebhookDelivery.id).with_for_update()
    return {row.id: row for row in await session.scalars(query)}

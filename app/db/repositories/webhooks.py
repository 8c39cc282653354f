"""Endpoints, and the outbox with its leases."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Integer,
    Subquery,
    and_,
    bindparam,
    case,
    delete,
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
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookReceiver,
)
from app.db.repositories.chains import upsert

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


@dataclass(frozen=True, slots=True)
class WebhookCounts:
    """`due` are those of `pending` whose time has come, under way or waiting; `dead` those that were given up."""

    endpoints_disabled: int
    pending: int
    due: int
    dead: int


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
    asked = or_(WebhookReceiver.probe_at > now, may_be_given_up(now), WebhookReceiver.receiver.in_(busy))
    failing = {row.receiver: row for row in await session.scalars(select(WebhookReceiver).where(asked))}
    full = [receiver for receiver, number in busy.items() if number >= _share(failing.get(receiver))]
    rests = [name for name, row in failing.items() if row.probe_at is not None and row.probe_at > now]
    return [*full, *rests, *(name for name, row in failing.items() if is_given_up(row))]


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


# --- how receivers are


async def lock_receivers(session: AsyncSession, receivers: Collection[str]) -> list[WebhookReceiver]:
    """Those of them that fail, locked in order."""
    query = select(WebhookReceiver).where(WebhookReceiver.receiver.in_(receivers))
    return list(await session.scalars(query.order_by(WebhookReceiver.receiver).with_for_update()))


async def note_failure(session: AsyncSession, receiver: str, now: datetime, unavailable: bool) -> WebhookReceiver:
    """Count a failed attempt; the row stays locked until the transaction ends. `unavailable` is what a breaker counts;
    another failure is an answer, and ends such a row. After a long silence failing begins anew."""
    insert = upsert(session, WebhookReceiver).values(
        receiver=receiver, failure_count=int(unavailable), failing_since=now, last_failed_at=now, probe_at=None
    )
    silent = WebhookReceiver.last_failed_at < now - timedelta(seconds=limits.WEBHOOK_SILENCE_S)
    changes = {
        "failure_count": WebhookReceiver.failure_count + 1 if unavailable else 0,
        "failing_since": case((silent, insert.excluded.failing_since), else_=WebhookReceiver.failing_since),
        "last_failed_at": now,
        "probe_at": None,
    }
    await session.execute(insert.on_conflict_do_update(index_elements=[WebhookReceiver.receiver], set_=changes))
    return await session.get_one(WebhookReceiver, receiver, populate_existing=True)


async def forget_failures(session: AsyncSession, *receivers: str) -> None:
    if receivers:
        await session.execute(delete(WebhookReceiver).where(WebhookReceiver.receiver.in_(receivers)))


async def forget_silent(session: AsyncSession, before: datetime, rows: int) -> int:
    """Forget at most so many receivers whose last failure was before then; returns how many."""
    silent = select(WebhookReceiver.receiver).where(WebhookReceiver.last_failed_at < before).limit(rows)
    receivers = list(await session.scalars(silent.with_for_update(skip_locked=True)))  # others lock them in order
    await forget_failures(session, *receivers)
    return len(receivers)


async def forgive_pause(session: AsyncSession, since: datetime, until: datetime) -> None:
    """Let the time of a pause count for nothing in how long receivers have been failing: nobody asked them then.

    One that was given up stays as it is: what was made for it in the pause is not to be ended with the rest.
    """
    query = select(WebhookReceiver).order_by(WebhookReceiver.receiver).with_for_update()
    for row in await session.scalars(query):
        if is_given_up(row):
            continue
        row.failing_since += until - max(row.failing_since, since)
        row.last_failed_at += until - max(row.last_failed_at, since)


def is_given_up(row: WebhookReceiver) -> bool:
    """Whether it is an address of payments' own that had no success for too long. It stays so until all that was
    pending then is dead; an endpoint is disabled instead."""
    is_own = " " in row.receiver
    return is_own and row.last_failed_at - row.failing_since >= timedelta(seconds=limits.WEBHOOK_GIVE_UP_S)


def may_be_given_up(now: datetime) -> ColumnElement[bool]:
    """All that `is_given_up` is true of, and a few more."""
    return WebhookReceiver.failing_since <= now - timedelta(seconds=limits.WEBHOOK_GIVE_UP_S)


# --- the log


async def lock_own_delivery(
    session: AsyncSession, merchant_id: str, delivery_id: str
) -> tuple[WebhookDelivery, str] | None:
    """A delivery of the merchant's, locked, with its event's type."""
    query = (
        select(WebhookDelivery, Event.type)
        .join(Event, Event.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.id == delivery_id, WebhookDelivery.merchant_id == merchant_id)
        .with_for_update(of=WebhookDelivery)
    )
    row = (await session.execute(query)).first()
    return None if row is None else (row[0], row[1])


async def lock_dead(
    session: AsyncSession,
    merchant_id: str,
    since: datetime,
    endpoint_ids: Collection[str],
    own_urls: bool,
    rows: int,
) -> list[WebhookDelivery]:
    """Dead deliveries made since then to these endpoints, and to payments' own URLs if asked for; oldest first."""
    query = (
        select(WebhookDelivery)
        .where(_dead(merchant_id, since, endpoint_ids, own_urls))
        .order_by(WebhookDelivery.id)
        .limit(rows)
        .with_for_update(skip_locked=True)
    )
    return list(await session.scalars(query))


async def count_dead(session: AsyncSession, merchant_id: str, since: datetime, endpoint_ids: Collection[str]) -> int:
    """How many `lock_dead` would find, payments' own URLs included."""
    query = select(func.count()).select_from(WebhookDelivery).where(_dead(merchant_id, since, endpoint_ids, True))
    return await session.scalar(query) or 0


def _dead(merchant_id: str, since: datetime, endpoint_ids: Collection[str], own_urls: bool) -> ColumnElement[bool]:
    receives = WebhookDelivery.endpoint_id.in_(endpoint_ids)
    return and_(
        WebhookDelivery.merchant_id == merchant_id,
        WebhookDelivery.status == "dead",
        WebhookDelivery.created_at >= since,
        or_(receives, WebhookDelivery.endpoint_id.is_(None)) if own_urls else receives,
    )


async def get_delivery(session: AsyncSession, delivery_id: str) -> WebhookDelivery | None:
    """Any merchant's."""
    return await session.get(WebhookDelivery, delivery_id)


async def list_deliveries(
    session: AsyncSession,
    merchant_id: str,
    status: str | None,
    payment_id: str | None,
    endpoint_id: str | None,
    before_id: str | None,
    limit: int,
) -> list[tuple[WebhookDelivery, str, str]]:
    """Deliveries with the type of their event and the URL that they went to, or will; newest first."""
    url_now = func.coalesce(WebhookEndpoint.url, WebhookDelivery.url)
    query = (
        select(
            WebhookDelivery, Event.type, case((WebhookDelivery.status == "pending", url_now), else_=WebhookDelivery.url)
        )
        .join(Event, Event.id == WebhookDelivery.event_id)
        .outerjoin(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.merchant_id == merchant_id)
    )
    for column, value in (
        (WebhookDelivery.status, status),
        (WebhookDelivery.payment_id, payment_id),
        (WebhookDelivery.endpoint_id, endpoint_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if before_id is not None:
        query = query.where(WebhookDelivery.id < before_id)
    rows = await session.execute(query.order_by(WebhookDelivery.id.desc()).limit(limit))
    return [(delivery, event_type, url) for delivery, event_type, url in rows]


async def list_attempts(session: AsyncSession, delivery_ids: list[str]) -> dict[str, list[WebhookAttempt]]:
    query = select(WebhookAttempt).where(WebhookAttempt.delivery_id.in_(delivery_ids)).order_by(WebhookAttempt.id)
    found: dict[str, list[WebhookAttempt]] = {}
    for attempt in await session.scalars(query):
        found.setdefault(attempt.delivery_id, []).append(attempt)
    return found


async def count_due(session: AsyncSession, now: datetime) -> int:
    query = select(func.count()).where(WebhookDelivery.status == "pending", WebhookDelivery.next_attempt_at <= now)
    return int(await session.scalar(query) or 0)


async def oldest_due(session: AsyncSession, now: datetime) -> datetime | None:
    """Since when the delivery that waits longest is due, without those that wait for a receiver that is only probed,
    or for their end."""
    query = select(func.min(WebhookDelivery.next_attempt_at)).where(
        WebhookDelivery.status == "pending",
        WebhookDelivery.next_attempt_at <= now,
        WebhookDelivery.receiver.not_in(select(WebhookReceiver.receiver).where(_is_probed())),
        WebhookDelivery.receiver.not_in(select(WebhookEndpoint.id).where(is_closed())),
    )
    return await session.scalar(query)


async def count_probed(session: AsyncSession) -> int:
    """Receivers that have failed so often that they are only probed."""
    return await session.scalar(select(func.count()).select_from(WebhookReceiver).where(_is_probed())) or 0


def given_up() -> ColumnElement[bool]:
    """Dead deliveries that were tried; what is not sent because its endpoint is disabled or deleted is none of them."""
    not_wanted = ("endpoint_disabled", "endpoint_deleted")
    return and_(WebhookDelivery.status == "dead", WebhookDelivery.dead_reason.not_in(not_wanted))


def _is_probed() -> ColumnElement[bool]:
    return WebhookReceiver.failure_count >= limits.WEBHOOK_BREAKER_FAILURES


async def counts(session: AsyncSession, now: datetime) -> WebhookCounts:
    """What a gauge shows, of all merchants."""
    disabled = select(func.count()).where(
        WebhookEndpoint.disabled_at.is_not(None), WebhookEndpoint.deleted_at.is_(None)
    )
    pending = select(func.count()).where(WebhookDelivery.status == "pending")
    dead = select(func.count()).where(given_up())
    row = await session.execute(select(disabled.scalar_subquery(), pending.scalar_subquery(), dead.scalar_subquery()))
    endpoints_disabled, pending_count, dead_count = row.one()
    return WebhookCounts(endpoints_disabled, pending_count, await count_due(session, now), dead_count)

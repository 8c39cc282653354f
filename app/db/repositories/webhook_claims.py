"""The outbox's leases: which deliveries a sender takes next, however many wait behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    CTE,
    ColumnElement,
    ScalarSelect,
    Select,
    Subquery,
    and_,
    case,
    exists,
    func,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.core import limits
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
from app.db.repositories.webhooks import IS_PENDING, is_closed


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


async def claim_due(session: AsyncSession, now: datetime, leased_until: datetime, rows: int) -> list[DueDelivery]:
    """Lease at most `rows` due deliveries so that no other sender takes them; merchants take turns, and so do the
    receivers of each, every receiver's longest due first.

    A merchant's turn counts what it has under way, so that one with many receivers that hang takes no more sockets
    than others leave. A receiver never gets more than `WEBHOOK_ENDPOINT_CONCURRENCY` at once, and one that keeps
    failing a single one when its next probe is due (or a person asked for it), so that a slow or dead one keeps no
    others waiting. A payment's events reach a receiver in order while it answers: a later one waits for the first
    attempt of an earlier one, and no longer.

    What goes to an endpoint goes to the URL that it has now.
    """
    takeable = _takeable(now, await _resting(session, now))
    chosen = (
        select(WebhookDelivery.id)
        .join(takeable, takeable.c.id == WebhookDelivery.id)
        .where(_is_free(now), _is_pending(WebhookDelivery))  # asked of locked rows
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
        WebhookDelivery.next_attempt_at <= now,
    )


def _is_pending(row: type[WebhookDelivery]) -> ColumnElement[bool]:
    """`IS_PENDING` of a row that another index finds. With statistics from before a backlog, PostgreSQL would read all
    that is pending for each such row; a range it does not take for a condition of that index."""
    return row.status.between("pending", "pending")


def _takeable(now: datetime, resting: Sequence[str]) -> Subquery:
    """What is due and within its receiver's share: `rank` is its place at its receiver, `turn` at its merchant.

    Each receiver's first few are read in the order of an index, for there may be hundreds of thousands behind them.
    """
    leased = (
        select(WebhookDelivery.receiver, WebhookDelivery.merchant_id).where(WebhookDelivery.leased_until >= now).cte()
    )
    each = _receivers(leased, resting)
    waiting = _waiting(each, now)
    asked_for = waiting.where(WebhookDelivery.manual)
    places = [
        select(
            (each.c.under_way + place).label("rank"),
            case((each.c.resting, _at(asked_for, place)), else_=_at(waiting, place)).label("id"),
        ).where(each.c.under_way + place <= each.c.share)
        for place in range(1, limits.WEBHOOK_ENDPOINT_CONCURRENCY + 1)
    ]
    due = union_all(*places).subquery()
    of_merchant = _numbers(leased.c.merchant_id)
    turn = func.row_number().over(partition_by=WebhookDelivery.merchant_id, order_by=(due.c.rank, due.c.id))
    return (
        select(due.c.id, due.c.rank, (turn + func.coalesce(of_merchant.c.number, 0)).label("turn"))
        .join(WebhookDelivery, WebhookDelivery.id == due.c.id)
        .outerjoin(of_merchant, of_merchant.c.whose == WebhookDelivery.merchant_id)
        .subquery()
    )


def _receivers(leased: CTE, resting: Sequence[str]) -> CTE:
    """Those that something waits for and that may get something, with what they have `under_way`, and their `share`."""
    # One look into the index for each name: a DISTINCT reads it all.
    first = select(func.min(WebhookDelivery.receiver).label("receiver")).where(IS_PENDING)
    names = first.cte(recursive=True)
    following = first.where(WebhookDelivery.receiver > names.c.receiver).scalar_subquery()
    names = names.union_all(select(following).where(names.c.receiver.is_not(None)))
    of_receiver = _numbers(leased.c.receiver)
    is_failing = WebhookReceiver.failure_count >= limits.WEBHOOK_BREAKER_FAILURES
    return (
        select(
            names.c.receiver,
            names.c.receiver.in_(resting).label("resting"),
            func.coalesce(of_receiver.c.number, 0).label("under_way"),
            case((is_failing, 1), else_=limits.WEBHOOK_ENDPOINT_CONCURRENCY).label("share"),
        )
        .outerjoin(of_receiver, of_receiver.c.whose == names.c.receiver)
        .outerjoin(WebhookReceiver, WebhookReceiver.receiver == names.c.receiver)
        .where(names.c.receiver.is_not(None), names.c.receiver.not_in(select(WebhookEndpoint.id).where(is_closed())))
        .cte()
    )


def _waiting(each: CTE, now: datetime) -> Select[str]:
    """A receiver's due deliveries that are no sender's and wait for no earlier one; what is due longest comes first."""
    earlier = aliased(WebhookDelivery)
    waits_for_earlier = exists().where(
        earlier.payment_id == WebhookDelivery.payment_id,
        earlier.endpoint_id.is_not_distinct_from(WebhookDelivery.endpoint_id),
        earlier.event_version < WebhookDelivery.event_version,
        _is_pending(earlier),
        earlier.attempt_count == 0,
    )
    return (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.receiver == each.c.receiver, IS_PENDING, _is_free(now), ~waits_for_earlier)
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
        .correlate(each)
    )


def _at(waiting: Select[str], place: int) -> ScalarSelect[str]:
    return waiting.limit(1).offset(place - 1).scalar_subquery()


def _numbers(whose: ColumnElement[str]) -> Subquery:
    """How many are under way."""
    return select(whose.label("whose"), func.count().label("number")).group_by(whose).subquery()


async def _resting(session: AsyncSession, now: datetime) -> list[str]:
    """Receivers that get nothing now but what a person asks for: their pauses last, or they were given up."""
    asked = or_(WebhookReceiver.probe_at > now, receivers.may_be_given_up(now))
    rows = await session.scalars(select(WebhookReceiver).where(asked))
    return [row.receiver for row in rows if (row.probe_at or now) > now or receivers.is_given_up(row)]


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

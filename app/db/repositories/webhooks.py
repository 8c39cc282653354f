"""Endpoints, and the outbox: who is told what."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Integer,
    bindparam,
    literal_column,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.db.driver import QuickSession
from app.db.models import (
    WebhookDelivery,
    WebhookEndpoint,
)

# Literals, which the indexes of these rows alone are used for.
IS_PENDING: Final = WebhookDelivery.status == literal_column("'pending'")
IS_DEAD: Final = WebhookDelivery.status == literal_column("'dead'")

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


def is_closed() -> ColumnElement[bool]:
    """Endpoints that get nothing. A large backlog of theirs is pending until the worker has ended it."""
    return or_(WebhookEndpoint.disabled_at.is_not(None), WebhookEndpoint.deleted_at.is_not(None))


async def lock_deliveries(session: AsyncSession, ids: Collection[str]) -> dict[str, WebhookDelivery]:
    """By id; locked in the order of their ids."""
    query = select(WebhookDelivery).where(WebhookDelivery.id.in_(ids)).order_by(WebhookDelivery.id).with_for_update()
    return {row.id: row for row in await session.scalars(query)}

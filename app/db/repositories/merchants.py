"""Merchants, keys and idempotency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, delete, exists, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.driver import QuickSession
from app.db.models import ApiKey, IdempotencyKey, Merchant, WebhookEndpoint
from app.db.repositories.chains import upsert
from app.db.types import UtcDateTime


async def first(session: AsyncSession) -> Merchant | None:
    """The merchant that the settings speak of: the oldest one."""
    return await session.scalar(select(Merchant).order_by(Merchant.created_at, Merchant.id).limit(1))


async def get(session: AsyncSession, merchant_id: str) -> Merchant | None:
    return await session.get(Merchant, merchant_id)


async def lock(session: AsyncSession, merchant_id: str) -> None:
    """For whoever counts what a merchant has before adding to it; payments are made meanwhile."""
    await session.execute(select(Merchant.id).where(Merchant.id == merchant_id).with_for_update(key_share=True))


async def by_name(session: AsyncSession, name: str) -> Merchant | None:
    return await session.scalar(select(Merchant).where(Merchant.name == name))


async def names(session: AsyncSession) -> dict[str, str]:
    """Every merchant's name by id, the oldest first."""
    rows = await session.execute(select(Merchant.id, Merchant.name).order_by(Merchant.created_at, Merchant.id))
    return {merchant_id: name for merchant_id, name in rows}


# Made once, and without an entity: every request runs it, and SQLAlchemy's part of it is a third then.
_BY_KEY_HASH: Final = (
    select(
        *(ApiKey.id, ApiKey.scopes, Merchant.id, Merchant.confirmations_required, Merchant.confirmation_tiers),
        *(Merchant.expires_in_s, Merchant.tolerance),
        exists().where(WebhookEndpoint.merchant_id == Merchant.id, WebhookEndpoint.deleted_at.is_(None)),
    )
    .join(Merchant, Merchant.id == ApiKey.merchant_id)
    .where(
        ApiKey.key_hash == bindparam("key_hash"),
        or_(ApiKey.revoked_at.is_(None), ApiKey.revoked_at > bindparam("now", type_=UtcDateTime)),
    )
)


@dataclass(frozen=True, slots=True)
class KnownKey:
    """An API key with its merchant's defaults, as they are stored."""

    id: str
    scopes: Sequence[str]
    merchant_id: str
    confirmations_required: int | None
    confirmation_tiers: Sequence[dict[str, Any]]
    expires_in_s: int
    tolerance: str
    has_endpoints: bool


async def by_key_hash(session: QuickSession, key_hash: bytes, now: datetime) -> KnownKey | None:
    """The API key with that hash unless it was revoked before `now`."""
    for row in await session.execute(_BY_KEY_HASH, {"key_hash": key_hash, "now": now}):
        return KnownKey(*row)
    return None


async def keys_named(session: AsyncSession, merchant_id: str, name: str) -> list[ApiKey]:
    query = select(ApiKey).where(ApiKey.merchant_id == merchant_id, ApiKey.name == name)
    return list(await session.scalars(query))


async def get_key(session: AsyncSession, key_id: str) -> ApiKey | None:
    """Locked, for whoever changes it."""
    return await session.scalar(select(ApiKey).where(ApiKey.id == key_id).with_for_update())


async def key_of_hash(session: AsyncSession, key_hash: bytes) -> ApiKey | None:
    """The key with that hash, revoked or not, whoever's it is."""
    return await session.scalar(select(ApiKey).where(ApiKey.key_hash == key_hash))


async def list_keys(session: AsyncSession, merchant_id: str, before_id: str | None, limit: int) -> list[ApiKey]:
    """A merchant's keys, revoked ones too, newest first, below `before_id`."""
    query = select(ApiKey).where(ApiKey.merchant_id == merchant_id)
    if before_id is not None:
        query = query.where(ApiKey.id < before_id)
    return list(await session.scalars(query.order_by(ApiKey.id.desc()).limit(limit)))


async def all_keys(session: AsyncSession) -> list[tuple[str, ApiKey]]:
    """Every merchant's keys with the merchant's name, oldest first."""
    query = select(Merchant.name, ApiKey).join(Merchant, Merchant.id == ApiKey.merchant_id).order_by(ApiKey.id)
    return [(name, key) for name, key in await session.execute(query)]


async def count_keys(session: AsyncSession, merchant_id: str) -> int:
    """How many keys of the merchant work."""
    query = select(func.count()).where(ApiKey.merchant_id == merchant_id, ApiKey.revoked_at.is_(None))
    return await session.scalar(query) or 0


async def note_use(session: AsyncSession, key_id: str, now: datetime, unless_after: datetime) -> None:
    """Set a key's `last_used_at`, unless somebody else has just done so."""
    stale = ApiKey.last_used_at.is_(None) | (ApiKey.last_used_at <= unless_after)
    await session.execute(update(ApiKey).where(ApiKey.id == key_id, stale).values(last_used_at=now))


async def claim_idempotency_key(session: AsyncSession, row: dict[str, object]) -> bool:
    """Claim a key; False when somebody came first.

    PostgreSQL lets the second INSERT wait for the first one's transaction; SQLite's writers wait at BEGIN IMMEDIATE.
    """
    inserted = await session.execute(
        upsert(session, IdempotencyKey).values(row).on_conflict_do_nothing().returning(IdempotencyKey.key)
    )
    return inserted.first() is not None


@dataclass(frozen=True, slots=True)
class KeyAnswer:
    """What the first request with an idempotency key asked, by its hash, and was answered."""

    request_hash: bytes
    status: int
    body: Any


# Made once: every payment for an order that comes with a key runs it.
_BY_IDEMPOTENCY_KEY: Final = select(
    IdempotencyKey.request_hash, IdempotencyKey.response_status, IdempotencyKey.response_body
).where(*(IdempotencyKey.__table__.c[name] == bindparam(name) for name in ("merchant_id", "method", "path", "key")))


async def answer_of_key(session: QuickSession, scope: Mapping[str, Any]) -> KeyAnswer | None:
    """By a scope's `merchant_id`, `method`, `path` and `key`; None when nobody has used it."""
    for row in await session.execute(_BY_IDEMPOTENCY_KEY, scope):
        return KeyAnswer(*row)
    return None


async def forget_idempotency_keys(session: AsyncSession, older_than: datetime, rows: int) -> int:
    """Delete the oldest of them, at most so many; returns how many."""
    key = (IdempotencyKey.merchant_id, IdempotencyKey.method, IdempotencyKey.path, IdempotencyKey.key)
    oldest = select(*key).where(IdempotencyKey.created_at < older_than).order_by(IdempotencyKey.created_at).limit(rows)
    deleted = await session.execute(
        delete(IdempotencyKey)
        .where(tuple_(*key).in_(oldest))
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    )
    return len(deleted.all())

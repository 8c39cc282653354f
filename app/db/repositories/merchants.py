"""Merchants, keys and idempotency."""

from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import ApiKey, IdempotencyKey, Merchant
from app.db.repositories.chains import upsert


async def first(session: AsyncSession) -> Merchant | None:
    """The merchant that the settings speak of: the oldest one."""
    return await session.scalar(select(Merchant).order_by(Merchant.created_at, Merchant.id).limit(1))


async def get(session: AsyncSession, merchant_id: str) -> Merchant | None:
    return await session.get(Merchant, merchant_id)


async def by_key_hash(session: AsyncSession, key_hash: bytes) -> ApiKey | None:
    """The API key with that hash unless it is revoked."""
    return await session.scalar(select(ApiKey).where(ApiKey.key_hash == key_hash, ApiKey.revoked_at.is_(None)))


async def keys_named(session: AsyncSession, merchant_id: str, name: str) -> list[ApiKey]:
    query = select(ApiKey).where(ApiKey.merchant_id == merchant_id, ApiKey.name == name)
    return list(await session.scalars(query))


async def claim_idempotency_key(session: AsyncSession, row: dict[str, object]) -> IdempotencyKey | None:
    """Claim a key. None: it is ours. Otherwise the row of the one who came first.

    PostgreSQL lets the second INSERT wait for the first one's transaction; SQLite's writers wait at BEGIN IMMEDIATE.
    """
    inserted = await session.execute(
        upsert(session, IdempotencyKey).values(row).on_conflict_do_nothing().returning(IdempotencyKey.key)
    )
    if inserted.first() is not None:
        return None
    return await session.get(
        IdempotencyKey, (row["merchant_id"], row["method"], row["path"], row["key"]), populate_existing=True
    )


async def forget_idempotency_keys(session: AsyncSession, older_than: datetime) -> None:
    await session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < older_than))

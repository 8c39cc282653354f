"""The first merchant and its key, and who an API key belongs to."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import utc_now
from app.core.errors import Unauthorized
from app.core.ids import new_id
from app.core.secrets import hash_api_key, new_api_key, new_webhook_secret, rotated
from app.db.models import ApiKey, Merchant
from app.db.repositories import merchants
from app.services.context import Context

SETTINGS_KEY = "PAYWATCH_API_KEY"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request."""

    merchant_id: str
    key_id: str


async def ensure_first_merchant(context: Context) -> str | None:
    """Make the first merchant, with the settings' key and signing secret; a changed setting replaces the old value.

    Returns a new API key to be shown once, in embedded mode without PAYWATCH_API_KEY at the very first start. Raises
    WrongSecretKey when the stored secrets were encrypted under another SECRET_KEY.
    """
    settings = context.settings
    async with context.db.write() as session:
        merchant = await merchants.first(session)
        secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else None
        if merchant is None:
            merchant = Merchant(
                id=new_id("mer"),
                name="default",
                webhook_secret=context.box.encrypt(secret or new_webhook_secret()),
                created_at=utc_now(),
            )
            session.add(merchant)
            await session.flush()
        else:
            stored = context.box.decrypt(merchant.webhook_secret)  # also without a new one: a wrong key shows now
            if secret is not None and secret != stored:
                _rotate_secret(merchant, context.box.encrypt(secret))
        keys = await merchants.keys_named(session, merchant.id, SETTINGS_KEY)
        if settings.api_key is not None:
            await _replace_key(session, merchant.id, keys, settings.api_key.get_secret_value())
        elif settings.embedded and not keys:
            key = new_api_key()
            await _replace_key(session, merchant.id, keys, key)
            return key
    return None


async def first_webhook_secret(context: Context) -> str | None:
    """The first merchant's signing secret; None before the first start."""
    async with context.db.read() as session:
        merchant = await merchants.first(session)
    return None if merchant is None else context.box.decrypt(merchant.webhook_secret)


async def authenticate(session: AsyncSession, key: str) -> Caller:
    """Whose key it is. Raises Unauthorized."""
    row = await merchants.by_key_hash(session, hash_api_key(key))
    if row is None:
        raise Unauthorized("the API key is not known")
    return Caller(row.merchant_id, row.id)


def _rotate_secret(merchant: Merchant, sealed: bytes) -> None:
    """The replaced secret signs as well for a day; of several, the newest."""
    now = utc_now()
    until = now + timedelta(seconds=limits.WEBHOOK_OLD_SECRET_S)
    old = rotated(merchant.webhook_secret, merchant.old_webhook_secrets, now, until)
    merchant.old_webhook_secrets = old[: limits.WEBHOOK_OLD_SECRETS]
    merchant.webhook_secret = sealed


async def _replace_key(session: AsyncSession, merchant_id: str, keys: list[ApiKey], key: str) -> None:
    now = utc_now()
    hashed = hash_api_key(key)
    for old in keys:
        if old.key_hash == hashed:
            old.revoked_at = None
        elif old.revoked_at is None:
            old.revoked_at = now
    if all(old.key_hash != hashed for old in keys):
        session.add(
            ApiKey(id=new_id("key"), merchant_id=merchant_id, name=SETTINGS_KEY, key_hash=hashed, created_at=now)
        )

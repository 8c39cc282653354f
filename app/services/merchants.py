"""Merchants: the first one, which the settings describe, and those that the operator adds."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import utc_now
from app.core.errors import ConfigError, NotFound
from app.core.ids import new_id
from app.core.secrets import hash_api_key, new_api_key, new_webhook_secret, rotated
from app.db.models import ApiKey, Merchant
from app.db.repositories import merchants
from app.services.context import Context
from app.services.keys import SETTINGS_KEY, KeyView, NewKeyView, Scope, create_key, key_view


@dataclass(frozen=True, slots=True)
class MerchantKey:
    """A key and its merchant's name."""

    merchant: str
    key: KeyView


async def ensure_first_merchant(context: Context) -> str | None:
    """Make the first merchant, with the settings' key and signing secret; a changed setting replaces the old value.

    Returns a new API key to be shown once, in embedded mode without PAYWATCH_API_KEY at the very first start. Raises
    WrongSecretKey when the stored secrets were encrypted under another SECRET_KEY, and ConfigError when the settings'
    key is another key already.
    """
    try:
        return await _ensure_first_merchant(context)
    except IntegrityError:  # a server that started at the same moment has made it
        return await _ensure_first_merchant(context)


async def _ensure_first_merchant(context: Context) -> str | None:
    settings = context.settings
    async with context.db.write() as session:
        merchant = await merchants.first(session)
        secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else None
        if merchant is None:
            merchant = await _add(context, session, "default", secret or new_webhook_secret())
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


async def webhook_secret(context: Context, merchant: str | None) -> str:
    """The signing secret of the merchant with that name, None being the first. Raises ConfigError."""
    async with context.db.read() as session:
        owner = await (merchants.first(session) if merchant is None else merchants.by_name(session, merchant))
    if owner is None and merchant is None:
        raise ConfigError("there is no merchant yet: start the server once, which makes the first one")
    if owner is None:
        raise ConfigError(f"there is no merchant {merchant!r}")
    return context.box.decrypt(owner.webhook_secret)


async def named(session: AsyncSession, name: str | None) -> dict[str, str]:
    """The merchant of that name by id, None being all of them. Raises NotFound."""
    found = {id_: each for id_, each in (await merchants.names(session)).items() if name in (None, each)}
    if name is not None and not found:
        raise NotFound(f"there is no merchant {name!r}")
    return found


async def make_key(
    context: Context, merchant: str | None, new_merchant: bool, name: str, scopes: Collection[Scope]
) -> NewKeyView:
    """Make a key of the merchant with that name, None being the first; `new_merchant` makes the merchant if need be.

    Raises ConfigError when there is no such merchant, and what `create_key` raises.
    """
    async with context.db.write() as session:
        owner = await _named(context, session, merchant, new_merchant)
        return await create_key(session, owner.id, name, scopes)


async def keys_of_all(context: Context) -> list[MerchantKey]:
    """Every merchant's keys, oldest first."""
    async with context.db.read() as session:
        return [MerchantKey(name, key_view(row)) for name, row in await merchants.all_keys(session)]


async def _named(context: Context, session: AsyncSession, name: str | None, make: bool) -> Merchant:
    first = await merchants.first(session)
    if first is None:  # otherwise the one made here would be the settings' own
        raise ConfigError("there is no merchant yet: start the server once, which makes the first one")
    found = first if name is None else await merchants.by_name(session, name)
    if found is not None:
        return found
    if name is None or not make:
        raise ConfigError(f"there is no merchant {name!r}; add --new-merchant to make one")
    return await _add(context, session, name, new_webhook_secret())


async def _add(context: Context, session: AsyncSession, name: str, webhook_secret: str) -> Merchant:
    merchant = Merchant(
        id=new_id("mer"), name=name, webhook_secret=context.box.encrypt(webhook_secret), created_at=utc_now()
    )
    session.add(merchant)
    await session.flush()
    return merchant


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
        other = await merchants.key_of_hash(session, hashed)
        if other is not None:
            raise ConfigError(
                f"{SETTINGS_KEY}: is the API key {other.id} ({other.name}) already; choose another string"
            )
        session.add(
            ApiKey(
                id=new_id("key"),
                merchant_id=merchant_id,
                name=SETTINGS_KEY,
                key_hash=hashed,
                scopes=["admin"],
                created_at=now,
            )
        )

"""API keys: who one belongs to, what it may do, when it was last used."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, get_args

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import rfc3339, utc_now
from app.core.errors import Conflict, FieldError, Forbidden, InvalidRequest, NotFound, Unauthorized
from app.core.ids import new_id
from app.core.logger import get_logger
from app.core.secrets import hash_api_key, new_api_key
from app.db.driver import QuickSession
from app.db.engine import Database
from app.db.models import ApiKey
from app.db.repositories import merchants
from app.services.context import Context
from app.services.defaults import Defaults, defaults_of
from app.services.views import View

log = get_logger(__name__)

Scope = Literal["payments:read", "payments:write", "webhooks:write", "sweeps:read", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
SETTINGS_KEY: Final = "PAYWATCH_API_KEY"  # the name of the key that the settings hold


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request, and what for."""

    merchant_id: str
    key_id: str
    scopes: frozenset[str]
    defaults: Defaults  # of the merchant
    has_endpoints: bool  # for webhooks, disabled ones too

    def require(self, scope: Scope) -> None:
        """Raises Forbidden unless the key has the scope; `admin` has all."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"this API key lacks the scope {scope}; it has {', '.join(sorted(self.scopes))}")


class KeyView(View):
    """An API key without its secret. `last_used_at` is right to the minute; `revoked_at` may be a time to come."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    scopes: list[Scope]
    created_at: str
    last_used_at: str | None
    revoked_at: str | None


class NewKeyView(KeyView):
    """A key with what is sent as `Authorization: Bearer …`, which is shown this once."""

    key: str


class KeyUse:
    """Writes when keys were last used, beside the requests: none waits for it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._noted: dict[str, float] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def note(self, key_id: str) -> None:
        """The key was used now. At most one write per key in `LAST_USED_EVERY_S`."""
        now = time.monotonic()
        if now - self._noted.get(key_id, -limits.LAST_USED_EVERY_S) < limits.LAST_USED_EVERY_S:
            return
        self._noted[key_id] = now
        task = asyncio.create_task(self._write(key_id))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """Finish what is being written; a database that hangs ends it by its own timeouts."""
        await asyncio.gather(*self._writing)

    async def _write(self, key_id: str) -> None:
        now = utc_now()
        try:
            async with self._db.write() as session:
                await merchants.note_use(session, key_id, now, now - timedelta(seconds=limits.LAST_USED_EVERY_S))
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            log.warning("a key's last use was not written", key=key_id, reason=type(error).__name__)


async def authenticate(session: QuickSession, key: str) -> Caller:
    """Whose key it is. Raises Unauthorized."""
    row = await merchants.by_key_hash(session, hash_api_key(key), utc_now())
    if row is None:
        raise Unauthorized("the API key is not known")
    return Caller(row.merchant_id, row.id, frozenset(row.scopes), defaults_of(row), row.has_endpoints)


async def create_key(session: AsyncSession, merchant_id: str, name: str, scopes: Collection[Scope]) -> NewKeyView:
    """Make a key. Raises Conflict when the merchant has too many, InvalidRequest for the name of the settings' key."""
    if name == SETTINGS_KEY:
        message = f"{SETTINGS_KEY} is the name of the key in the settings"
        raise InvalidRequest(message, [FieldError("name", message)])
    await merchants.lock(session, merchant_id)
    if await merchants.count_keys(session, merchant_id) >= limits.KEYS_PER_MERCHANT:
        raise Conflict(f"a merchant has at most {limits.KEYS_PER_MERCHANT} keys; revoke some")
    return _add(session, merchant_id, name, scopes)


def _add(session: AsyncSession, merchant_id: str, name: str, scopes: Collection[str]) -> NewKeyView:
    key = new_api_key()
    row = ApiKey(
        id=new_id("key"),
        merchant_id=merchant_id,
        name=name,
        key_hash=hash_api_key(key),
        scopes=sorted(set(scopes)),
        created_at=utc_now(),
    )
    session.add(row)
    return NewKeyView(**key_view(row).model_dump(), key=key)


async def list_keys(
    session: AsyncSession, merchant_id: str, before_id: str | None, limit: int
) -> tuple[list[KeyView], str | None]:
    """A page of the merchant's keys, newest first, revoked ones too."""
    rows = await merchants.list_keys(session, merchant_id, before_id, limit + 1)
    return [key_view(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None


async def revoke_key(context: Context, session: AsyncSession, key_id: str, merchant_id: str | None) -> bool:
    """Let a key work no longer; False when it does not already. `merchant_id` None is the operator.

    Raises NotFound, also for somebody else's, and Conflict for the key in the settings, which the next start would
    bring back.
    """
    row = await _changeable(context, session, key_id, merchant_id)
    now = utc_now()
    if row.revoked_at is not None and row.revoked_at <= now:
        return False
    row.revoked_at = now
    return True


async def find_revocation(context: Context, session: AsyncSession, key_id: str) -> KeyView | None:
    """The key that the operator's `revoke_key` would end; None when it has ended. Raises as that does."""
    row = await _changeable(context, session, key_id, merchant_id=None)
    return None if row.revoked_at is not None and row.revoked_at <= utc_now() else key_view(row)


async def find_rotation(context: Context, session: AsyncSession, key_id: str) -> KeyView:
    """The key that `rotate_key` would replace. Raises as that does."""
    return key_view(await _rotatable(context, session, key_id))


async def rotate_key(context: Context, session: AsyncSession, key_id: str, grace_s: int, by: str) -> NewKeyView:
    """Make a key with the same merchant, name and scopes; the old one works for `grace_s` seconds more.

    Raises NotFound, and Conflict for a key that is revoked or rotated already, or that stands in the settings.
    """
    row = await _rotatable(context, session, key_id)
    row.revoked_at = utc_now() + timedelta(seconds=grace_s)
    made = _add(session, row.merchant_id, row.name, row.scopes)
    log.warning("key rotated by an operator", key=key_id, new_key=made.id, grace_s=grace_s, operator=by)
    return made


async def _rotatable(context: Context, session: AsyncSession, key_id: str) -> ApiKey:
    row = await _changeable(context, session, key_id, merchant_id=None)
    if row.revoked_at is not None:
        when = "works until" if row.revoked_at > utc_now() else "was revoked"
        raise Conflict(
            f"{key_id} {when} {rfc3339(row.revoked_at)}; there is nothing to rotate. "
            "Where its new key was never seen, `paywatch keys create` makes another"
        )
    return row


async def _changeable(context: Context, session: AsyncSession, key_id: str, merchant_id: str | None) -> ApiKey:
    row = await merchants.get_key(session, key_id)
    if row is None or merchant_id not in (None, row.merchant_id):
        raise NotFound(f"there is no API key {key_id!r}")
    # In production only the server knows whether it has that setting: an operator's shell or a worker need not.
    settings = context.settings
    is_elsewhere = merchant_id is None and not settings.embedded
    if row.name == SETTINGS_KEY and (settings.api_key is not None or is_elsewhere):
        raise Conflict(
            f"this key is {SETTINGS_KEY} of the gateway's settings, and its next start would bring it back; change it "
            f"there. Where it is not set any more, DELETE /v1/keys/{key_id} ends it"
        )
    return row


def key_view(row: ApiKey) -> KeyView:
    return KeyView(
        id=row.id,
        name=row.name,
        scopes=row.scopes,  # type: ignore[arg-type]
        created_at=rfc3339(row.created_at),
        last_used_at=rfc3339(row.last_used_at) if row.last_used_at else None,
        revoked_at=rfc3339(row.revoked_at) if row.revoked_at else None,
    )

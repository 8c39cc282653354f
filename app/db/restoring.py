"""What both databases' restores share: their error, and what a restored database takes over from the replaced one.

A backup is of the past. What an operator has stopped or revoked since then must not come back to life by a restore, and
an address that was given out since then must not be given out again.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from app.core.clock import utc_now
from app.core.errors import PaywatchError
from app.db.models import ApiKey, ChainState, DepositAddress, Merchant, Pause, WebhookEndpoint
from app.db.repositories.pauses import SWEEPING

Stops = Literal["taken over", "sweeping paused", "lost"]

ADDRESSES: Final = DepositAddress.__tablename__
PAUSES: Final = Pause.__tablename__
ENDPOINTS: Final = WebhookEndpoint.__tablename__
MERCHANTS: Final = Merchant.__tablename__

_PAUSES: Final = """
    INSERT INTO {restored}.pauses (what, reason, paused_by, since)
    SELECT what, reason, paused_by, since FROM {replaced}.pauses WHERE true ON CONFLICT DO NOTHING
"""
_HALTS: Final = """
    UPDATE {restored}.chain_states AS new SET halt_code = old.halt_code, halt_detail = old.halt_detail
    FROM {replaced}.chain_states AS old WHERE old.chain_id = new.chain_id
    AND old.halt_code = 'operator' AND (new.halt_code IS NULL OR new.halt_code = 'config')
"""
# Those made since come along: a key that was rotated would else end without its successor.
_KEYS: Final = """
    INSERT INTO {restored}.api_keys (id, merchant_id, name, key_hash, scopes, created_at, last_used_at, revoked_at)
    SELECT id, merchant_id, name, key_hash, scopes, created_at, last_used_at, revoked_at FROM {replaced}.api_keys
    WHERE merchant_id IN (SELECT id FROM {restored}.merchants) ON CONFLICT DO NOTHING
"""
_REVOKED: Final = """
    UPDATE {restored}.api_keys AS new SET revoked_at = old.revoked_at
    FROM {replaced}.api_keys AS old WHERE old.id = new.id
    AND old.revoked_at IS NOT NULL AND (new.revoked_at IS NULL OR new.revoked_at > old.revoked_at)
"""
_ENDED: Final = """
    UPDATE {restored}.webhook_endpoints AS new SET
    deleted_at = coalesce(new.deleted_at, old.deleted_at),
    disabled_at = coalesce(new.disabled_at, old.disabled_at),
    disabled_reason = CASE WHEN new.disabled_at IS NULL THEN old.disabled_reason ELSE new.disabled_reason END
    FROM {replaced}.webhook_endpoints AS old WHERE old.id = new.id
"""
# A rotation puts the old secret first, until a later time than any before it.
_ROTATED: Final = """
    UPDATE {{restored}}.{table} AS new SET {now} = old.{now}, {before} = old.{before}
    FROM {{replaced}}.{table} AS old WHERE old.id = new.id
    AND old.{before} -> 0 ->> 'until' > coalesce(new.{before} -> 0 ->> 'until', '')
"""
_ENDPOINT_SECRETS: Final = _ROTATED.format(table=ENDPOINTS, now="secret", before="old_secrets")
_MERCHANT_SECRETS: Final = _ROTATED.format(table=MERCHANTS, now="webhook_secret", before="old_webhook_secrets")
# (table, statement) of SQLite and PostgreSQL alike, where both databases have the table.
TAKEN_OVER: Final = (
    (PAUSES, _PAUSES),
    (ChainState.__tablename__, _HALTS),
    (ApiKey.__tablename__, _KEYS),
    (ApiKey.__tablename__, _REVOKED),
    (ENDPOINTS, _ENDED),
    (ENDPOINTS, _ENDPOINT_SECRETS),
    (MERCHANTS, _MERCHANT_SECRETS),
)
_PAUSE_SWEEPING: Final = """
    INSERT INTO {restored}.pauses (what, reason, paused_by, since)
    VALUES ('{what}', '{reason}', 'paywatch restore', '{since}') ON CONFLICT DO NOTHING
"""
_UNKNOWN: Final = "restored from a backup: what was stopped, revoked or rotated since then is not known here"


class DumpError(PaywatchError):
    """A backup or restore was not done; the database is as it was, and no half backup is left."""

    code = "dump_error"
    title = "The backup or restore could not be done"


@dataclass(frozen=True, slots=True)
class Replaced:
    """What became of the database that was there. `kept`: its files, SQLite's alone.

    `stops`: its pauses, operators' halts, API keys, ended webhook endpoints and rotated secrets were taken over; or it
    was not there, could not be read, or was a new one (it had given out fewer addresses than the backup), so sweeping
    was paused; or the backup is of a version that knew no pauses, so they are lost.
    """

    kept: tuple[Path, ...]
    stops: Stops


def pause_sweeping(restored: str, zone: str = "") -> str:
    """The statement for a database whose stops nobody knows any more."""
    since = f"{utc_now():%Y-%m-%d %H:%M:%S.%f}{zone}"
    return _PAUSE_SWEEPING.format(restored=restored, what=SWEEPING, reason=_UNKNOWN, since=since)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, as the files already are."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

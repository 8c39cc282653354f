"""`Idempotency-Key`: the claim, the work and the stored answer share one transaction.

`POST /v1/payments` inserts a key with its answer beside the payment; other calls claim first, and keep the
answer last. Either way a concurrent request with the same key waits at the row, and gives the answer that it holds.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import limits
from app.core.clock import utc_now
from app.core.errors import IdempotencyMismatch, ServiceUnavailable
from app.db.driver import QuickSession
from app.db.models import IdempotencyKey
from app.db.repositories import merchants


@dataclass(frozen=True, slots=True)
class Claim:
    """Scope of a key: merchant, method and path. `request_hash` tells one body from another."""

    merchant_id: str
    method: str
    path: str
    key: str
    request_hash: bytes

    @property
    def scope(self) -> dict[str, str]:
        """What a key's row is found by."""
        return {"merchant_id": self.merchant_id, "method": self.method, "path": self.path, "key": self.key}


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What the first request with a key was answered."""

    status: int
    body: Any


async def find(session: QuickSession, wanted: Claim) -> StoredAnswer | None:
    """The stored answer of a key, None while there is none. Raises IdempotencyMismatch for another body."""
    found = await merchants.answer_of_key(session, wanted.scope)
    if found is None:
        return None
    if found.request_hash != wanted.request_hash:
        raise IdempotencyMismatch("this Idempotency-Key was used with another body")
    return StoredAnswer(found.status, found.body)


def answered(wanted: Claim, status: int, body: Any) -> IdempotencyKey:
    """A key's row with its answer; only 2xx answers come here."""
    return IdempotencyKey(**_row(wanted, status, body))


async def claim(session: AsyncSession, wanted: Claim) -> StoredAnswer | None:
    """Claim a key: None when it is ours, or what the first request was answered.

    A concurrent request with the same key waits here until the first one's transaction ends. Raises
    IdempotencyMismatch when the key came with another body before.
    """
    for _ in range(limits.RACE_TRIES):
        if await merchants.claim_idempotency_key(session, _row(wanted, 0, None)):
            return None
        answer = await find(session, wanted)
        if answer is not None:  # else it was an old key, which has been forgotten just now
            return answer
    raise ServiceUnavailable("this Idempotency-Key is being forgotten; try again")


async def keep(session: AsyncSession, wanted: Claim, status: int, body: Any) -> None:
    """Store the answer beside the claim; a request that fails rolls both back. Only 2xx answers come here."""
    row = await session.get_one(IdempotencyKey, wanted.scope)
    row.response_status = status
    row.response_body = body


async def forget_old(session: AsyncSession) -> int:
    """Delete keys older than `IDEMPOTENCY_KEEP_S`, at most `HOUSEKEEPING_ROWS` of them; returns how many."""
    older_than = utc_now() - timedelta(seconds=limits.IDEMPOTENCY_KEEP_S)
    return await merchants.forget_idempotency_keys(session, older_than, limits.HOUSEKEEPING_ROWS)


def _row(wanted: Claim, status: int, body: Any) -> dict[str, Any]:
    answer = {"response_status": status, "response_body": body, "created_at": utc_now()}
    return wanted.scope | {"request_hash": wanted.request_hash} | answer

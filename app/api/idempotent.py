"""`Idempotency-Key` in handlers."""

import hashlib
import json
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from app.api.deps import Gateway
from app.services import idempotency
from app.services.idempotency import Claim, StoredAnswer
from app.services.keys import Caller


def claim_of(request: Request, caller: Caller, body: BaseModel | None, key: str | None) -> Claim | None:
    """What a request claims; None without a key."""
    if key is None:
        return None
    asked = {} if body is None else body.model_dump(mode="json", exclude_unset=True)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()  # JSON's objects have no order
    return Claim(caller.merchant_id, request.method, request.scope["path"], key, digest)


def replayed(answer: StoredAnswer) -> Response:
    return JSONResponse(answer.body, status_code=answer.status, headers={"Idempotent-Replayed": "true"})


async def answered_before(gateway: Gateway, claim: Claim | None, sealed: bool = False) -> Response | None:
    """What a claim was answered, for a request that would be refused by now; None without such an answer."""
    if claim is None:
        return None
    async with gateway.context.db.read() as session:
        answer = await idempotency.find(session, claim)
    return None if answer is None else _again(gateway, answer, sealed)


async def answer_once(
    gateway: Gateway,
    claim: Claim | None,
    status: int,
    work: Callable[[AsyncSession], Awaitable[BaseModel]],
    sealed: bool = False,
) -> Response:
    """Do `work` in a transaction unless its claim was answered before. A `sealed` answer is stored encrypted."""
    async with gateway.context.db.write() as session:
        if claim is not None:
            answer = await idempotency.claim(session, claim)
            if answer is not None:
                return _again(gateway, answer, sealed)
        content = (await work(session)).model_dump(mode="json", by_alias=True)
        if claim is not None:
            kept = gateway.context.box.encrypt(json.dumps(content)).decode() if sealed else content
            await idempotency.keep(session, claim, status, kept)
    return JSONResponse(content, status_code=status)


def _again(gateway: Gateway, answer: StoredAnswer, sealed: bool) -> Response:
    body = json.loads(gateway.context.box.decrypt(answer.body.encode())) if sealed else answer.body
    return replayed(StoredAnswer(answer.status, body))

"""`/v1/payments/{id}/stream`"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError

from app.api.address import client_address
from app.api.deps import CallerDep, Gateway, GatewayDep, needs, path_id
from app.core import limits
from app.core.logger import get_logger
from app.services.events import version_of

log = get_logger(__name__)

router = APIRouter(tags=["events"], dependencies=[needs("payments:read")])

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would keep events back


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


async def stream_place(request: Request, gateway: GatewayDep) -> AsyncIterator[None]:
    """A stream's place among those of its address, held until its answer has ended."""
    with gateway.streams.place(client_address(request, gateway.context.settings.trusted_proxies)):
        yield


@router.get(
    "/v1/payments/{payment_id}/stream",
    response_class=EventStream,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    dependencies=[Depends(stream_place)],
)
async def stream_payment(
    gateway: GatewayDep,
    caller: CallerDep,
    payment_id: str,
    last_event_id: Annotated[
        str | None, Header(description="Go on after this event; one that is not the payment's is ignored")
    ] = None,
) -> EventStream:
    """A payment's events as they happen, from its first one or from `Last-Event-ID` on (server-sent events).

    Each has the event's type as `event`, its id as `id`, and as `data` what `GET /v1/payments/{id}/events` has. The
    stream ends after a quarter of an hour at most: connect again with `Last-Event-ID`.
    """
    async with gateway.context.db.read() as session:
        version = await version_of(session, caller.merchant_id, path_id(payment_id), last_event_id)
    return EventStream(_lines(gateway, payment_id, version), headers=HEADERS)


async def _lines(gateway: Gateway, payment_id: str, version: int) -> AsyncIterator[bytes]:
    yield format_sse_event(comment="open", retry=limits.STREAM_RETRY_S * 1000)
    try:
        async for event in gateway.streams.follow(payment_id, version):
            if event is None:
                yield format_sse_event(comment="alive")
            else:
                yield format_sse_event(event=event.type, id=event.id, data_str=event.model_dump_json(by_alias=True))
    except (SQLAlchemyError, OSError, TimeoutError) as error:  # the client comes again and goes on where it was
        log.warning("a stream ended early", payment=payment_id, reason=type(error).__name__)

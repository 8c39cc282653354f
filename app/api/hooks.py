"""What Paywatch sends: OpenAPI's `webhooks` section, an entry for each type with its headers and its body's schema."""

from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Header
from pydantic import BaseModel, create_model

from app.services.decide import EventType
from app.services.endpoints import TEST_EVENT, EndpointView
from app.services.views import PaymentView

_Id = Annotated[str, Header(description="The event's id, the same at every attempt")]
_Timestamp = Annotated[str, Header(description="Seconds since 1970, of this attempt")]
_Signature = Annotated[str, Header(description="`v1,` and base64 of HMAC-SHA256; several, separated by blanks")]


def webhook_router() -> APIRouter:
    """For `FastAPI(webhooks=…)`: declared, and served nowhere."""
    router = APIRouter()
    for event in get_args(EventType):
        _declare(router, event, PaymentView, f"A payment's event: {event.removeprefix('payment.')}")
    _declare(router, TEST_EVENT, EndpointView, "What `POST /v1/webhook_endpoints/{id}/test` sends")
    return router


def body_model(event: str, data: type[BaseModel]) -> type[BaseModel]:
    """The body of one type, such as PaymentConfirmedWebhook."""
    name = "".join(part.capitalize() for part in event.replace(".", "_").split("_")) + "Webhook"
    kind: Any = Literal[event]
    return create_model(name, type=(kind, ...), timestamp=(str, ...), data=(data, ...))


def _declare(router: APIRouter, event: str, data: type[BaseModel], summary: str) -> None:
    async def receive(body: Any, webhook_id: _Id, webhook_timestamp: _Timestamp, webhook_signature: _Signature) -> None:
        """Answer 2xx within ten seconds; anything else is tried again."""

    receive.__annotations__["body"] = body_model(event, data)
    router.post(event, name=event, summary=summary, tags=["webhooks"])(receive)

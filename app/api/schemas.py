"""What requests hold. Answers are the views of the services."""

import json
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.api.deps import Text
from app.core import limits
from app.services.decide import EventType
from app.services.keys import Scope

T = TypeVar("T")


def _web_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL")
    return url


def _small_json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError) as error:
        raise ValueError("must be plain JSON without NaN, infinities or unpaired surrogates") from error
    if size > limits.METADATA_BYTES:
        raise ValueError(f"must have at most {limits.METADATA_BYTES} bytes as JSON")
    _check_nested(value, limits.METADATA_LEVELS)
    return value


def _check_nested(value: Any, levels: int) -> None:
    if isinstance(value, str) and "\x00" in value:
        raise ValueError("must not contain NUL")
    if not isinstance(value, dict | list):
        return
    if levels == 0:
        raise ValueError(f"must have at most {limits.METADATA_LEVELS} levels of objects and arrays")
    for each in value:
        _check_nested(each, levels - 1)
    if isinstance(value, dict):
        for each in value.values():
            _check_nested(each, levels - 1)


WebUrl = Annotated[Text, Field(max_length=limits.URL_CHARS), AfterValidator(_web_url)]


class Page(BaseModel, Generic[T]):
    """A page of a list; `next_cursor` is null on the last one."""

    data: list[T]
    next_cursor: str | None


class Body(BaseModel):
    """An unknown field is a typing error that would otherwise be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PaymentCreate(Body):
    """A payment to be made. Amounts are decimal strings, never JSON numbers."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"chain": "ethereum", "token": "USDC", "amount": "25", "order_id": "A-1001"}],
        }
    )

    chain: Text = Field(max_length=64, description="Name of a configured chain")
    token: Text = Field(max_length=64, description="Symbol or contract address; the native symbol for native coin")
    amount: Text = Field(max_length=limits.AMOUNT_CHARS, description='Decimal string such as "25.50"')
    order_id: Text | None = Field(None, min_length=1, max_length=limits.ORDER_ID_CHARS)
    expires_in: int = Field(
        limits.EXPIRES_IN_DEFAULT_S, ge=limits.EXPIRES_IN_MIN_S, le=limits.EXPIRES_IN_MAX_S, strict=True
    )
    confirmations_required: int | None = Field(None, ge=1, le=limits.CONFIRMATIONS_MAX, strict=True)
    metadata: Annotated[dict[str, Any], AfterValidator(_small_json)] = Field(default_factory=dict)
    webhook_url: WebUrl | None = None
    redirect_url: WebUrl | None = None
    description: Text | None = Field(None, max_length=limits.DESCRIPTION_CHARS)
    tolerance: Text = Field(
        "0", max_length=limits.AMOUNT_CHARS, description='What may be missing: "0.10" of the asset or "0.5%"'
    )


class KeyCreate(Body):
    """An API key to be made. `admin` has every scope."""

    name: Text = Field(min_length=1, max_length=limits.KEY_NAME_CHARS, description="What it is for, for people")
    scopes: list[Scope] = Field(min_length=1, max_length=10)


class EndpointCreate(Body):
    url: WebUrl
    event_types: list[EventType] | None = Field(None, min_length=1, description="Default: all")


class EndpointUpdate(Body):
    url: WebUrl | None = None
    event_types: list[EventType] | None = Field(None, min_length=1, description="Null: all")

"""What requests hold. Answers are the views of the services."""

import json
from typing import Annotated, Any, Final, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.api.deps import Text, UtcTime
from app.core import limits
from app.services.decide import EventType
from app.services.keys import Scope

T = TypeVar("T")


def _web_url(url: str) -> str:
    if any(char <= " " for char in url):  # of which urlsplit drops some silently
        raise ValueError("must not contain spaces or control characters")
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


WebUrl = Annotated[
    Text, Field(max_length=limits.URL_CHARS, json_schema_extra={"format": "uri"}), AfterValidator(_web_url)
]


class Page(BaseModel, Generic[T]):
    """A page of a list; `next_cursor` is null on the last one."""

    data: list[T]
    next_cursor: str | None


class Body(BaseModel):
    """An unknown field is a typing error that would otherwise be silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ChainName = Annotated[Text, Field(max_length=64, description="Name of a configured chain")]
TokenName = Annotated[
    Text, Field(max_length=64, description="Symbol or contract address; the native symbol for native coin")
]
Amount = Annotated[
    Text,
    Field(
        max_length=limits.AMOUNT_CHARS,
        description='Decimal string such as "25.50"',
        json_schema_extra={"pattern": r"^[0-9]+(\.[0-9]+)?$"},
    ),
]
TOLERANCE_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?%?$"
Currency = Annotated[
    Text,
    Field(
        pattern=limits.CURRENCY_PATTERN,
        description="As in the rates, such as USD",
        json_schema_extra={"pattern": limits.CURRENCY_PATTERN},  # which pydantic leaves out behind a validator
    ),
]


class PriceAsked(Body):
    """A price in a currency, for which each accepted token's amount is found by its rate."""

    amount: Amount
    currency: Currency


class Acceptable(Body):
    """One way to pay a price."""

    chain: ChainName
    token: TokenName


def _no_default(schema: dict[str, Any]) -> None:
    """The default is the merchant's."""
    del schema["default"]


def _tolerance_schema(schema: dict[str, Any]) -> None:
    _no_default(schema)
    schema["pattern"] = TOLERANCE_PATTERN


# What JSON Schema says of the two forms, and pydantic does not: a service checks it, and names each field.
_AMOUNT_FORM: Final[dict[str, Any]] = {
    "required": ["chain", "token", "amount"],
    "properties": {name: {"type": "string"} for name in ("chain", "token", "amount")}
    | {name: {"type": "null"} for name in ("price", "accept")},
}
_PRICE_FORM: Final[dict[str, Any]] = {
    "required": ["price", "accept"],
    "properties": {"price": {"type": "object"}, "accept": {"type": "array"}}
    | {name: {"type": "null"} for name in ("chain", "token", "amount")},
}


class PaymentCreate(Body):
    """A payment to be made: of an `amount` of one `token`, or of a `price` in the tokens of `accept`.

    Amounts are decimal strings, never JSON numbers.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"chain": "ethereum", "token": "USDC", "amount": "25", "order_id": "A-1001"},
                {
                    "price": {"amount": "25.00", "currency": "USD"},
                    "accept": [{"chain": "ethereum", "token": "USDC"}, {"chain": "ethereum", "token": "ETH"}],
                    "order_id": "A-1002",
                },
            ],
            "oneOf": [_AMOUNT_FORM, _PRICE_FORM],
        }
    )

    chain: ChainName | None = None
    token: TokenName | None = None
    amount: Amount | None = None
    price: PriceAsked | None = None
    accept: list[Acceptable] | None = Field(None, min_length=1, max_length=limits.ACCEPT_OPTIONS)
    order_id: Text | None = Field(None, min_length=1, max_length=limits.ORDER_ID_CHARS)
    expires_in: int = Field(
        limits.EXPIRES_IN_DEFAULT_S,
        ge=limits.EXPIRES_IN_MIN_S,
        le=limits.EXPIRES_IN_MAX_S,
        strict=True,
        description="Seconds. Default: the merchant's",
        json_schema_extra=_no_default,
    )
    confirmations_required: int | None = Field(None, ge=1, le=limits.CONFIRMATIONS_MAX, strict=True)
    metadata: Annotated[dict[str, Any], AfterValidator(_small_json)] = Field(default_factory=dict)
    webhook_url: WebUrl | None = None
    redirect_url: WebUrl | None = None
    description: Text | None = Field(None, max_length=limits.DESCRIPTION_CHARS)
    tolerance: Text = Field(
        "0",
        max_length=limits.AMOUNT_CHARS,
        description='What may be missing: "0.10" of the asset, with a price of its currency, or "0.5%". '
        "Default: the merchant's",
        json_schema_extra=_tolerance_schema,
    )

    def given(self, field: str) -> Any:
        """A field's value, None where it was left out."""
        return getattr(self, field) if field in self.model_fields_set else None


class KeyCreate(Body):
    """An API key to be made. `admin` has every scope."""

    name: Text = Field(min_length=1, max_length=limits.KEY_NAME_CHARS, description="What it is for, for people")
    scopes: list[Scope] = Field(min_length=1, max_length=10)


class ConfirmationTier(Body):
    """Payments worth at most `up_to` of `currency` need so many confirmations."""

    up_to: Amount
    currency: Currency
    confirmations: int = Field(ge=1, le=limits.CONFIRMATIONS_MAX, strict=True)


class MerchantUpdate(Body):
    """What payments get that say nothing of it. What is left out stays; null brings the original value back."""

    confirmations_required: int | None = Field(
        None, ge=1, le=limits.CONFIRMATIONS_MAX, strict=True, description="Null: each chain's own"
    )
    confirmation_tiers: list[ConfirmationTier] | None = Field(None, max_length=limits.CONFIRMATION_TIERS)
    expires_in: int | None = Field(None, ge=limits.EXPIRES_IN_MIN_S, le=limits.EXPIRES_IN_MAX_S, strict=True)
    tolerance: Annotated[Text, Field(json_schema_extra={"pattern": TOLERANCE_PATTERN})] | None = Field(
        None, max_length=limits.AMOUNT_CHARS, description='"0.10" of the asset, or "0.5%"'
    )


class EndpointCreate(Body):
    url: WebUrl
    event_types: list[EventType] | None = Field(None, min_length=1, description="Default: all")


class EndpointUpdate(Body):
    url: WebUrl | None = None
    event_types: list[EventType] | None = Field(None, min_length=1, description="Null: all")
    enabled: bool | None = Field(None, strict=True, description="False disables it; true enables it again")


class ReplayDead(Body):
    since: UtcTime = Field(description="Dead deliveries that were made since then")
    endpoint_id: Text | None = Field(None, max_length=64, description="Default: all receivers")

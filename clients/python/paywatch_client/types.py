"""What the gateway takes and gives. Money is decimal strings and, as `…_units`, strings of integers in base units."""

from typing import Any, Generic, Literal, NotRequired, TypeAlias, TypedDict, TypeVar

T = TypeVar("T")

Status = Literal["pending", "detected", "confirmed", "settled", "expired", "cancelled"]


class Page(TypedDict, Generic[T]):
    data: list[T]
    next_cursor: str | None


class PriceIn(TypedDict):
    amount: str
    currency: str


class Way(TypedDict):
    chain: str
    token: str


class NewPayment(TypedDict, total=False):
    """Either `chain`, `token` and `amount`, or `price` and `accept`."""

    chain: str
    token: str
    amount: str
    price: PriceIn
    accept: list[Way]
    order_id: str
    expires_in: int
    confirmations_required: int
    metadata: dict[str, Any]
    webhook_url: str
    redirect_url: str
    description: str
    tolerance: str


# "from" is no name that a class can have
Transaction = TypedDict(
    "Transaction",
    {
        "chain": str,
        "tx_hash": str | None,
        "block_number": int,
        "block_hash": str,
        "log_index": int | None,
        "position": str,
        "from": str | None,
        "token": str,
        "token_address": str | None,
        "amount": str,
        "amount_units": str,
        "confirmations": int,
        "status": Literal["canonical", "orphaned"],
    },
)


class PaymentOption(TypedDict):
    chain: str
    chain_id: int
    token: str
    token_address: str | None
    decimals: int
    amount: str
    amount_units: str
    amount_received: str
    amount_received_units: str
    amount_due: str
    confirmations_required: int
    payment_uri: str
    rate: str | None
    rate_source: str | None
    rate_at: str | None


class AtTreasury(TypedDict):
    """Money of a payment that reached the treasury; `sweep_id` is null when Paywatch did not send it."""

    sweep_id: str | None
    chain: str
    tx_hash: str
    block_number: int
    token: str
    amount: str
    amount_units: str
    fee_units: str
    confirmations: int
    status: Literal["canonical", "orphaned"]


class Payment(TypedDict):
    id: str
    object: Literal["payment"]
    status: Status
    flags: list[str]
    version: int
    chain: str
    chain_id: int
    token: str
    token_address: str | None
    decimals: int
    amount: str
    amount_units: str
    amount_received: str
    amount_received_units: str
    amount_due: str
    price: PriceIn | None
    address: str
    payment_uri: str
    checkout_url: str
    confirmations_required: int
    detected_in_block: int | None
    transactions: list[Transaction]
    sweeps: list[AtTreasury]
    options: list[PaymentOption]
    order_id: str | None
    metadata: dict[str, Any]
    description: str | None
    redirect_url: str | None
    webhook_url: str | None
    created_at: str
    expires_at: str
    detected_at: str | None
    confirmed_at: str | None
    settled_at: str | None


class Asset(TypedDict):
    symbol: str
    address: str | None
    decimals: int


class Chain(TypedDict):
    name: str
    chain_id: int
    head: int | None
    cursor: int | None
    lag_blocks: int | None
    lag_seconds: float | None
    state: Literal["ok", "lagging", "halted"]
    reason: str | None
    confirmations_required: int
    native: Asset
    tokens: list[Asset]


class WebhookEndpoint(TypedDict):
    id: str
    object: Literal["webhook_endpoint"]
    url: str
    event_types: list[str] | None
    status: Literal["enabled", "disabled"]
    disabled_at: str | None
    disabled_reason: str | None
    old_secret_valid_until: str | None
    created_at: str
    secret: NotRequired[str]  # in the answer that made it, and in no other


class PaymentEvent(TypedDict):
    id: str
    type: str
    payment_id: str
    version: int
    created_at: str
    cause: dict[str, Any]
    data: Payment


class EndpointEvent(TypedDict):
    id: str
    type: Literal["webhook_endpoint.disabled"]
    payment_id: None
    version: int
    created_at: str
    cause: dict[str, Any]
    data: WebhookEndpoint


# Which one it is, `data["object"]` says.
Event: TypeAlias = PaymentEvent | EndpointEvent


class ApiKey(TypedDict):
    id: str
    object: Literal["api_key"]
    name: str
    scopes: list[str]
    created_at: str
    last_used_at: str | None
    revoked_at: str | None


class NewApiKey(ApiKey):
    key: str

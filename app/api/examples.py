"""Examples for the OpenAPI document, by the name of the schema that they are of."""

from typing import Any, Final

_TIME: Final = "2026-11-20T12:02:03.000450Z"
_LATER: Final = "2026-11-20T12:03:15.120000Z"
_PAYMENT_ID: Final = "pay_01KAGQ0W5N8E4TZ3V9XJ6D2RMC"
_ADDRESS: Final = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
_USDC: Final = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"
_URI: Final = f"ethereum:{_USDC}@1/transfer?address={_ADDRESS}&uint256=25000000"

_OPTION: Final[dict[str, Any]] = {
    "chain": "ethereum",
    "chain_id": 1,
    "token": "USDC",
    "token_address": _USDC,
    "decimals": 6,
    "amount": "25",
    "amount_units": "25000000",
    "amount_received": "25",
    "amount_received_units": "25000000",
    "amount_due": "0",
    "confirmations_required": 12,
    "payment_uri": _URI,
    "rate": None,
    "rate_source": None,
    "rate_at": None,
}
_PAYMENT: Final[dict[str, Any]] = {
    "id": _PAYMENT_ID,
    "object": "payment",
    "status": "detected",
    "flags": [],
    "version": 2,
    **{name: value for name, value in _OPTION.items() if not name.startswith("rate")},
    "price": None,
    "address": _ADDRESS,
    "checkout_url": f"https://pay.example.com/pay/{_PAYMENT_ID}",
    "detected_in_block": 19000000,
    "transactions": [
        {
            "chain": "ethereum",
            "tx_hash": "0x" + "5c" * 32,
            "block_number": 19000000,
            "block_hash": "0x" + "a7" * 32,
            "log_index": 7,
            "position": "log:7",
            "from": "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
            "token": "USDC",
            "token_address": _USDC,
            "amount": "25",
            "amount_units": "25000000",
            "confirmations": 2,
            "status": "canonical",
        }
    ],
    "options": [_OPTION],
    "order_id": "A-1001",
    "metadata": {"cart": "c-77"},
    "description": "Two mugs",
    "redirect_url": "https://shop.example.com/thanks",
    "webhook_url": None,
    "created_at": _TIME,
    "expires_at": "2026-11-20T13:02:03.000450Z",
    "detected_at": _LATER,
    "confirmed_at": None,
    "settled_at": None,
}
_KEY: Final[dict[str, Any]] = {
    "id": "key_01KAGQ0W5N8E4TZ3V9XJ6D2RMC",
    "object": "api_key",
    "name": "web shop",
    "scopes": ["payments:read", "payments:write"],
    "created_at": _TIME,
    "last_used_at": _LATER,
    "revoked_at": None,
}
_ENDPOINT: Final[dict[str, Any]] = {
    "id": "whe_01KAGQ0W5N8E4TZ3V9XJ6D2RMC",
    "object": "webhook_endpoint",
    "url": "https://shop.example.com/webhooks",
    "event_types": ["payment.confirmed", "payment.reverted"],
    "created_at": _TIME,
}

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "PaymentView": _PAYMENT,
    "EventView": {
        "id": "evt_01KAGQ1B8C4W7RD5KQZ2M6YNXS",
        "type": "payment.detected",
        "payment_id": _PAYMENT_ID,
        "version": 2,
        "created_at": _LATER,
        "cause": {"kind": "block", "chain": "ethereum", "number": 19000000, "hash": "0x" + "a7" * 32},
        "data": _PAYMENT,
    },
    "KeyCreate": {"name": "web shop", "scopes": ["payments:read", "payments:write"]},
    "KeyView": _KEY,
    "NewKeyView": _KEY | {"last_used_at": None, "key": "pwk_" + "x" * 43},
    "EndpointCreate": {"url": _ENDPOINT["url"], "event_types": _ENDPOINT["event_types"]},
    "EndpointUpdate": {"event_types": None},
    "EndpointView": _ENDPOINT,
    "NewEndpointView": _ENDPOINT | {"secret": "whsec_" + "x" * 32},
    "MerchantView": {
        "id": "mer_01KAGQ0W5N8E4TZ3V9XJ6D2RMC",
        "object": "merchant",
        "name": "Mug shop",
        "confirmations_required": 12,
        "confirmation_tiers": [{"up_to": "100", "currency": "USD", "confirmations": 1}],
        "expires_in": 3600,
        "tolerance": "0.5%",
        "created_at": _TIME,
    },
    "DeliveryView": {
        "id": "dlv_01KAGQ1B9M2XG6T8NV4EHS7QZC",
        "object": "webhook_delivery",
        "event_id": "evt_01KAGQ1B8C4W7RD5KQZ2M6YNXS",
        "event_type": "payment.detected",
        "payment_id": _PAYMENT_ID,
        "endpoint_id": _ENDPOINT["id"],
        "url": _ENDPOINT["url"],
        "status": "delivered",
        "attempt_count": 1,
        "next_attempt_at": None,
        "delivered_at": _LATER,
        "created_at": _LATER,
        "attempts": [{"at": _LATER, "duration_ms": 84, "status_code": 200, "error": None, "manual": False}],
    },
    "ChainView": {
        "name": "ethereum",
        "chain_id": 1,
        "head": 19000001,
        "cursor": 19000001,
        "lag_blocks": 0,
        "lag_seconds": 0.0,
        "state": "ok",
        "reason": None,
        "confirmations_required": 12,
        "native": {"symbol": "ETH", "address": None, "decimals": 18},
        "tokens": [{"symbol": "USDC", "address": _USDC, "decimals": 6}],
    },
    "MerchantUpdate": {
        "confirmation_tiers": [{"up_to": "100", "currency": "USD", "confirmations": 1}],
        "confirmations_required": 12,
        "tolerance": "0.5%",
    },
    "Health": {"status": "ok", "checks": [{"name": "database", "status": "ok", "detail": "postgresql"}]},
}

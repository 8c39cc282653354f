"""A typed client of a Paywatch gateway: `Paywatch`, `AsyncPaywatch`, and `verify_webhook` for what it sends."""

from paywatch_client.client import AsyncPaywatch, Paywatch
from paywatch_client.errors import PaywatchError
from paywatch_client.types import (
    ApiKey,
    AtTreasury,
    Chain,
    EndpointEvent,
    Event,
    NewApiKey,
    NewPayment,
    Page,
    Payment,
    PaymentEvent,
    PaymentOption,
    Transaction,
    WebhookEndpoint,
)
from paywatch_client.webhooks import InvalidWebhook, Webhook, verify_webhook

__all__ = [
    "ApiKey",
    "AsyncPaywatch",
    "AtTreasury",
    "Chain",
    "EndpointEvent",
    "Event",
    "InvalidWebhook",
    "NewApiKey",
    "NewPayment",
    "Page",
    "Payment",
    "PaymentEvent",
    "PaymentOption",
    "Paywatch",
    "PaywatchError",
    "Transaction",
    "Webhook",
    "WebhookEndpoint",
    "verify_webhook",
]

"""Webhooks by Standard Webhooks 1.0 (https://www.standardwebhooks.com)."""

from collections.abc import Mapping
from typing import TypedDict

from standardwebhooks import Webhook as _Verifier
from standardwebhooks import WebhookVerificationError

from paywatch_client.types import Payment


class Webhook(TypedDict):
    """What a webhook's body says. `webhook-id` of the headers is the event's id, the same at every retry."""

    type: str
    timestamp: str
    data: Payment


class InvalidWebhook(Exception):  # noqa: N818 read where it is caught
    """It is forged, too old, or not even well formed: answer 401 and do nothing."""


def verify_webhook(secret: str, headers: Mapping[str, str], body: bytes | str) -> Webhook:
    """The webhook in a request. `body` is the bytes as they came: they are what is signed. Raises InvalidWebhook."""
    try:
        webhook: Webhook = _Verifier(secret).verify(body, {name.lower(): value for name, value in headers.items()})
    except (WebhookVerificationError, ValueError) as error:
        raise InvalidWebhook(str(error)) from error
    return webhook

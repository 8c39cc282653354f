"""Every table of Paywatch. Importing this package registers all of them on `Base.metadata`."""

from app.db.base import Base
from app.db.models.chain import BlockHeader, ChainState
from app.db.models.event import Event, WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookReceiver
from app.db.models.merchant import ApiKey, IdempotencyKey, Merchant
from app.db.models.pause import Pause
from app.db.models.payment import DepositAddress, Payment, PaymentOption
from app.db.models.sweep import NonceLane, Outflow, Sweep, SweepAttempt, SweepItem
from app.db.models.token import Token
from app.db.models.transaction import Transaction

__all__ = [
    "ApiKey",
    "Base",
    "BlockHeader",
    "ChainState",
    "DepositAddress",
    "Event",
    "IdempotencyKey",
    "Merchant",
    "NonceLane",
    "Outflow",
    "Pause",
    "Payment",
    "PaymentOption",
    "Sweep",
    "SweepAttempt",
    "SweepItem",
    "Token",
    "Transaction",
    "WebhookAttempt",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookReceiver",
]

"""Merchants, their API keys and the answers kept for their idempotency keys."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, SmallInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core import limits
from app.db.base import Base
from app.db.types import Hash, Json, UtcDateTime


class Merchant(Base):
    __tablename__ = "merchants"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    # Signs webhooks to a payment's own `webhook_url`. Encrypted under SECRET_KEY.
    webhook_secret: Mapped[bytes] = mapped_column(LargeBinary)
    # Replaced and still signing, as in WebhookEndpoint.
    old_webhook_secrets: Mapped[list[dict[str, str]]] = mapped_column(Json, default=list)
    # What a payment gets that says nothing of it; confirmations null: the chain's.
    confirmations_required: Mapped[int | None] = mapped_column(BigInteger)
    confirmation_tiers: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)
    expires_in_s: Mapped[int] = mapped_column(BigInteger, default=limits.EXPIRES_IN_DEFAULT_S)
    tolerance: Mapped[str] = mapped_column(String(limits.AMOUNT_CHARS), default="0")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ApiKey(Base):
    """A key is stored as its SHA-256 only: keys are random, so a slow hash would buy nothing."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    merchant_id: Mapped[str] = mapped_column(ForeignKey("merchants.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    key_hash: Mapped[bytes] = mapped_column(Hash, unique=True)
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # To the minute: written beside the requests, not in them.
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # A time to come for a key that was rotated and still works for a while.
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class IdempotencyKey(Base):
    """Claim and stored answer of one `Idempotency-Key`; both are written in the transaction that does the work."""

    __tablename__ = "idempotency_keys"

    merchant_id: Mapped[str] = mapped_column(ForeignKey("merchants.id"), primary_key=True)
    method: Mapped[str] = mapped_column(String(10), primary_key=True)
    path: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_hash: Mapped[bytes] = mapped_column(Hash)
    response_status: Mapped[int] = mapped_column(SmallInteger)
    response_body: Mapped[object] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)

"""The audit trail and the webhook outbox."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, and_, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, flag, index_of_some
from app.db.types import BigId, Json, UtcDateTime


class Event(Base):
    """One change of a payment with its cause; `data` is the payment as it was then.

    Without a payment, version 0: a change of a webhook endpoint, which is for the audit trail alone.
    """

    __tablename__ = "events"
    __table_args__ = (
        UniqueConstraint("payment_id", "version"),
        Index("ix_events_merchant_id_id", "merchant_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    merchant_id: Mapped[str] = mapped_column(ForeignKey("merchants.id"))
    payment_id: Mapped[str | None] = mapped_column(ForeignKey("payments.id"))
    type: Mapped[str] = mapped_column(String(40))
    version: Mapped[int] = mapped_column(BigInteger)
    cause: Mapped[dict[str, Any]] = mapped_column(Json)
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WebhookEndpoint(Base):
    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    merchant_id: Mapped[str] = mapped_column(ForeignKey("merchants.id"), index=True)
    url: Mapped[str] = mapped_column(Text)
    # Null: all types.
    event_types: Mapped[list[str] | None] = mapped_column(Json)
    # Encrypted under SECRET_KEY.
    secret: Mapped[bytes] = mapped_column(LargeBinary)
    # Rotated away and still signing, newest first: `{"secret": ciphertext, "until": RFC 3339}`.
    old_secrets: Mapped[list[dict[str, str]]] = mapped_column(Json, default=list)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Disabled: new events are written as dead deliveries, which can be replayed.
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    disabled_reason: Mapped[str | None] = mapped_column(String(20))
    # Deleted endpoints stay for the log of their deliveries.
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class WebhookReceiver(Base):
    """A receiver that fails at present. The first good answer deletes the row, so a healthy one has none; and so does
    housekeeping after a long silence."""

    __tablename__ = "webhook_receivers"

    # As in `WebhookDelivery.receiver`.
    receiver: Mapped[str] = mapped_column(Text, primary_key=True)
    # In a row, without an answer or with one of 429 or 5xx: from some number on it is only probed.
    failure_count: Mapped[int] = mapped_column(BigInteger)
    # The first failure after its last success, or after a long silence.
    failing_since: Mapped[datetime] = mapped_column(UtcDateTime)
    last_failed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    # Only probed, and not before then.
    probe_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


_PENDING: Final = text("status = 'pending'")
_IN_TURN: Final = ("receiver", "next_attempt_at", "id")


class WebhookDelivery(Base):
    """One event to one receiver; written with the event, in the transaction that changed the payment."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_merchant_id_id", "merchant_id", "id"),
        # Both columns: SQLite, which knows no statistics, would look for a payment's pending ones among all pending.
        Index("ix_webhook_deliveries_payment_id_status", "payment_id", "status"),
        # What a receiver gets next, whatever waits behind it; what a person asked for; what may be replayed.
        index_of_some("ix_webhook_deliveries_pending", *_IN_TURN, where=_PENDING),
        index_of_some("ix_webhook_deliveries_manual", *_IN_TURN, where=and_(_PENDING, flag("manual"))),
        index_of_some("ix_webhook_deliveries_dead", "merchant_id", "created_at", where=text("status = 'dead'")),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    merchant_id: Mapped[str] = mapped_column(ForeignKey("merchants.id"))
    payment_id: Mapped[str] = mapped_column(ForeignKey("payments.id"))
    event_id: Mapped[str] = mapped_column(ForeignKey("events.id"), index=True)
    event_version: Mapped[int] = mapped_column(BigInteger)
    # Null for a payment's own `webhook_url`.
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoints.id"), index=True)
    # Where it was last sent, and before that where it was to be sent when it was made: an endpoint's may have changed.
    url: Mapped[str] = mapped_column(Text)
    # Who has a share of the sockets and a breaker of its own: the endpoint's id, or for a payment's own URL the
    # merchant's id and the URL's scheme, host and port.
    receiver: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20))
    dead_reason: Mapped[str | None] = mapped_column(String(20))
    attempt_count: Mapped[int] = mapped_column(BigInteger)
    # Since it was written or last replayed: its place in the schedule.
    failure_count: Mapped[int] = mapped_column(BigInteger, default=0)
    # Replayed: the next attempt is a person's.
    manual: Mapped[bool] = mapped_column(Boolean, default=False)
    next_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # A sender works on it until then; a dead sender's claim ends by itself.
    leased_until: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WebhookAttempt(Base):
    __tablename__ = "webhook_attempts"

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    duration_ms: Mapped[int] = mapped_column(BigInteger)
    status_code: Mapped[int | None] = mapped_column(BigInteger)
    # A code such as `timeout` or `http_500`; null for a 2xx answer.
    error: Mapped[str | None] = mapped_column(String(40))
    error_detail: Mapped[str | None] = mapped_column(Text)
    response_body: Mapped[str | None] = mapped_column(Text)
    next_attempt_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    manual: Mapped[bool] = mapped_column(Boolean)

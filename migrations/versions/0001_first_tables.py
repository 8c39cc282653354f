"""first tables"""

import sqlalchemy as sa
from alembic import op

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True)
UNITS = sa.String(78).with_variant(sa.Numeric(78, 0), "postgresql")

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "block_headers",
        sa.Column("chain_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("number", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("parent_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "number", name=op.f("pk_block_headers")),
    )
    op.create_table(
        "chain_states",
        sa.Column("chain_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("last_scanned_block", BIG_ID, nullable=False),
        sa.Column("last_scanned_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("last_scanned_time", TIME, nullable=False),
        sa.Column("first_block", BIG_ID, nullable=False),
        sa.Column("highest_block", BIG_ID, nullable=False),
        sa.Column("finalized_block", BIG_ID, nullable=False),
        sa.Column("head_block", BIG_ID, nullable=False),
        sa.Column("head_seen_at", TIME, nullable=False),
        sa.Column("caught_up_at", TIME, nullable=True),
        sa.Column("backup_block", BIG_ID, nullable=False),
        sa.Column("missed_transfers", sa.BigInteger(), nullable=False),
        sa.Column("rotated_address_id", BIG_ID, nullable=False),
        sa.Column("halt_code", sa.String(length=20), nullable=True),
        sa.Column("halt_detail", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("chain_id", name=op.f("pk_chain_states")),
        sa.UniqueConstraint("name", name=op.f("uq_chain_states_name")),
    )
    op.create_table(
        "deposit_addresses",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("branch", sa.SmallInteger(), nullable=False),
        sa.Column("address", sa.LargeBinary(length=20), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deposit_addresses")),
        sa.UniqueConstraint("address", name=op.f("uq_deposit_addresses_address")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "merchants",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("webhook_secret", sa.LargeBinary(), nullable=False),
        sa.Column("old_webhook_secrets", sa.JSON(), nullable=False),
        sa.Column("confirmations_required", sa.BigInteger(), nullable=True),
        sa.Column("confirmation_tiers", sa.JSON(), nullable=False),
        sa.Column("expires_in_s", sa.BigInteger(), nullable=False),
        sa.Column("tolerance", sa.String(length=160), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_merchants")),
        sa.UniqueConstraint("name", name=op.f("uq_merchants_name")),
    )
    op.create_table(
        "nonce_lanes",
        sa.Column("chain_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("account", sa.LargeBinary(length=20), nullable=False),
        sa.Column("is_deposit", sa.Boolean(), nullable=False),
        sa.Column("next_nonce", sa.BigInteger(), nullable=False),
        sa.Column("balance_units", UNITS, nullable=True),
        sa.Column("short_units", UNITS, nullable=True),
        sa.Column("looked_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("chain_id", "account", name=op.f("pk_nonce_lanes")),
    )
    op.create_table(
        "sweeps",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("chain_id", BIG_ID, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("asset", sa.LargeBinary(length=20), nullable=False),
        sa.Column("treasury", sa.LargeBinary(length=20), nullable=True),
        sa.Column("account", sa.LargeBinary(length=20), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("tx_hash", sa.LargeBinary(length=32), nullable=True),
        sa.Column("block_number", BIG_ID, nullable=True),
        sa.Column("block_hash", sa.LargeBinary(length=32), nullable=True),
        sa.Column("gas_used", sa.BigInteger(), nullable=True),
        sa.Column("gas_price_units", UNITS, nullable=True),
        sa.Column("fee_units", UNITS, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweeps")),
        sa.UniqueConstraint("chain_id", "account", "nonce", name=op.f("uq_sweeps_chain_id_account_nonce")),
    )
    op.create_index("ix_sweeps_chain_id_status", "sweeps", ["chain_id", "status"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("chain_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("address", sa.LargeBinary(length=20), nullable=False),
        sa.Column("symbol", sa.String(length=40), nullable=False),
        sa.Column("decimals", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("chain_id", "address", name=op.f("pk_tokens")),
    )
    op.create_table(
        "webhook_receivers",
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("failure_count", sa.BigInteger(), nullable=False),
        sa.Column("failing_since", TIME, nullable=False),
        sa.Column("last_failed_at", TIME, nullable=False),
        sa.Column("probe_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("receiver", name=op.f("pk_webhook_receivers")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["merchant_id"], ["merchants.id"], name=op.f("fk_api_keys_merchant_id_merchants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_index(op.f("ix_api_keys_merchant_id"), "api_keys", ["merchant_id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("method", sa.String(length=10), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("response_status", sa.SmallInteger(), nullable=False),
        sa.Column("response_body", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name=op.f("fk_idempotency_keys_merchant_id_merchants")
        ),
        sa.PrimaryKeyConstraint("merchant_id", "method", "path", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"], unique=False)
    op.create_table(
        "payments",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("deposit_address_id", BIG_ID, nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("option_position", sa.SmallInteger(), nullable=False),
        sa.Column("price_amount", sa.String(length=160), nullable=True),
        sa.Column("price_currency", sa.String(length=10), nullable=True),
        sa.Column("order_id", sa.String(length=128), nullable=True),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("redirect_url", sa.Text(), nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("detected_in_block", sa.BigInteger(), nullable=True),
        sa.Column("detected_at", TIME, nullable=True),
        sa.Column("confirmed_at", TIME, nullable=True),
        sa.Column("settled_at", TIME, nullable=True),
        sa.Column("settled_by_sweep", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["deposit_address_id"],
            ["deposit_addresses.id"],
            name=op.f("fk_payments_deposit_address_id_deposit_addresses"),
        ),
        sa.ForeignKeyConstraint(["merchant_id"], ["merchants.id"], name=op.f("fk_payments_merchant_id_merchants")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sa.UniqueConstraint("deposit_address_id", name=op.f("uq_payments_deposit_address_id")),
    )
    op.create_index("ix_payments_merchant_id_id", "payments", ["merchant_id", "id"], unique=False)
    op.create_index("ix_payments_status_expires_at", "payments", ["status", "expires_at"], unique=False)
    op.create_index(
        "uq_payments_open_order",
        "payments",
        ["merchant_id", "order_id"],
        unique=True,
        postgresql_where=sa.text("status NOT IN ('expired', 'cancelled')"),
        sqlite_where=sa.text("status NOT IN ('expired', 'cancelled')"),
    )
    op.create_table(
        "sweep_attempts",
        sa.Column("tx_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("gas_limit", sa.BigInteger(), nullable=False),
        sa.Column("max_fee_units", UNITS, nullable=False),
        sa.Column("max_priority_fee_units", UNITS, nullable=False),
        sa.Column("value_units", UNITS, nullable=False),
        sa.Column("cancels", sa.Boolean(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("broadcast_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"], name=op.f("fk_sweep_attempts_sweep_id_sweeps")),
        sa.PrimaryKeyConstraint("tx_hash", name=op.f("pk_sweep_attempts")),
    )
    op.create_index(op.f("ix_sweep_attempts_sweep_id"), "sweep_attempts", ["sweep_id"], unique=False)
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event_types", sa.JSON(), nullable=True),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("old_secrets", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("disabled_at", TIME, nullable=True),
        sa.Column("disabled_reason", sa.String(length=20), nullable=True),
        sa.Column("deleted_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name=op.f("fk_webhook_endpoints_merchant_id_merchants")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_endpoints")),
    )
    op.create_index(op.f("ix_webhook_endpoints_merchant_id"), "webhook_endpoints", ["merchant_id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("payment_id", sa.String(length=40), nullable=True),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("cause", sa.JSON(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["merchant_id"], ["merchants.id"], name=op.f("fk_events_merchant_id_merchants")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_events_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("payment_id", "version", name=op.f("uq_events_payment_id_version")),
    )
    op.create_index("ix_events_merchant_id_id", "events", ["merchant_id", "id"], unique=False)
    op.create_table(
        "outflows",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("payment_id", sa.String(length=40), nullable=False),
        sa.Column("chain_id", BIG_ID, nullable=False),
        sa.Column("block_number", BIG_ID, nullable=False),
        sa.Column("block_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("block_time", TIME, nullable=False),
        sa.Column("tx_index", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.String(length=80), nullable=False),
        sa.Column("sender", sa.LargeBinary(length=20), nullable=False),
        sa.Column("treasury", sa.LargeBinary(length=20), nullable=False),
        sa.Column("asset", sa.LargeBinary(length=20), nullable=False),
        sa.Column("amount_units", UNITS, nullable=False),
        sa.Column("fee_units", UNITS, nullable=False),
        sa.Column("covers_units", UNITS, nullable=False),
        sa.Column("tx_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("canonical", sa.Boolean(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_outflows_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outflows")),
        sa.UniqueConstraint(
            "chain_id",
            "block_hash",
            "tx_index",
            "position",
            name=op.f("uq_outflows_chain_id_block_hash_tx_index_position"),
        ),
    )
    op.create_index("ix_outflows_chain_id_block_number", "outflows", ["chain_id", "block_number"], unique=False)
    op.create_index(op.f("ix_outflows_payment_id"), "outflows", ["payment_id"], unique=False)
    op.create_index("ix_outflows_sender_chain_id", "outflows", ["sender", "chain_id"], unique=False)
    op.create_index(
        "ix_outflows_unverified",
        "outflows",
        ["chain_id"],
        unique=False,
        postgresql_where=sa.text("canonical AND NOT verified"),
        sqlite_where=sa.text("canonical AND NOT verified"),
    )
    op.create_table(
        "payment_options",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("payment_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("chain", sa.String(length=64), nullable=False),
        sa.Column("chain_id", BIG_ID, nullable=False),
        sa.Column("asset", sa.LargeBinary(length=20), nullable=False),
        sa.Column("amount_units", UNITS, nullable=False),
        sa.Column("tolerance_units", UNITS, nullable=False),
        sa.Column("received_units", UNITS, nullable=False),
        sa.Column("confirmations_required", sa.BigInteger(), nullable=False),
        sa.Column("rate", sa.String(length=160), nullable=True),
        sa.Column("rate_source", sa.String(length=300), nullable=True),
        sa.Column("rate_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["chain_id", "asset"],
            ["tokens.chain_id", "tokens.address"],
            name=op.f("fk_payment_options_chain_id_asset_tokens"),
        ),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_payment_options_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payment_options")),
        sa.UniqueConstraint("payment_id", "position", name=op.f("uq_payment_options_payment_id_position")),
    )
    op.create_table(
        "sweep_items",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("sweep_id", sa.String(length=40), nullable=False),
        sa.Column("payment_id", sa.String(length=40), nullable=False),
        sa.Column("chain_id", BIG_ID, nullable=False),
        sa.Column("address", sa.LargeBinary(length=20), nullable=False),
        sa.Column("asset", sa.LargeBinary(length=20), nullable=False),
        sa.Column("amount_units", UNITS, nullable=False),
        sa.Column("moved_units", UNITS, nullable=True),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_sweep_items_payment_id_payments")),
        sa.ForeignKeyConstraint(["sweep_id"], ["sweeps.id"], name=op.f("fk_sweep_items_sweep_id_sweeps")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweep_items")),
    )
    op.create_index("ix_sweep_items_address_chain_id", "sweep_items", ["address", "chain_id"], unique=False)
    op.create_index(op.f("ix_sweep_items_payment_id"), "sweep_items", ["payment_id"], unique=False)
    op.create_index(op.f("ix_sweep_items_sweep_id"), "sweep_items", ["sweep_id"], unique=False)
    op.create_index(
        "uq_sweep_items_live",
        "sweep_items",
        ["chain_id", "address", "asset"],
        unique=True,
        postgresql_where=sa.text("live"),
        sqlite_where=sa.text("live"),
    )
    op.create_table(
        "transactions",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("payment_id", sa.String(length=40), nullable=False),
        sa.Column("chain_id", BIG_ID, nullable=False),
        sa.Column("block_number", BIG_ID, nullable=False),
        sa.Column("block_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("block_time", TIME, nullable=False),
        sa.Column("tx_index", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.String(length=80), nullable=False),
        sa.Column("recipient", sa.LargeBinary(length=20), nullable=False),
        sa.Column("asset", sa.LargeBinary(length=20), nullable=False),
        sa.Column("amount_units", UNITS, nullable=False),
        sa.Column("sender", sa.LargeBinary(length=20), nullable=True),
        sa.Column("tx_hash", sa.LargeBinary(length=32), nullable=True),
        sa.Column("log_index", sa.BigInteger(), nullable=True),
        sa.Column("canonical", sa.Boolean(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("noted", sa.Boolean(), nullable=False),
        sa.Column("swept", sa.Boolean(), nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["chain_id", "asset"],
            ["tokens.chain_id", "tokens.address"],
            name=op.f("fk_transactions_chain_id_asset_tokens"),
        ),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_transactions_payment_id_payments")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transactions")),
        sa.UniqueConstraint(
            "chain_id", "block_hash", "tx_index", "position", "recipient", "asset", name="uq_transactions_observed"
        ),
    )
    op.create_index("ix_transactions_chain_id_block_number", "transactions", ["chain_id", "block_number"], unique=False)
    op.create_index(op.f("ix_transactions_payment_id"), "transactions", ["payment_id"], unique=False)
    op.create_index("ix_transactions_recipient_chain_id", "transactions", ["recipient", "chain_id"], unique=False)
    op.create_index(
        "ix_transactions_unswept",
        "transactions",
        ["chain_id"],
        unique=False,
        postgresql_where=sa.text("canonical AND NOT swept"),
        sqlite_where=sa.text("canonical AND NOT swept"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("merchant_id", sa.String(length=40), nullable=False),
        sa.Column("payment_id", sa.String(length=40), nullable=False),
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("event_version", sa.BigInteger(), nullable=False),
        sa.Column("endpoint_id", sa.String(length=40), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("receiver", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("dead_reason", sa.String(length=20), nullable=True),
        sa.Column("attempt_count", sa.BigInteger(), nullable=False),
        sa.Column("failure_count", sa.BigInteger(), nullable=False),
        sa.Column("manual", sa.Boolean(), nullable=False),
        sa.Column("next_attempt_at", TIME, nullable=True),
        sa.Column("leased_until", TIME, nullable=True),
        sa.Column("delivered_at", TIME, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["endpoint_id"], ["webhook_endpoints.id"], name=op.f("fk_webhook_deliveries_endpoint_id_webhook_endpoints")
        ),
        sa.ForeignKeyConstraint(["event_id"], ["events.id"], name=op.f("fk_webhook_deliveries_event_id_events")),
        sa.ForeignKeyConstraint(
            ["merchant_id"], ["merchants.id"], name=op.f("fk_webhook_deliveries_merchant_id_merchants")
        ),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payments.id"], name=op.f("fk_webhook_deliveries_payment_id_payments")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(op.f("ix_webhook_deliveries_endpoint_id"), "webhook_deliveries", ["endpoint_id"], unique=False)
    op.create_index(op.f("ix_webhook_deliveries_event_id"), "webhook_deliveries", ["event_id"], unique=False)
    op.create_index(op.f("ix_webhook_deliveries_leased_until"), "webhook_deliveries", ["leased_until"], unique=False)
    op.create_index("ix_webhook_deliveries_merchant_id_id", "webhook_deliveries", ["merchant_id", "id"], unique=False)
    op.create_index(
        "ix_webhook_deliveries_payment_id_status", "webhook_deliveries", ["payment_id", "status"], unique=False
    )
    op.create_index("ix_webhook_deliveries_receiver_status", "webhook_deliveries", ["receiver", "status"], unique=False)
    op.create_index(
        "ix_webhook_deliveries_status_next_attempt_at",
        "webhook_deliveries",
        ["status", "next_attempt_at"],
        unique=False,
    )
    op.create_table(
        "webhook_attempts",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("delivery_id", sa.String(length=40), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.String(length=40), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("response_body", sa.Text(), nullable=True),
        sa.Column("next_attempt_at", TIME, nullable=True),
        sa.Column("manual", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["webhook_deliveries.id"], name=op.f("fk_webhook_attempts_delivery_id_webhook_deliveries")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_attempts")),
    )
    op.create_index(op.f("ix_webhook_attempts_delivery_id"), "webhook_attempts", ["delivery_id"], unique=False)


def downgrade() -> None:
    op.drop_table("webhook_attempts")
    op.drop_table("webhook_deliveries")
    op.drop_table("transactions")
    op.drop_table("sweep_items")
    op.drop_table("payment_options")
    op.drop_table("outflows")
    op.drop_table("events")
    op.drop_table("webhook_endpoints")
    op.drop_table("sweep_attempts")
    op.drop_table("payments")
    op.drop_table("idempotency_keys")
    op.drop_table("api_keys")
    op.drop_table("webhook_receivers")
    op.drop_table("tokens")
    op.drop_table("sweeps")
    op.drop_table("nonce_lanes")
    op.drop_table("merchants")
    op.drop_table("deposit_addresses")
    op.drop_table("chain_states")
    op.drop_table("block_headers")

"""partial indexes that are used"""

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

IN_TURN = ("receiver", "next_attempt_at", "id")
# As they were, and as SQLite's queries ask: `live = 1`. PostgreSQL takes either for the other.
FLAGS = (
    (
        "ix_outflows_unverified",
        "outflows",
        ("chain_id",),
        "canonical AND NOT verified",
        "canonical = 1 AND verified = 0",
    ),
    ("ix_transactions_counting", "transactions", ("payment_id",), "NOT set_aside", "set_aside = 0"),
    (
        "ix_transactions_unswept",
        "transactions",
        ("chain_id",),
        "canonical AND NOT swept AND NOT set_aside",
        "canonical = 1 AND swept = 0 AND set_aside = 0",
    ),
    ("uq_sweep_items_live", "sweep_items", ("chain_id", "address", "asset"), "live", "live = 1"),
    (
        "uq_payments_open_order",
        "payments",
        ("merchant_id", "order_id"),
        "holds_order AND status NOT IN ('expired', 'cancelled')",
        "holds_order = 1 AND status NOT IN ('expired', 'cancelled')",
    ),
)


def upgrade() -> None:
    op.drop_index("ix_webhook_deliveries_receiver_status", table_name="webhook_deliveries")
    op.drop_index("ix_webhook_deliveries_status_next_attempt_at", table_name="webhook_deliveries")
    is_sqlite = op.get_context().dialect.name == "sqlite"
    _create("ix_webhook_deliveries_pending", "webhook_deliveries", IN_TURN, "status = 'pending'")
    manual = "manual = 1" if is_sqlite else "manual"
    _create("ix_webhook_deliveries_manual", "webhook_deliveries", IN_TURN, f"status = 'pending' AND {manual}")
    _create("ix_webhook_deliveries_dead", "webhook_deliveries", ("merchant_id", "created_at"), "status = 'dead'")
    if is_sqlite:
        for name, table, columns, _, where in FLAGS:
            op.drop_index(name, table_name=table)
            _create(name, table, columns, where)


def downgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        for name, table, columns, where, _ in FLAGS:
            op.drop_index(name, table_name=table)
            _create(name, table, columns, where)
    for name in ("dead", "manual", "pending"):
        op.drop_index(f"ix_webhook_deliveries_{name}", table_name="webhook_deliveries")
    for first, second in (("status", "next_attempt_at"), ("receiver", "status")):
        op.create_index(f"ix_webhook_deliveries_{first}_{second}", "webhook_deliveries", [first, second], unique=False)


def _create(name: str, table: str, columns: tuple[str, ...], where: str) -> None:
    condition = sa.text(where)
    op.create_index(
        name,
        table,
        list(columns),
        unique=name.startswith("uq_"),
        postgresql_where=condition,
        sqlite_where=condition,
    )

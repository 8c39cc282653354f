"""an order's payment"""

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

OPEN = "status NOT IN ('expired', 'cancelled')"
HOLDS = f"holds_order AND {OPEN}"


def upgrade() -> None:
    op.drop_index("uq_payments_open_order", table_name="payments")
    # True for every payment that is open, those too that a server of before goes on making; of the others nobody asks.
    with op.batch_alter_table("payments") as batch_op:
        batch_op.add_column(sa.Column("holds_order", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.create_index(
        "uq_payments_open_order",
        "payments",
        ["merchant_id", "order_id"],
        unique=True,
        postgresql_where=sa.text(HOLDS),
        sqlite_where=sa.text(HOLDS),
    )
    op.create_index(
        "ix_payments_merchant_id_order_id",
        "payments",
        ["merchant_id", "order_id"],
        unique=False,
        postgresql_where=sa.text("order_id IS NOT NULL"),
        sqlite_where=sa.text("order_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_payments_merchant_id_order_id", table_name="payments")
    op.drop_index("uq_payments_open_order", table_name="payments")
    # A payment that was paid after its order had been given to another one: the older schema has no place for both.
    op.execute(
        """
        UPDATE payments SET order_id = NULL
        WHERE NOT holds_order AND status NOT IN ('expired', 'cancelled') AND EXISTS (
            SELECT 1 FROM payments AS other
            WHERE other.merchant_id = payments.merchant_id AND other.order_id = payments.order_id
            AND other.id <> payments.id AND other.status NOT IN ('expired', 'cancelled')
        )
        """
    )
    with op.batch_alter_table("payments") as batch_op:
        batch_op.drop_column("holds_order")
    op.create_index(
        "uq_payments_open_order",
        "payments",
        ["merchant_id", "order_id"],
        unique=True,
        postgresql_where=sa.text(OPEN),
        sqlite_where=sa.text(OPEN),
    )

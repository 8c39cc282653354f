"""transfers set aside"""

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

BEFORE = "canonical AND NOT swept"
UNSWEPT = f"{BEFORE} AND NOT set_aside"
COUNTING = "NOT set_aside"


def upgrade() -> None:
    op.add_column("transactions", sa.Column("set_aside", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.drop_index("ix_transactions_unswept", table_name="transactions")
    op.drop_index("ix_transactions_payment_id", table_name="transactions")
    _create_index("ix_transactions_unswept", "chain_id", UNSWEPT)
    _create_index("ix_transactions_counting", "payment_id", COUNTING)


def downgrade() -> None:
    op.drop_index("ix_transactions_counting", table_name="transactions")
    op.drop_index("ix_transactions_unswept", table_name="transactions")
    with op.batch_alter_table("transactions") as batch_op:
        batch_op.drop_column("set_aside")
    op.create_index("ix_transactions_payment_id", "transactions", ["payment_id"], unique=False)
    _create_index("ix_transactions_unswept", "chain_id", BEFORE)


def _create_index(name: str, column: str, where: str) -> None:
    op.create_index(
        name, "transactions", [column], unique=False, postgresql_where=sa.text(where), sqlite_where=sa.text(where)
    )

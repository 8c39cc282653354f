<%!
def body(operations):
    """Without the two comments that Alembic puts around them."""
    return "\n".join(line for line in operations.splitlines() if not line.strip().startswith("# ###")).strip() or "pass"
%>\
"""${message}"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | None = ${repr(down_revision)}
branch_labels: str | None = ${repr(branch_labels)}
depends_on: str | None = ${repr(depends_on)}


def upgrade() -> None:
    ${body(upgrades or "")}


def downgrade() -> None:
    ${body(downgrades or "")}

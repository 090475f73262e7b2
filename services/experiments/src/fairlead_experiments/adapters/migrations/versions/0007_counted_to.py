"""How far the units of a rollout are counted, while they are counted afresh."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def text(length: int) -> sa.types.TypeEngine[str]:
    bytewise = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(bytewise, "postgresql")


def upgrade() -> None:
    op.add_column('rollouts', sa.Column('counted_to', text(256), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('rollouts') as batch_op:
        batch_op.drop_column('counted_to')

"""The decisions of a rollout."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def text(length: int) -> sa.types.TypeEngine[str]:
    bytewise = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(bytewise, "postgresql")


def upgrade() -> None:
    op.create_table('decisions',
    sa.Column('rollout', text(64), nullable=False),
    sa.Column('id', text(64), nullable=False),
    sa.Column('at', sa.BigInteger(), nullable=False),
    sa.Column('document', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('rollout', 'id')
    )
    with op.batch_alter_table('decisions', schema=None) as batch_op:
        batch_op.create_index('ix_decisions_at', ['rollout', 'at'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('decisions', schema=None) as batch_op:
        batch_op.drop_index('ix_decisions_at')

    op.drop_table('decisions')

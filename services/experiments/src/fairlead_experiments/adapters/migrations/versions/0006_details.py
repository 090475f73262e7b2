"""What single outcomes of units say, where the time or the value of each matters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def text(length: int) -> sa.types.TypeEngine[str]:
    bytewise = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(bytewise, "postgresql")


def upgrade() -> None:
    op.create_table(
        'details',
        sa.Column('rollout', text(64), nullable=False),
        sa.Column('unit', text(256), nullable=False),
        sa.Column('step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('arm', text(9), nullable=False),
        sa.Column('first_at', sa.BigInteger(), nullable=False),
        sa.Column('n', sa.Integer(), nullable=False),
        sa.Column('total', sa.Double(), nullable=False),
        sa.Column('denominator', sa.Double(), nullable=False),
        sa.Column('refused', sa.Integer(), nullable=False),
        sa.Column('covariate', sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint('rollout', 'unit', 'step', 'arm'),
        sqlite_with_rowid=False,
    )
    op.create_index('ix_details_first', 'details', ['rollout', 'first_at'])
    op.add_column(
        'rollouts', sa.Column('due_until', sa.BigInteger(), server_default='0', nullable=False)
    )


def downgrade() -> None:
    with op.batch_alter_table('rollouts') as batch_op:
        batch_op.drop_column('due_until')
    op.drop_table('details')

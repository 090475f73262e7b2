"""Predictions of shadows and of what they are compared with."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def text(length: int) -> sa.types.TypeEngine[str]:
    bytewise = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(bytewise, "postgresql")


def upgrade() -> None:
    op.create_table('comparisons',
    sa.Column('model', text(63), nullable=False),
    sa.Column('stable', text(64), nullable=False),
    sa.Column('shadow', text(64), nullable=False),
    sa.Column('total', sa.BigInteger(), nullable=False),
    sa.Column('kept', sa.Integer(), nullable=False),
    sa.Column('last_place', sa.BigInteger(), nullable=False),
    sa.Column('first_at', sa.BigInteger(), nullable=False),
    sa.Column('last_at', sa.BigInteger(), nullable=False),
    sa.Column('received_at', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('model', 'stable', 'shadow'),
    sqlite_with_rowid=False
    )
    op.create_table('pairs',
    sa.Column('model', text(63), nullable=False),
    sa.Column('stable', text(64), nullable=False),
    sa.Column('shadow', text(64), nullable=False),
    sa.Column('place', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('inference_id', text(64), nullable=False),
    sa.Column('stable_code', sa.Integer(), nullable=False),
    sa.Column('stable_duration_ms', sa.Double(), nullable=False),
    sa.Column('stable_rows', sa.Integer(), nullable=False),
    sa.Column('stable_value', sa.Text(), nullable=True),
    sa.Column('shadow_code', sa.Integer(), nullable=False),
    sa.Column('shadow_duration_ms', sa.Double(), nullable=False),
    sa.Column('shadow_rows', sa.Integer(), nullable=False),
    sa.Column('shadow_value', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('model', 'stable', 'shadow', 'place', 'inference_id'),
    sqlite_with_rowid=False
    )
    op.create_table('predictions',
    sa.Column('model', text(63), nullable=False),
    sa.Column('inference_id', text(64), nullable=False),
    sa.Column('version', text(64), nullable=False),
    sa.Column('is_shadow', sa.Integer(), nullable=False),
    sa.Column('received_at', sa.BigInteger(), nullable=False),
    sa.Column('is_paired', sa.Integer(), nullable=False),
    sa.Column('at', sa.BigInteger(), nullable=False),
    sa.Column('code', sa.Integer(), nullable=False),
    sa.Column('duration_ms', sa.Double(), nullable=False),
    sa.Column('rows', sa.Integer(), nullable=False),
    sa.Column('value', sa.Text(), nullable=True),
    sa.PrimaryKeyConstraint('model', 'inference_id', 'version')
    )
    with op.batch_alter_table('predictions', schema=None) as batch_op:
        batch_op.create_index('ix_predictions_inference', ['inference_id'], unique=False)
        batch_op.create_index('ix_predictions_received', ['received_at'], unique=False)


def downgrade() -> None:
    with op.batch_alter_table('predictions', schema=None) as batch_op:
        batch_op.drop_index('ix_predictions_received')
        batch_op.drop_index('ix_predictions_inference')

    op.drop_table('predictions')
    op.drop_table('pairs')
    op.drop_table('comparisons')

"""Rollouts are closed when they are old; what was counted of them stays."""

import json
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column('decided_at', sa.BigInteger(), nullable=True),
        sa.Column('closed_at', sa.BigInteger(), nullable=True),
        sa.Column('last_analysis', sa.Text(), nullable=True),
        sa.Column('is_emptied', sa.Integer(), server_default='0', nullable=False),
    ):
        op.add_column('rollouts', column)
    _note_decisions()


def _note_decisions() -> None:
    connection = op.get_bind()
    known = connection.execute(sa.text("SELECT id, document FROM rollouts")).all()
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for rollout, document in known:
        decided = json.loads(document).get("decidedAt")
        if decided is not None:
            at = (datetime.fromisoformat(decided) - epoch) // timedelta(microseconds=1)
            noted = sa.text("UPDATE rollouts SET decided_at = :at WHERE id = :id")
            connection.execute(noted, {"at": at, "id": rollout})


def downgrade() -> None:
    with op.batch_alter_table('rollouts') as batch_op:
        for name in ('is_emptied', 'last_analysis', 'closed_at', 'decided_at'):
            batch_op.drop_column(name)

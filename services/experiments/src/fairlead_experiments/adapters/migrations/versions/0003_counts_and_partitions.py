"""Counts instead of sweeps, and partitions by time.

What is counted is dropped: the service counts it afresh from the rows when it starts. A service
of the release before can no longer write, so nothing comes in that is not counted.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None

WIDTH = 28 * 86_400_000_000  # Microseconds in a partition.


def text(length: int) -> sa.types.TypeEngine[str]:
    bytewise = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(bytewise, "postgresql")


def upgrade() -> None:
    op.add_column('rollouts', sa.Column('counted_by', sa.Integer(), server_default='0', nullable=False))
    _count_in_large_numbers()
    _drop_requests_of_units()
    _order_outcomes_by_unit()
    _add_counts()
    floor = int(datetime.now(UTC).timestamp()) * 1_000_000 // WIDTH * WIDTH
    _partition('exposures', 'at', ['inference_id', 'at'], floor)
    _partition('outcomes', 'observed_at', ['subject', 'outcome', 'moment', 'observed_at'], floor)
    op.create_index('ix_exposures_unit', 'exposures', ['unit', 'rollout', 'at'])
    op.create_index('ix_exposures_rollout', 'exposures', ['rollout'])
    op.create_index('ix_outcomes_inference', 'outcomes', ['inference_id'])
    op.create_index('ix_outcomes_unit', 'outcomes', ['unit', 'model'])


def _count_in_large_numbers() -> None:
    op.execute("DELETE FROM bad_units")
    op.drop_table('requests')
    op.create_table(
        'requests',
        sa.Column('rollout', text(64), nullable=False),
        sa.Column('step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('arm', text(9), nullable=False),
        sa.Column('assigned', sa.Integer(), autoincrement=False, nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ('requests', 'answered', 'errors', 'slow', 'fallbacks', 'retried')
        ),
        sa.PrimaryKeyConstraint('rollout', 'step', 'arm', 'assigned'),
        sqlite_with_rowid=False,
    )


def _drop_requests_of_units() -> None:
    op.rename_table('units', 'units_old')
    op.create_table(
        'units',
        sa.Column('rollout', text(64), nullable=False),
        sa.Column('unit', text(256), nullable=False),
        sa.Column('step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('arm', text(9), nullable=False),
        sa.PrimaryKeyConstraint('rollout', 'unit', 'step', 'arm', name=_key('units')),
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO units SELECT rollout, unit, step, arm FROM units_old")
    op.drop_table('units_old')


def _order_outcomes_by_unit() -> None:
    op.rename_table('unit_outcomes', 'unit_outcomes_old')
    op.create_table(
        'unit_outcomes',
        sa.Column('rollout', text(64), nullable=False),
        sa.Column('unit', text(256), nullable=False),
        sa.Column('outcome', text(64), nullable=False),
        sa.Column('step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('arm', text(9), nullable=False),
        sa.Column('n', sa.Integer(), nullable=False),
        sa.Column('total', sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint(
            'rollout', 'unit', 'outcome', 'step', 'arm', name=_key('unit_outcomes')
        ),
        sqlite_with_rowid=False,
    )
    op.execute(
        "INSERT INTO unit_outcomes SELECT rollout, unit, outcome, step, arm, n, total"
        " FROM unit_outcomes_old"
    )
    op.drop_table('unit_outcomes_old')


def _add_counts() -> None:
    op.create_table(
        'counters',
        sa.Column('rollout', text(64), nullable=False),
        sa.Column('kind', text(16), nullable=False),
        sa.Column('name', text(256), nullable=False),
        sa.Column('step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('arm', text(9), nullable=False),
        sa.Column('n', sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint('rollout', 'kind', 'name', 'step', 'arm'),
        sqlite_with_rowid=False,
    )
    op.create_table(
        'moments',
        sa.Column('rollout', text(64), nullable=False),
        sa.Column('step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('arm', text(9), nullable=False),
        sa.Column('other_step', sa.Integer(), autoincrement=False, nullable=False),
        sa.Column('other_arm', text(9), nullable=False),
        sa.Column('n', sa.BigInteger(), nullable=False),
        sa.Column('sums', sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint('rollout', 'step', 'arm', 'other_step', 'other_arm'),
        sqlite_with_rowid=False,
    )


def _key(table: str) -> str | None:
    """PostgreSQL keeps the old table's name for its key; the new one needs another."""
    return f"pk_{table}" if op.get_bind().dialect.name == "postgresql" else None


def _partition(name: str, by: str, key: list[str], floor: int) -> None:
    """Make a table anew, with its time in its key; on PostgreSQL in partitions."""
    connection = op.get_bind()
    is_postgresql = connection.dialect.name == "postgresql"
    old = sa.Table(name, sa.MetaData(), autoload_with=connection)
    for index in old.indexes:
        op.drop_index(str(index.name), name)
    op.rename_table(name, f"{name}_old")
    columns = [
        sa.Column(c.name, c.type, nullable=c.nullable, autoincrement=False) for c in old.columns
    ]
    op.create_table(
        name,
        *columns,
        sa.PrimaryKeyConstraint(*key, name=_key(name)),
        postgresql_partition_by=f"RANGE ({by})",
    )
    if is_postgresql:
        day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=floor)
        before = f"{name}_before_{day:%Y%m%d}"
        op.execute(f"CREATE TABLE {before} PARTITION OF {name} FOR VALUES FROM (MINVALUE) TO ({floor})")
        later = connection.scalars(
            sa.text(f"SELECT DISTINCT {by} / {WIDTH} FROM {name}_old WHERE {by} >= {floor}")
        ).all()
        for start in (number * WIDTH for number in later):
            day = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=start)
            bounds = f"FROM ({start}) TO ({start + WIDTH})"
            op.execute(f"CREATE TABLE {name}_{day:%Y%m%d} PARTITION OF {name} FOR VALUES {bounds}")
    listed = ", ".join(c.name for c in old.columns)
    op.execute(f"INSERT INTO {name} ({listed}) SELECT {listed} FROM {name}_old")
    op.drop_table(f"{name}_old")


def downgrade() -> None:
    raise NotImplementedError("go back by restoring a backup: counts of this release are new")

"""How far a rollout is counted, while it is counted afresh (`adapters.recount`)."""

from sqlalchemy import ColumnElement, Connection, Table, and_, select, update

from fairlead_experiments.adapters.schema import ROLLOUTS


def counted_to(connection: Connection, rollout: str) -> str | None:
    """Answer the last unit of a rollout that is counted, or None where all are."""
    found = select(ROLLOUTS.c.counted_to).where(ROLLOUTS.c.id == rollout)
    end: str | None = connection.scalar(found)
    return end


def note_counted(connection: Connection, rollout: str, end: str | None) -> None:
    """Note up to which unit a rollout is counted, or that all are."""
    mine = update(ROLLOUTS).where(ROLLOUTS.c.id == rollout)
    connection.execute(mine.values(counted_to=end))


def is_counted(unit: str, end: str | None) -> bool:
    """Tell whether what changes of a unit is counted now, and not when its turn comes."""
    return end is None or unit <= end


def between(table: Table, rollout: str, start: str, end: str | None = None) -> ColumnElement[bool]:
    """The rows of a rollout's units after one, up to and with another, or of all that follow."""
    mine = and_(table.c.rollout == rollout, table.c.unit > start)
    return mine if end is None else and_(mine, table.c.unit <= end)

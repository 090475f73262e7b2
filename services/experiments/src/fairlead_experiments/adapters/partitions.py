"""Where PostgreSQL keeps rows of a time: one partition for four weeks, and one for all before.

SQLite has no partitions; there is always room.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import Connection, Table, text

from fairlead_experiments.adapters.database import is_server
from fairlead_experiments.domain.times import microseconds, moment

WIDTH = 28 * 86_400_000_000
"""Microseconds in one partition: a batch asks for its keys in each of a handful."""

_BEFORE = "_before_"


def make_room(connection: Connection, table: Table, times: Iterable[int]) -> None:
    """Make the partitions that rows of these times (microseconds since 1970) need.

    The caller is the one writer.
    """
    if not is_server(connection):
        return
    wanted = {time // WIDTH * WIDTH for time in times}
    existing = names(connection, table)
    floor = max(start_of(name) for name in existing if _BEFORE in name)
    for start in sorted(wanted):
        if start >= floor and _name(table, start) not in existing:
            connection.execute(text(_creation(table, start)))


def names(connection: Connection, table: Table) -> set[str]:
    """Answer the names of a table's partitions."""
    found = text(
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
        " WHERE inhparent = to_regclass(:name)"
    )
    return set(connection.scalars(found, {"name": table.name}))


def is_before(name: str, time: int) -> bool:
    """Tell whether a partition ends by a time; the one for all before stays for ever."""
    return _BEFORE not in name and start_of(name) + WIDTH <= time


def is_empty(connection: Connection, name: str) -> bool:
    """Tell whether a partition has no row."""
    # The name is ours, as in all statements here: it came from the catalogue.
    return connection.scalar(text(f"SELECT NOT EXISTS (SELECT 1 FROM {name})")) is True  # noqa: S608


def rollouts_in(connection: Connection, name: str) -> list[str]:
    """Answer the rollouts with rows in a partition, by stepping through its index."""
    rollout = f"SELECT min(rollout) FROM {name}"  # noqa: S608
    steps = f"({rollout}) UNION ALL SELECT ({rollout} WHERE rollout > found.rollout)"
    each = f"WITH RECURSIVE found(rollout) AS ({steps} FROM found WHERE found.rollout IS NOT NULL)"
    return list(
        connection.scalars(text(f"{each} SELECT rollout FROM found WHERE rollout IS NOT NULL"))  # noqa: S608
    )


def drop(connection: Connection, name: str) -> None:
    """Drop a partition with its rows."""
    connection.execute(text(f"DROP TABLE {name}"))


def start_of(name: str) -> int:
    """Answer the time in a partition's name: its start, or the end of the one for all before."""
    day = datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC)
    return microseconds(day)


def _name(table: Table, start: int) -> str:
    return f"{table.name}_{moment(start):%Y%m%d}"


def _creation(table: Table, start: int) -> str:
    # The name and the bounds are ours; a statement of this kind takes no parameters.
    bounds = f"FROM ({start}) TO ({start + WIDTH})"
    return f"CREATE TABLE {_name(table, start)} PARTITION OF {table.name} FOR VALUES {bounds}"

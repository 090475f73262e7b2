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

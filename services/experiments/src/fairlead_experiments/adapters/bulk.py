"""Many rows in one statement, in the way each database takes them fastest.

SQLite gets its own `executemany`. PostgreSQL gets new rows by COPY and rows to merge as one JSON
document: both cost driver and server a third of what a statement for each row does (ADR 0019).
The names of tables and columns in the statements are the schema's, never a caller's.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, Table

from fairlead_experiments.adapters.database import is_server

Row = tuple[Any, ...]
"""One value for each column of the table, in its order."""


def insert_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add rows whose keys are not there yet."""
    if not rows:
        return
    if not is_server(connection):
        marks = ", ".join("?" * len(table.columns))
        _execute_many(connection, f"INSERT INTO {_target(table)} VALUES ({marks})", rows)
        return
    driver = connection.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor, cursor.copy(f"COPY {_target(table)} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def replace_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add rows, each in place of the one with its key, if there is one."""
    values = [column.name for column in table.columns if not column.primary_key]
    _merge(connection, table, rows, ", ".join(f"{name} = excluded.{name}" for name in values))


def add_rows(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add rows, each one's numbers to those of the row with its key, if there is one."""
    values = [column.name for column in table.columns if not column.primary_key]
    added = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in values)
    _merge(connection, table, rows, added)


def delete_rows(connection: Connection, table: Table, keys: Iterable[Row]) -> None:
    """Delete the rows with these keys."""
    names = [column.name for column in table.primary_key.columns]
    given = list(keys)
    if not given:
        return
    if not is_server(connection):
        same = " AND ".join(f"{name} = ?" for name in names)
        _execute_many(connection, f"DELETE FROM {table.name} WHERE {same}", given)
        return
    same = " AND ".join(f"{table.name}.{name} = gone.{name}" for name in names)
    source = f"json_populate_recordset(NULL::{table.name}, %(rows)s::json) AS gone"
    statement = f"DELETE FROM {table.name} USING {source} WHERE {same}"
    connection.exec_driver_sql(statement, {"rows": _document(names, given)})


def _merge(connection: Connection, table: Table, rows: Sequence[Row], change: str) -> None:
    if not rows:
        return
    names = [column.name for column in table.columns]
    key = ", ".join(column.name for column in table.primary_key.columns)
    conflict = f"ON CONFLICT ({key}) DO UPDATE SET {change}"
    if not is_server(connection):
        marks = ", ".join("?" * len(names))
        statement = f"INSERT INTO {_target(table)} VALUES ({marks}) {conflict}"
        _execute_many(connection, statement, rows)
        return
    listed = ", ".join(names)
    source = f"json_populate_recordset(NULL::{table.name}, %(rows)s::json)"
    statement = f"INSERT INTO {_target(table)} SELECT {listed} FROM {source} {conflict}"
    connection.exec_driver_sql(statement, {"rows": _document(names, rows)})


def _execute_many(connection: Connection, statement: str, rows: Sequence[Row]) -> None:
    connection.exec_driver_sql(statement, list(rows))


def _target(table: Table) -> str:
    return f"{table.name} ({', '.join(column.name for column in table.columns)})"


def _document(names: Sequence[str], rows: Sequence[Row]) -> str:
    keys = [str(name) for name in names]
    return orjson.dumps([dict(zip(keys, row, strict=True)) for row in rows]).decode()

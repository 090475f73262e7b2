"""The database: connections, transactions, migrations."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, and_, create_engine, event, make_url, or_, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.schema import Table

from fairlead_experiments.app.errors import StoreUnavailableError

_WRITER_LOCK = 0x666C2D657870  # "fl-exp": the advisory lock of the one writer on PostgreSQL.
_WRITING = "fairlead_writing"

# WAL lets readers go on while one writes. synchronous=FULL, because an answer means "kept": with
# NORMAL a killed process loses nothing (the pages are the kernel's by then), but a power cut loses
# the last commits, and the agent has already dropped what was acknowledged. One fsync a batch of
# 1,000 is cheap.
_PRAGMAS = (
    "PRAGMA busy_timeout=15000",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-65536",
    "PRAGMA temp_store=MEMORY",
)


_WAL_WITHIN = 15.0  # seconds


def open_engine(url: str) -> Engine:
    """Open a database; `url` is SQLAlchemy's, never logged (it may hold a password)."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, isolation_level="REPEATABLE READ")
    engine = create_engine(parsed)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # We say BEGIN ourselves; the driver's own comes too late.
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    _switch_to_wal(cursor)
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """Switch a database to WAL, once; several processes may try at the same moment.

    SQLite answers "locked" to all but one of them without minding the busy timeout.
    """
    deadline = time.monotonic() + _WAL_WITHIN
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] == "delete":
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One snapshot of the database."""
    with _translated(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, and no other writer beside it.

    SQLite has one writer anyway (BEGIN IMMEDIATE waits for it instead of failing half-way). On
    PostgreSQL an advisory lock makes it so: what is new in a batch can then be asked for, added
    and counted without races or deadlocks, and a batch is short.
    """
    with _translated(), engine.connect() as plain:
        connection = plain.execution_options(**{_WRITING: True})
        if connection.dialect.name == "postgresql":
            # A snapshot taken before the lock would not show what the last writer added.
            connection = connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})"))
            yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreUnavailableError("the database did not answer") from error


def upsert(connection: Connection, table: Table, added: tuple[str, ...]) -> Insert:
    """Answer an insert that adds the columns `added` to a row that is there already."""
    statement = _insert(connection, table)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={name: table.c[name] + statement.excluded[name] for name in added},
    )


def upsert_earliest(connection: Connection, table: Table) -> Insert:
    """Answer an insert that keeps, of two rows with one key, the one with the smaller `at`.

    Where both are of one moment the smaller `inference_id` decides, so that order never does.
    """
    statement = _insert(connection, table)
    new = statement.excluded
    is_earlier = or_(
        new.at < table.c.at,
        and_(new.at == table.c.at, new.inference_id < table.c.inference_id),
    )
    key = set(table.primary_key.columns)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={column.name: new[column.name] for column in table.c if column not in key},
        where=is_earlier,
    )


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    is_postgresql = connection.dialect.name == "postgresql"
    return postgresql.insert(table) if is_postgresql else sqlite.insert(table)


def migrate(engine: Engine) -> None:
    """Bring the tables up to date; several processes may start at once, one does it."""
    with writing(engine) as connection:
        command.upgrade(migrations(connection), "head")


def migrations(connection: Connection) -> Config:
    """Answer the configuration of the packaged migrations over an open transaction."""
    config = Config()
    config.set_main_option("script_location", "fairlead_experiments.adapters:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config

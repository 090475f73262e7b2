"""The database: connections, transactions, migrations."""

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import orjson
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Text,
    any_,
    create_engine,
    event,
    func,
    literal,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.schema import Table

from fairlead_experiments.app.errors import StoreUnavailableError

_LATER = "the tables are of a later release than this one: start that release again"
_WRITER_LOCK = 0x666C2D657870  # "fl-exp": the advisory lock of the one writer on PostgreSQL.
_WRITING = "fairlead_writing"
_SQLITE, _POSTGRESQL, _DRIVER = "sqlite", "postgresql", "postgresql+psycopg"

# WAL lets readers go on while one writes. synchronous=FULL, because an answer means "kept": with
# NORMAL a killed process loses nothing (the pages are the kernel's by then), but a power cut loses
# the last commits, and the agent has already dropped what was acknowledged. One fsync a batch of
# 1,000 is cheap.
_PRAGMAS = (
    "PRAGMA busy_timeout=15000",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cache_size=-65536",
)


_WAL_WITHIN = 15.0  # seconds

# What libpq gets unless the URL says otherwise. A server that was cut off is noticed within seconds,
# not after the kernel's quarter of an hour; of several hosts in the URL the one that takes writes is
# used.
_LIBPQ = {
    "application_name": "fairlead-experiments",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
    "target_session_attrs": "read-write",
}

# A caller waits 10 s (the agent's patience): another writer is waited for half of that, a statement
# runs no longer than it makes sense to try again. Set by statement, not among libpq's options, which
# connection poolers refuse. synchronous_commit, because an answer means "kept". What a batch or an
# analysis asks for is found by an index; but of a table that has grown within the last minute
# PostgreSQL has no figures, or it keeps a plan from before, and would walk through all of it.
_SESSION = {
    "lock_timeout": "5s",
    "statement_timeout": "30s",
    "idle_in_transaction_session_timeout": "60s",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "jit": "off",
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
}

# Two replicas hold at most 20 connections of PostgreSQL's usual 100.
_POOL = {
    "pool_size": 5,
    "max_overflow": 5,
    "pool_timeout": 5,
    "pool_recycle": 1800,
    "pool_pre_ping": True,
}


def open_engine(url: str) -> Engine:
    """Open a database: `sqlite://`, or `postgresql://` by psycopg, whether it says so or not.

    The URL is never logged and never part of a message: it may hold a password.

    Raises:
        ArgumentError: The URL cannot be read, or is another database's or driver's.
    """
    parsed = _parse(url)
    if parsed.drivername in {"postgres", _POSTGRESQL, _DRIVER}:
        return _open_postgresql(parsed.set(drivername=_DRIVER))
    if parsed.drivername in {_SQLITE, "sqlite+pysqlite"}:
        return _open_sqlite(parsed)
    raise ArgumentError("it must begin with postgresql:// (the driver is psycopg) or sqlite://")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ArgumentError("it is no URL of the form postgresql://USER@HOST/DATABASE") from error
    if "@" in (parsed.host or ""):
        # What follows the password's own "@" would be taken for the host, and told as such.
        raise ArgumentError("percent-encode the password: an @ in it is %40")
    return parsed


def is_server(database: Engine | Connection) -> bool:
    """Tell whether the database is another process, that may come and go: PostgreSQL."""
    return database.dialect.name == _POSTGRESQL


def _open_postgresql(url: URL) -> Engine:
    engine = create_engine(
        url.update_query_dict({k: v for k, v in _LIBPQ.items() if k not in url.query}),
        isolation_level="REPEATABLE READ",
        hide_parameters=True,
        **_POOL,
    )
    event.listen(engine, "connect", _set_up_postgresql)
    return engine


def _set_up_postgresql(connection: Any, _record: object) -> None:
    before, connection.autocommit = connection.autocommit, True
    settings = ", ".join(
        f"set_config('{name}', '{value}', false)" for name, value in _SESSION.items()
    )
    connection.execute(f"SELECT {settings}")
    connection.autocommit = before


def _open_sqlite(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True)
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
    with _translated(engine), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine, *, is_long: bool = False) -> Iterator[Connection]:
    """One transaction, and no other writer beside it.

    SQLite has one writer anyway (BEGIN IMMEDIATE waits for it instead of failing half-way). On
    PostgreSQL an advisory lock makes it so: what is new in a batch can then be asked for, added
    and counted without races or deadlocks, and a batch is short.

    Args:
        engine: The database.
        is_long: Its statements take as long as they take: a migration, or counting afresh.
    """
    with _translated(engine), engine.connect() as plain:
        connection = plain.execution_options(**{_WRITING: True})
        if is_server(engine):
            # A snapshot taken before the lock would not show what the last writer added.
            connection = connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            if is_server(engine):
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})"))
            if is_server(engine) and is_long:
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SET LOCAL enable_seqscan = on"))
            yield connection


class Checked:
    """Whatever keeps rows in a database, and uses it only while its tables are up to date.

    While a later release takes over, it brings the tables up to date and counts afresh beside a
    process of this one. What that process added then would be counted in the way of this release,
    and by nobody again: so it writes no more, and what is sent goes to the other.

    Args:
        engine: The database.
        check_tables: Raises while the tables are not up to date.
    """

    def __init__(self, engine: Engine, check_tables: Callable[[], None] = lambda: None) -> None:
        self._engine = engine
        self._check_tables = check_tables

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        self._check_tables()
        with reading(self._engine) as connection:
            yield connection

    @contextmanager
    def _writing(self, *, is_long: bool = False) -> Iterator[Connection]:
        self._check_tables()
        with writing(self._engine, is_long=is_long) as connection:
            check_release(connection)
            yield connection


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, _driver_errors(engine)) as error:
        raise StoreUnavailableError(_reason(engine, error)) from error


def _driver_errors(engine: Engine) -> type[Exception]:
    """What the driver raises where SQLAlchemy is not between: COPY."""
    kind: type[Exception] = engine.dialect.loaded_dbapi.Error
    return kind


def _reason(engine: Engine, error: Exception) -> str:
    """Say why, without what a statement carried and without the password.

    Only where there was no connection the driver's own words are repeated: they name the host, the
    database and the user. Those of a statement may quote values.
    """
    cause = getattr(error, "orig", None) or error
    state = getattr(cause, "sqlstate", None)
    if state is not None and getattr(error, "statement", True):
        return f"{type(cause).__name__} ({state})"
    if not isinstance(error, DBAPIError) or not is_server(engine):
        return type(cause).__name__
    words = " ".join(str(cause).split()) or type(cause).__name__
    for secret in (engine.url.password, engine.url.query.get("password")):
        words = words.replace(str(secret), "***") if secret else words
    return words


def among(
    connection: Connection, column: ColumnElement[Any], values: Iterable[Any]
) -> ColumnElement[bool]:
    """Answer the condition that a column has one of many values.

    They are one parameter, an array or a JSON list: thousands of parameters cost the driver more
    time than the database needs to find the rows.
    """
    given = list(values)
    if is_server(connection):
        kind = BigInteger() if isinstance(column.type, BigInteger) else Text()
        return column == any_(literal(given, postgresql.ARRAY(kind)))
    listed = func.json_each(orjson.dumps(given).decode()).table_valued("value")
    return column.in_(select(listed.c.value))


def insert_new(connection: Connection, table: Table) -> Insert:
    """Answer an insert that leaves a row alone that is there already."""
    if is_server(connection):
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


def migrate(engine: Engine) -> None:
    """Bring the tables up to date; several processes may start at once, one does it.

    Raises:
        StoreUnavailableError: The database does not answer, or its tables are a later release's.
    """
    with writing(engine, is_long=True) as connection:
        try:
            command.upgrade(migrations(connection), "head")
        except CommandError as error:
            raise StoreUnavailableError(_LATER) from error


def migrations(connection: Connection) -> Config:
    """Answer the configuration of the packaged migrations over an open transaction."""
    config = _packaged()
    config.attributes["connection"] = connection
    return config


def _packaged() -> Config:
    config = Config()
    config.set_main_option("script_location", "fairlead_experiments.adapters:migrations")
    config.set_main_option("path_separator", "os")
    return config


@cache
def _head() -> str | None:
    """The last migration of this release."""
    return ScriptDirectory.from_config(_packaged()).get_current_head()


def check_release(connection: Connection) -> None:
    """Raise if the tables are another release's by now."""
    if connection.scalar(text("SELECT version_num FROM alembic_version")) != _head():
        raise StoreUnavailableError(_LATER)

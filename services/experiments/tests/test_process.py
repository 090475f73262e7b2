"""The command as a process: it starts, keeps what it acknowledged through kill -9, and ends."""

import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from experiments_process import Server, serving
from sqlalchemy import Engine, func, select, text

from fairlead_experiments.adapters.database import migrate, migrations, open_engine, writing
from fairlead_experiments.adapters.preparation import Preparation
from fairlead_experiments.adapters.retention import SqlArchive
from fairlead_experiments.adapters.schema import EXPOSURES, METADATA
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.documents import dump_rollout
from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.app.validation import read_exposures, read_rollout
from fairlead_experiments.domain.records import Kind
from fairlead_experiments.entrypoints.cli import URL_VARIABLE, main

Build = Callable[..., dict[str, Any]]


def test_kill_loses_nothing_acknowledged_and_replays_count_once(
    empty_url: str, exposure: Build, outcome: Build, record: Build
) -> None:
    """Killed in the middle of batches again and again, replayed: counts equal what was sent."""
    batches = [[f"b{batch}-{n}" for n in range(1000)] for batch in range(3)]
    acknowledged: list[int] = []

    def send(server: Server, number: int) -> None:
        ids = batches[number]
        sent = [exposure(inferenceId=i, unit=f"u{n % 700}") for n, i in enumerate(ids)]
        try:
            server.call("/v1/exposures", {"exposures": sent})
            server.call("/v1/outcomes", {"outcomes": [outcome(inferenceId=i) for i in ids]})
        except (OSError, ValueError):
            return
        acknowledged.append(number)

    for number, delay in enumerate((0.01, 0.04, 0.1)):
        with serving(empty_url) as server:
            sender = threading.Thread(target=send, args=(server, number))
            sender.start()
            sender.join(delay)
            server.end(signal.SIGKILL)
            sender.join()

    engine = open_engine(empty_url)
    with engine.connect() as connection:
        kept = connection.scalar(select(func.count()).select_from(EXPOSURES))
    engine.dispose()
    assert kept >= 1000 * len(acknowledged)
    assert kept % 1000 == 0

    with serving(empty_url) as server:
        server.call("/v1/rollouts/r1", record(), "PUT")
        for number in [0, 1, 2, 0, 1, 2]:
            send(server, number)
        found = server.call("/v1/rollouts/r1/analysis")
        assert server.end(signal.SIGTERM) in {0, -signal.SIGTERM}

    arm = found["arms"]["candidate"]
    assert (arm["requests"], arm["units"], arm["outcomes"]) == (3000, 700, 3000)
    assert found["steps"][0]["candidate"]["measured"] == 700


def test_several_start_at_once_on_one_database(empty_url: str) -> None:
    """Processes that start together bring the tables up to date once."""
    servers = [Server(empty_url) for _ in range(2)]
    try:
        for server in servers:
            server.wait()
    finally:
        for server in servers:
            server.close()


def test_the_command_needs_a_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a URL, or with one that cannot be opened, it says so and never repeats it."""
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert main(["serve", "--port", "1"]) == 2
    assert URL_VARIABLE in capsys.readouterr().err

    for url in (
        "nonsense://u:s3cret@h/d",
        "s3cret",
        "sqlite:////no/such/s3cret/x.db",
        "postgresql+psycopg2://u:s3cret@h/d",
        "postgresql://u:an@s3cret@h/d",
        "postgresql://u:s3cret@h:port/d",
    ):
        assert main(["serve", "--port", "1", "--database-url", url]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("fairlead-experiments: ")
        assert "s3cret" not in said.err + said.out


def is_no_partition(name: str | None, _kind: str, parents: dict[str, str | None]) -> bool:
    """Tell tables and what is theirs from partitions, which come and go with time."""
    table = parents.get("table_name") or name or ""
    return not re.search(r"_\d{8}$", table)


def test_migrations_make_the_tables_of_the_schema(engine: Engine) -> None:
    """After all migrations there is nothing left to generate, and running them again is quiet."""
    migrate(engine)
    with engine.connect() as connection:
        options = {"compare_type": True, "include_name": is_no_partition}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, METADATA) == []


def test_a_service_counts_no_more_when_a_later_release_takes_over(
    engine: Engine, store: SqlStore, exposure: Build, record: Build
) -> None:
    """What the release before added after the tables have changed would be counted by nobody."""
    rollout = read_rollout("r1", record())
    exposures, _ = read_exposures([exposure()], now=datetime.now(UTC))
    store.put_rollout(rollout)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    for use in (
        store.check,
        lambda: store.add_exposures(exposures),
        lambda: store.put_rollout(rollout),
        lambda: store.read_aggregates(rollout, datetime.now(UTC)),
        lambda: SqlArchive(engine).remove_rows(),
    ):
        with pytest.raises(StoreUnavailableError) as found:
            use()
        assert "later release" in found.value.reason

    with engine.connect() as connection:
        assert connection.execute(select(EXPOSURES)).all() == []


def test_what_an_earlier_release_kept_is_counted(empty_url: str, record: Build) -> None:
    """Rows of the first tables are moved, and counted in the new way before the service answers."""
    engine = open_engine(empty_url)
    rollout = read_rollout("r1", record())
    row = {"id": "r1", "model": rollout.model, "stable": "3", "candidate": "4"}
    with writing(engine) as connection:
        command.upgrade(migrations(connection), "0001")
        connection.execute(
            text(
                "INSERT INTO rollouts (id, model, started_at, stable, candidate, slower_than,"
                " document) VALUES (:id, :model, 0, :stable, :candidate, 0.2, :document)"
            ),
            {**row, "document": dump_rollout(rollout)},
        )
        for number, at in enumerate((0, int(time.time() * 1e6))):
            connection.execute(
                text(
                    "INSERT INTO exposures VALUES (:id, 'r1', 0, 'candidate', '4', :unit, :at, 500,"
                    " 1, 300)"
                ),
                {"id": f"i{number}", "unit": f"u{number}", "at": at},
            )
            connection.execute(
                text("INSERT INTO units VALUES ('r1', :unit, 0, 'candidate', 1)"),
                {"unit": f"u{number}"},
            )
            connection.execute(
                text(
                    "INSERT INTO unit_outcomes VALUES"
                    " ('r1', 'squared_error', :unit, 0, 'candidate', 1, :value)"
                ),
                {"unit": f"u{number}", "value": float(number)},
            )

    Preparation(engine).run_once()

    found = SqlStore(engine).read_aggregates(rollout, datetime.now(UTC))
    assert found.requests[0, "candidate"].slow == 2
    assert found.bad_units[Kind.ERRORS] == {(0, "candidate"): 2}
    assert found.units[0, "candidate"].new == 2
    assert found.moments[0].candidate.n == 2
    assert found.moments[0].candidate.mean[0] == 0.5
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(EXPOSURES)) == 2
    engine.dispose()


def test_sqlite_is_set_up_to_keep_what_it_acknowledges(tmp_path: Path) -> None:
    """WAL, a full sync at each commit, foreign keys, and patience with another writer."""
    engine = open_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    engine.dispose()
    assert found == ["wal", 2, 1, 15000]

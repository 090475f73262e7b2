"""The command as a process: it starts, keeps what it acknowledged through kill -9, and ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_mock_engine, select

from fairlead_experiments.adapters.database import migrate, open_engine
from fairlead_experiments.adapters.schema import METADATA, UNITS
from fairlead_experiments.entrypoints.cli import URL_VARIABLE, main

Build = Callable[..., dict[str, Any]]
COMMAND = "from fairlead_experiments.entrypoints.cli import main; raise SystemExit(main())"


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """The service as a process of its own."""

    def __init__(self, database: Path) -> None:
        self.port = free_port()
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "serve", "--port", str(self.port)],
            env={**os.environ, URL_VARIABLE: f"sqlite:///{database}"},
        )

    def wait(self) -> None:
        """Wait until it answers."""
        for _ in range(600):
            assert self.process.poll() is None
            try:
                self.call("/readyz")
            except OSError:
                self._ready.wait(0.05)
            else:
                return
        pytest.fail("the service did not start")

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request; answer its JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(database: Path) -> Iterator[Server]:
    """A server that never outlives its test."""
    server = Server(database)
    try:
        server.wait()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(30)


def test_kill_loses_nothing_acknowledged_and_replays_count_once(
    tmp_path: Path, exposure: Build, outcome: Build, record: Build
) -> None:
    """Killed in the middle of batches again and again, replayed: counts equal what was sent."""
    database = tmp_path / "x.db"
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
        with serving(database) as server:
            sender = threading.Thread(target=send, args=(server, number))
            sender.start()
            sender.join(delay)
            server.end(signal.SIGKILL)
            sender.join()

    engine = open_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        kept = sum(connection.scalars(select(UNITS.c.requests)))
    engine.dispose()
    assert kept >= 1000 * len(acknowledged)
    assert kept % 1000 == 0

    with serving(database) as server:
        put = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/v1/rollouts/r1",
            data=json.dumps(record()).encode(),
            headers={"content-type": "application/json"},
            method="PUT",
        )
        urllib.request.urlopen(put, timeout=30).close()  # noqa: S310
        for number in [0, 1, 2, 0, 1, 2]:
            send(server, number)
        found = server.call("/v1/rollouts/r1/analysis")
        assert server.end(signal.SIGTERM) in {0, -signal.SIGTERM}

    arm = found["arms"]["candidate"]
    assert (arm["requests"], arm["units"], arm["outcomes"]) == (3000, 700, 3000)
    assert found["steps"][0]["candidate"]["measured"] == 700


def test_several_start_at_once_on_one_database(tmp_path: Path) -> None:
    """Processes that start together bring the tables up to date once."""
    servers = [Server(tmp_path / "x.db") for _ in range(2)]
    try:
        for server in servers:
            server.wait()
    finally:
        for server in servers:
            server.process.kill()
            server.process.wait(30)


def test_the_command_needs_a_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a URL, or with one that cannot be opened, it says so and never repeats it."""
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    assert main(["serve", "--port", "1"]) == 2
    assert URL_VARIABLE in capsys.readouterr().err

    for url in ("nonsense://u:s3cret@h/d", "s3cret", "sqlite:////no/such/s3cret/x.db"):
        assert main(["serve", "--port", "1", "--database-url", url]) == 2
        said = capsys.readouterr()
        assert said.err.startswith("fairlead-experiments: ")
        assert "s3cret" not in said.err + said.out


def test_migrations_make_the_tables_of_the_schema(engine: Engine) -> None:
    """After all migrations there is nothing left to generate, and running them again is quiet."""
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_the_tables_can_be_written_for_postgresql() -> None:
    """The schema and the one dialect-specific statement compile for PostgreSQL."""
    written: list[str] = []
    postgresql = create_mock_engine(
        "postgresql+psycopg2://", lambda sql, *_args, **_kwargs: written.append(str(sql))
    )
    METADATA.create_all(postgresql, checkfirst=False)
    assert len(written) > 5


def test_sqlite_is_set_up_to_keep_what_it_acknowledges(engine: Engine) -> None:
    """WAL, a full sync at each commit, foreign keys, and patience with another writer."""
    with engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 2, 1, 15000]

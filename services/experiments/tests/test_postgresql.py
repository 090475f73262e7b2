"""PostgreSQL as a server that comes late, goes away, is slow, and has a password."""

import json
import threading
import urllib.error
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from experiments_postgresql import (
    PASSWORD,
    VARIABLE,
    NamedServer,
    PostgresServer,
    find_binaries,
    shared_server,
    tell_missing,
)
from experiments_process import Server, serving
from sqlalchemy import Engine, func, select, text

from fairlead_experiments.adapters import database
from fairlead_experiments.adapters.database import migrate, open_engine, reading, writing
from fairlead_experiments.adapters.schema import EXPOSURES
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.app.validation import read_exposures, read_rollout

Build = Callable[..., dict[str, Any]]
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server of the test's own, which it may stop; it does not run yet."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def opened(prepared_url: str) -> Iterator[Engine]:
    """A PostgreSQL database, its tables up to date, to look at: others are copies of it."""
    engine = open_engine(prepared_url)
    yield engine
    engine.dispose()


@pytest.fixture
def copied(postgres: NamedServer, prepared_url: str) -> Iterator[Engine]:
    """A PostgreSQL database of the test's own, its tables up to date and empty."""
    url = postgres.create_database(prepared_url)
    engine = open_engine(url)
    yield engine
    engine.dispose()
    postgres.drop_database(url)


def refusal(server: Server, path: str, body: dict[str, Any] | None = None) -> tuple[int, str, Any]:
    """The status, Retry-After and message of a request that fails."""
    with pytest.raises(urllib.error.HTTPError) as found:
        server.call(path, body)
    with found.value as answer:
        return answer.code, answer.headers["retry-after"], json.load(answer)["message"]


def test_the_tests_use_the_server_that_is_named(
    own: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAIRLEAD_TEST_POSTGRES names one, in which databases are made and dropped."""
    own.start()
    monkeypatch.setenv(VARIABLE, own.url())
    named = shared_server()
    assert type(named) is NamedServer

    url = named.create_database()
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    named.drop_database(url)

    with pytest.raises(StoreUnavailableError, match="did not answer"), reading(open_engine(url)):
        pytest.fail("the database is still there")


def test_debians_newest_server_is_taken_else_the_wheels(tmp_path: Path) -> None:
    """Version 15 goes before 9; without Debian's package the wheel has one; without both, none."""
    for version in ("9", "15"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        (folder / "initdb").touch()

    assert find_binaries(tmp_path) == tmp_path / "15" / "bin"
    wheel = find_binaries(tmp_path / "none")
    assert wheel
    assert (wheel / "initdb").exists()
    assert find_binaries(tmp_path / "none", "no_such_wheel") is None


@pytest.mark.parametrize(
    ("environment", "told"), [({}, "Skipped"), ({"CI": ""}, "Skipped"), ({"CI": "true"}, "Failed")]
)
def test_a_machine_without_a_server_says_so(environment: dict[str, str], told: str) -> None:
    """Tests that need one are skipped with what to do, and fail in CI."""
    with pytest.raises(BaseException, match=f"{VARIABLE}=postgresql://") as found:
        tell_missing(environment)

    assert found.typename == told


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "postgres"])
def test_the_driver_is_psycopg_however_the_url_begins(scheme: str) -> None:
    """A URL as other tools write it works as it is, and its own settings win over ours."""
    engine = open_engine(f"{scheme}://u:p@h/d?connect_timeout=2&host=a:1&host=b:2")

    assert engine.dialect.driver == "psycopg"
    assert engine.url.query["connect_timeout"] == "2"
    assert engine.url.query["target_session_attrs"] == "read-write"


def test_a_connection_is_set_up_to_wait_so_long_and_to_keep_what_is_committed(
    opened: Engine,
) -> None:
    """Statements have limits, a commit waits for the disk, no plan outlives its table's size."""
    names = (
        "lock_timeout",
        "statement_timeout",
        "synchronous_commit",
        "transaction_isolation",
        "plan_cache_mode",
        "enable_seqscan",
    )
    with reading(opened) as connection:
        read = [connection.scalar(text(f"SHOW {name}")) for name in names]
    with writing(opened, is_long=True) as connection:
        written = [connection.scalar(text(f"SHOW {name}")) for name in names]

    assert read == ["5s", "30s", "on", "repeatable read", "force_custom_plan", "off"]
    assert written == ["5s", "0", "on", "read committed", "force_custom_plan", "on"]


def test_a_batch_reads_no_more_after_its_table_has_grown(
    copied: Engine, record: Build, exposure: Build
) -> None:
    """Neither an earlier plan nor the want of figures has a batch walk through 100,000 exposures."""
    store = SqlStore(copied)
    store.put_rollout(read_rollout("r1", record()))
    for number in range(15):  # psycopg prepares the sixth, PostgreSQL plans for good five later.
        _send(store, exposure, f"before-{number}")
    _grow(copied)

    _send(store, exposure, "after")

    assert _walked(copied, "seq_tup_read") < 50_000


def test_a_new_record_reads_nothing_of_other_rollouts(
    copied: Engine, record: Build, exposure: Build
) -> None:
    """A rollout begins at once beside 100,000 exposures of another one, and is counted."""
    store = SqlStore(copied)
    store.put_rollout(read_rollout("r1", record()))
    _send(store, exposure, "before")
    _grow(copied)

    store.put_rollout(read_rollout("r2", record()))

    assert _walked(copied, "seq_tup_read + COALESCE(idx_tup_fetch, 0)") < 50_000


def _grow(engine: Engine) -> None:
    """Add 100,000 exposures like one that is there, in a moment that leaves no figures."""
    names = ", ".join(c.name for c in EXPOSURES.columns if c.name != "inference_id")
    grown = (
        "WITH one AS MATERIALIZED (SELECT * FROM exposures LIMIT 1) "  # noqa: S608 - our own names
        f"INSERT INTO exposures (inference_id, {names}) "
        f"SELECT 'grown-' || n, {names} FROM one, generate_series(1, 100000) AS n"
    )
    with engine.begin() as connection:
        connection.execute(text(grown))


def _walked(engine: Engine, counter: str) -> int:
    """Answer how many rows have been read, by a counter of PostgreSQL's."""
    engine.dispose()  # A connection that ends hands its figures over.
    walked = text(f"SELECT sum({counter}) FROM pg_stat_user_tables")  # noqa: S608 - our own words
    with engine.connect() as connection:
        return int(connection.scalar(walked) or 0)


def _send(store: SqlStore, exposure: Build, name: str) -> None:
    sent = [exposure(inferenceId=f"{name}-{n}", unit=f"{name}-{n}") for n in range(100)]
    taken, rejected = read_exposures(sent, now=NOW)
    assert not rejected
    assert store.add_exposures(taken).accepted == 100


def test_another_writer_is_not_waited_for_without_end(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that stands still does not hold up the others' answers: they say so."""
    monkeypatch.setitem(database._SESSION, "lock_timeout", "100ms")
    first, second = open_engine(postgres_url), open_engine(postgres_url)

    with writing(first), pytest.raises(StoreUnavailableError) as found, writing(second):
        pytest.fail("two writers at once")

    first.dispose()
    second.dispose()
    assert found.value.reason == "LockNotAvailable (55P03)"


def test_a_statements_values_are_not_part_of_the_reason(opened: Engine) -> None:
    """The server's message may quote what was sent; the reason names the kind of error alone."""
    with pytest.raises(StoreUnavailableError) as found, reading(opened) as connection:
        connection.execute(text("SELECT CAST('s3cr3t-unit' AS integer)"))

    assert found.value.reason == "InvalidTextRepresentation (22P02)"


def test_tables_of_a_later_release_are_left_alone(postgres_url: str) -> None:
    """A service that was rolled back says why it does not serve, and changes nothing."""
    engine = open_engine(postgres_url)
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(StoreUnavailableError) as found:
        migrate(engine)

    engine.dispose()
    assert "later release" in found.value.reason


def test_a_late_record_counts_what_is_there_without_statistics(
    copied: Engine, record: Build
) -> None:
    """20,000 units in two steps, before PostgreSQL has looked at the tables: counted at once."""
    units = "FROM generate_series(1, 20000) AS n, generate_series(0, 1) AS step"
    with copied.begin() as connection:
        connection.execute(text(f"INSERT INTO units SELECT 'r1', 'u' || n, step, 'stable' {units}"))
        connection.execute(
            text(
                "INSERT INTO unit_outcomes "
                f"SELECT 'r1', 'u' || n, 'squared_error', step, 'stable', 1, n {units}"
            )
        )
    store, rollout = SqlStore(copied), read_rollout("r1", record())
    store.put_rollout(rollout)

    found = store.read_aggregates(rollout, NOW)

    assert found.units[1, "stable"].units == 20_000
    assert found.moments[1].stable.n == 20_000
    assert found.moments[1].stable.mean[0] == 10_000.5


def test_the_service_waits_for_its_database(own: PostgresServer, exposure: Build) -> None:
    """Without a database it lives, is not ready and says why; once it is there, it serves."""
    with serving(own.url(), "/livez") as server:
        message = ""
        while "refused" not in message:
            code, after, message = refusal(server, "/readyz")
            assert (code, after) == (503, "1")
        assert str(own.port) in message
        batch = {"exposures": [exposure()]}
        assert refusal(server, "/v1/exposures", batch)[:2] == (503, "1")

        own.start()
        server.wait()
        assert server.call("/v1/exposures", batch)["accepted"] == 1
        assert "trying again" in server.errors()
        assert PASSWORD not in server.errors()


def test_a_wrong_password_is_named_and_not_shown(own: PostgresServer) -> None:
    """The reason names host, port and user, never the password."""
    own.start()
    with serving(own.url(password="s3cr3t-guess"), "/livez") as server:  # noqa: S106
        message = ""
        while "password authentication failed" not in message:
            code, _, message = refusal(server, "/readyz")
            assert code == 503

        assert "postgres" in message
        assert "s3cr3t" not in message + server.errors()


class Sender(threading.Thread):
    """Sends batches, each until it is taken, as the gateway's agent does."""

    def __init__(self, server: Server, name: str, build: Build) -> None:
        super().__init__()
        self._server, self._name, self._build = server, name, build
        self._pause = threading.Event()
        self.is_ended = threading.Event()
        self.taken = 0
        self.failures: list[tuple[int, str | None]] = []

    def run(self) -> None:
        """Send until it is ended."""
        while not self.is_ended.is_set():
            ids = [f"{self._name}-{self.taken}-{n}" for n in range(50)]
            batch = {"exposures": [self._build(inferenceId=i, unit=i) for i in ids]}
            while not self._is_taken(batch):
                self._pause.wait(0.02)
            self.taken += 1

    def _is_taken(self, batch: dict[str, Any]) -> bool:
        try:
            self._server.call("/v1/exposures", batch)
        except urllib.error.HTTPError as error:
            with error:
                self.failures.append((error.code, error.headers["retry-after"]))
            return False
        return True

    def more(self) -> None:
        """Wait until some batches more are taken."""
        wanted = self.taken + 3
        for _ in range(1200):
            if self.taken >= wanted:
                return
            self._pause.wait(0.05)
        pytest.fail("no batch is taken any more")


def test_a_restart_under_load_loses_nothing(
    own: PostgresServer, exposure: Build, record: Build
) -> None:
    """Restarted and crashed under four senders: only 503s to try again, each exposure once."""
    own.start()
    with serving(own.url()) as server:
        server.call("/v1/rollouts/r1", record(), "PUT")
        senders = [Sender(server, f"s{n}", exposure) for n in range(4)]
        for sender in senders:
            sender.start()
        try:
            for mode in ("fast", "immediate"):
                for sender in senders:
                    sender.more()
                own.stop(mode)
                assert refusal(server, "/readyz")[0] == 503
                own.start()
            for sender in senders:
                sender.more()
        finally:
            for sender in senders:
                sender.is_ended.set()
            for sender in senders:
                sender.join(60)
        found = server.call("/v1/rollouts/r1/analysis")

    failures = {failure for sender in senders for failure in sender.failures}
    assert failures == {(503, "1")}
    taken = 50 * sum(sender.taken for sender in senders)
    arm = found["arms"]["candidate"]
    assert (arm["requests"], arm["units"]) == (taken, taken)
    engine = open_engine(own.url())
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(EXPOSURES)) == taken
    engine.dispose()

"""What goes when it is old, what stays, and what a process that dies in between leaves."""

import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from experiments_process import COMMAND, serving
from sqlalchemy import Connection, Engine, Table, func, select, update

from fairlead_experiments.adapters import retention as adapter
from fairlead_experiments.adapters.database import is_server, open_engine
from fairlead_experiments.adapters.partitions import names
from fairlead_experiments.adapters.retention import SqlArchive
from fairlead_experiments.adapters.schema import (
    BAD_UNITS,
    COUNTERS,
    DETAILS,
    EXPOSURES,
    OUTCOMES,
    REQUESTS,
    ROLLOUTS,
    UNIT_OUTCOMES,
    UNITS,
)
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.app.retention import Removed, Retention
from fairlead_experiments.app.service import Experiments
from fairlead_experiments.entrypoints.cli import main

Build = Callable[..., dict[str, Any]]
KEEP = timedelta(days=90)
DECIDED = datetime(2026, 1, 2, tzinfo=UTC)
ROWS = (EXPOSURES, OUTCOMES, UNITS, UNIT_OUTCOMES, DETAILS, BAD_UNITS)


class Time:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Answer what was set."""
        return self.now


class Case:
    """The use cases over one database, and a clock."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.clock = engine, Time()
        self.experiments = Experiments(SqlStore(engine), self.clock)

    def run(self, is_over: Callable[[], bool] = lambda: False) -> Removed:
        """Make a pass."""
        archive = SqlArchive(self.engine)
        return Retention(archive, self.experiments, self.clock, is_over).run(KEEP)

    def rows(self, table: Table, rollout: str | None = None) -> int:
        """Count a table's rows, or a rollout's."""
        found = select(func.count()).select_from(table)
        if rollout is not None:
            found = found.where(table.c.rollout == rollout)
        with self.engine.connect() as connection:
            return connection.scalar(found) or 0


@pytest.fixture
def case(engine: Engine) -> Case:
    """An empty database."""
    return Case(engine)


@pytest.fixture
def fill(exposure: Build, outcome: Build, record: Build) -> Callable[..., None]:
    """Fills a rollout: units of both arms, some bad, some with outcomes, a decision at the end."""

    def filled(
        case: Case,
        rollout: str,
        model: str,
        *,
        decided: datetime | None = DECIDED,
        at: datetime = DECIDED - timedelta(days=1),
    ) -> None:
        when = None if decided is None else decided.isoformat()
        met_at, told_at = at.isoformat(), (at + timedelta(minutes=5)).isoformat()
        objective = {**record()["objective"], "window": 600}
        kept = record(model=model, decidedAt=when, objective=objective)
        case.experiments.put_rollout(rollout, kept)
        met = [
            exposure(
                inferenceId=f"{rollout}-{n}",
                rollout=rollout,
                unit=f"u{n}",
                at=met_at,
                arm=("stable", "candidate")[n % 2],
                code=500 if n % 5 == 0 else 200,
            )
            for n in range(20)
        ]
        told = [
            outcome(inferenceId=f"{rollout}-{n}", value=n, observedAt=told_at)
            for n in range(0, 20, 3)
        ]
        own = outcome(unit="u1", model=model, value=9, observedAt=told_at)
        told.append({**own, "inferenceId": None})
        assert case.experiments.take_exposures(met).accepted == len(met)
        assert case.experiments.take_outcomes(told).accepted == len(told)
        case.experiments.put_decision(rollout, "d1", decision())

    return filled


def decision() -> dict[str, Any]:
    """A decision as the controller sends one."""
    return {
        "at": "2026-01-02T00:00:00Z",
        "verdict": "promote",
        "check": "objective",
        "reason": "Better",
        "message": "m",
        "summary": "s",
        "to": {},
        "thresholds": {},
        "inputs": {},
    }


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    """An analysis without when it was made and closed."""
    return {key: value for key, value in document.items() if key not in {"at", "closedAt"}}


def test_a_closed_rollout_keeps_its_story_and_loses_its_rows(case: Case, fill: Any) -> None:
    """Rows go; the record, the counts, the decisions, the report and the last analysis stay."""
    fill(case, "r1", "m1")
    before = case.experiments.analyse("r1")
    record = case.experiments.get_rollout("r1")
    counts = case.rows(COUNTERS), case.rows(REQUESTS)
    case.clock.now = DECIDED + KEEP + timedelta(seconds=1)

    removed = case.run()
    after = case.experiments.analyse("r1")

    assert removed.closed == 1
    assert [case.rows(table) for table in ROWS] == [0] * 6
    assert (case.rows(COUNTERS), case.rows(REQUESTS)) == counts
    assert without_times(after) == without_times(before)
    assert before["closedAt"] is None
    assert after["closedAt"] == "2026-04-02T00:00:01Z"
    assert case.experiments.get_rollout("r1") == record
    assert [one.id for one in case.experiments.list_decisions("r1")] == ["d1"]
    assert case.experiments.report("r1")


@pytest.mark.parametrize("decided", [None, DECIDED + timedelta(seconds=2)])
def test_a_rollout_that_is_not_closed_counts_what_comes_late(
    case: Case, fill: Any, outcome: Build, decided: datetime | None
) -> None:
    """Undecided, or decided not long ago enough: no row goes, and an outcome of months ago counts."""
    fill(case, "r1", "m1", decided=decided)
    before = [case.rows(table) for table in ROWS]
    case.clock.now = DECIDED + KEEP + timedelta(seconds=1)

    assert case.run() == Removed(0, 0, 0)
    late = case.experiments.take_outcomes([outcome(inferenceId="r1-1", value=5)])

    assert [case.rows(table) for table in ROWS] == [before[0], before[1] + 1, *before[2:]]
    assert (late.accepted, late.rejected) == (1, ())
    found = case.experiments.analyse("r1")["arms"]
    assert found["stable"]["outcomes"] + found["candidate"]["outcomes"] == 9  # type: ignore[index]


def test_what_comes_for_a_closed_rollout_is_named(
    case: Case, fill: Any, exposure: Build, outcome: Build
) -> None:
    """Each item is refused by its place with the reason, before and after its rows are gone."""
    fill(case, "old", "m1")
    fill(case, "new", "m2", decided=None)
    case.clock.now = DECIDED + KEEP + timedelta(seconds=1)
    SqlArchive(case.engine).close(decided_before=case.clock.now - KEEP, now=case.clock.now)
    now = "2026-04-02T00:00:00Z"
    for _ in range(2):
        exposures = [
            {"arm": "none"},
            exposure(inferenceId="a", rollout="old"),
            exposure(inferenceId="b", rollout="new", at=now),
            exposure(inferenceId="old-1", rollout="old"),
        ]
        outcomes = [
            outcome(inferenceId="old-1"),
            {"outcome": "x"},
            outcome(inferenceId="old-2"),
            outcome(inferenceId="new-1", value=7),
            outcome(inferenceId="still-to-come", observedAt=now),
        ]
        met = case.experiments.take_exposures(exposures)
        told = case.experiments.take_outcomes(outcomes)

        assert met.accepted + met.duplicates == 1
        assert [(r.index, r.field) for r in met.rejected][1:] == [(1, "rollout"), (3, "rollout")]
        assert "closed" in met.rejected[1].reason
        assert told.accepted + told.duplicates == 2
        by_place = {r.index: r for r in told.rejected}
        assert sorted(by_place) == [0, 1, 2]
        assert (by_place[0].field, by_place[2].field) == ("inferenceId", "inferenceId")
        assert "no rollout that still takes outcomes" in by_place[0].reason
        case.run()


def test_a_closed_record_is_kept_up_to_date_and_never_counted_again(
    case: Case, fill: Any, record: Build
) -> None:
    """A record that is sent again changes the record; counts of rows that are gone stay."""
    fill(case, "r1", "m1")
    case.clock.now = DECIDED + KEEP + timedelta(seconds=1)
    case.run()
    before = case.rows(COUNTERS), case.experiments.analyse("r1")
    with case.engine.begin() as connection:
        connection.execute(update(ROLLOUTS).values(counted_by=0))

    case.experiments.put_rollout(
        "r1", record(model="m1", candidate="5", objective=None, reason="x")
    )
    SqlStore(case.engine).count_stale()

    assert case.experiments.get_rollout("r1").reason == "x"
    assert (case.rows(COUNTERS), case.experiments.analyse("r1")) == before


@pytest.mark.parametrize("is_concluded", [True, False])
def test_a_closed_rollout_is_told_by_what_it_was_counted_by(
    case: Case, exposure: Build, outcome: Build, record: Build, *, is_concluded: bool
) -> None:
    """Another objective for the counts that stay would make an analysis of neither, or none."""
    case.experiments.put_rollout("r1", record(model="m1", decidedAt="2026-01-02T00:00:00Z"))
    case.experiments.take_exposures([exposure()])
    case.experiments.take_outcomes([outcome()])
    case.clock.now = DECIDED + KEEP + timedelta(seconds=1)
    archive = SqlArchive(case.engine)
    archive.close(decided_before=case.clock.now - KEEP, now=case.clock.now)
    before = case.experiments.analyse("r1")
    if is_concluded:
        case.run()
    changed = {**record()["objective"], "kind": "ratio", "denominator": "orders"}
    guards = {**record()["guardrails"], "latency": None}

    kept = case.experiments.put_rollout(
        "r1", record(model="m1", objective=changed, guardrails=guards, reason="x")
    )

    assert kept == case.experiments.get_rollout("r1")
    assert (kept.reason, kept.objective and kept.objective.denominator) == ("x", None)
    assert case.experiments.analyse("r1") == before
    case.run()
    assert case.experiments.analyse("r1") == before


class Died(BaseException):
    """The process, in the middle of a pass."""


def test_a_pass_may_end_anywhere(case: Case, fill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after every single step: the analysis is whole at each, and the next pass goes on."""
    monkeypatch.setattr(adapter, "AT_ONCE", 3)
    fill(case, "old", "m1")
    fill(case, "new", "m2", decided=None)
    whole = {name: without_times(case.experiments.analyse(name)) for name in ("old", "new")}
    rows = [case.rows(table, "new") for table in (EXPOSURES, UNITS, UNIT_OUTCOMES, BAD_UNITS)]
    case.clock.now = DECIDED + KEEP + timedelta(seconds=1)
    steps = 0

    def die() -> bool:
        raise Died

    while True:
        left = case.rows(ROLLOUTS), case.rows(EXPOSURES, "old"), case.rows(UNITS, "old")
        with suppress(Died):
            case.run(die)
        for name, expected in whole.items():
            assert without_times(case.experiments.analyse(name)) == expected
        steps += 1
        if left[1:] == (0, 0):
            break

    case.run()
    assert steps > 5
    assert case.rows(BAD_UNITS, "old") == 0
    kept = [case.rows(table, "new") for table in (EXPOSURES, UNITS, UNIT_OUTCOMES, BAD_UNITS)]
    assert kept == rows
    assert case.run() == Removed(0, 0, 0)


def test_outcomes_of_nothing_go_by_their_time(
    case: Case, fill: Any, outcome: Build, record: Build
) -> None:
    """What belongs to no exposure stays for as long, and what an open rollout may look back to."""
    case.clock.now = datetime(2026, 9, 1, tzinfo=UTC)
    objective = {**record()["objective"], "covariate": "y"}
    opened = record(model="m9", startedAt="2026-08-01T00:00:00Z", objective=objective)
    case.experiments.put_rollout("r9", opened)
    fill(case, "r1", "m1", decided=None)
    told = [
        outcome(inferenceId="none", observedAt="2026-06-02T00:00:00Z"),
        outcome(inferenceId="late", observedAt="2026-06-05T00:00:00Z"),
        *(
            {"outcome": "y", "value": 1, "unit": unit, "model": model, "observedAt": observed}
            for unit, model, observed in (
                ("gone", "m1", "2025-12-31T00:00:00Z"),
                ("held", "m9", "2026-05-03T00:00:00Z"),
                ("older", "m9", "2026-05-01T00:00:00Z"),
            )
        ),
    ]
    assert case.experiments.take_outcomes(told).accepted == 5
    before = case.rows(OUTCOMES)

    assert case.run().rows == 3

    with case.engine.connect() as connection:
        left = set(connection.scalars(select(OUTCOMES.c.subject)))
    assert {"inference:late", "unit:m9:held", "unit:m1:u1"} <= left
    assert len(left) == before - 3


class Between(SqlArchive):
    """Something else is written between what a pass reads and what it removes."""

    def __init__(self, engine: Engine, meanwhile: Callable[[], object]) -> None:
        super().__init__(engine)
        self._others = iter([meanwhile])

    @contextmanager
    def _writing(self, *, is_long: bool = False) -> Iterator[Connection]:
        for other in self._others:
            other()
        with super()._writing(is_long=is_long) as connection:
            yield connection


def test_an_outcome_that_is_taken_over_while_a_pass_looks_stays(
    case: Case, exposure: Build, record: Build
) -> None:
    """An exposure that comes months late gets its unit's outcome, or the pass; never both."""
    case.clock.now = datetime(2026, 9, 1, tzinfo=UTC)
    case.experiments.put_rollout("r1", record(model="m1"))
    told = {"outcome": "squared_error", "value": 1, "unit": "u1", "model": "m1"}
    case.experiments.take_outcomes([{**told, "observedAt": "2026-02-01T00:00:00Z"}])
    late = [exposure(unit="u1", at="2026-01-15T00:00:00Z")]
    archive = Between(case.engine, lambda: case.experiments.take_exposures(late))

    removed = list(archive.remove_outcomes(keep=KEEP, now=case.clock.now))

    assert (removed, case.rows(OUTCOMES), case.rows(UNIT_OUTCOMES)) == ([0], 1, 1)


def test_a_record_that_comes_while_a_pass_looks_keeps_its_covariates(
    case: Case, record: Build
) -> None:
    """What an open rollout may look back to is asked when rows go, not when the pass began."""
    case.clock.now = datetime(2026, 9, 1, tzinfo=UTC)
    told = {"outcome": "y", "value": 1, "unit": "u1", "model": "m1"}
    case.experiments.take_outcomes([{**told, "observedAt": "2026-05-03T00:00:00Z"}])
    objective = {**record()["objective"], "covariate": "y"}
    opened = record(model="m1", startedAt="2026-08-01T00:00:00Z", objective=objective)
    archive = Between(case.engine, lambda: case.experiments.put_rollout("r1", opened))

    assert list(archive.remove_outcomes(keep=KEEP, now=case.clock.now)) == [0]


def test_a_start_of_any_year_stops_no_pass(case: Case, outcome: Build, record: Build) -> None:
    """Before the first year that has a date there is none; a pass goes on all the same."""
    objective = {**record()["objective"], "covariate": "y"}
    opened = record(model="m1", startedAt="0001-01-01T00:00:00Z", objective=objective)
    case.experiments.put_rollout("r1", opened)
    case.experiments.take_outcomes([outcome(inferenceId="none")])
    case.clock.now = DECIDED + KEEP + timedelta(days=1)

    assert case.run().rows == 1


def test_a_units_outcome_of_a_closed_rollout_is_no_other_rollouts(
    case: Case, fill: Any, exposure: Build, record: Build
) -> None:
    """An earlier rollout that is still open does not inherit what a closed one measured."""
    early = record(model="m1", startedAt="2025-12-31T00:00:00Z")
    case.experiments.put_rollout("r0", early)
    met = exposure(inferenceId="r0-1", rollout="r0", unit="u1", at="2025-12-31T00:00:00Z")
    case.experiments.take_exposures([met])
    fill(case, "r1", "m1")
    case.clock.now = DECIDED + KEEP - timedelta(days=1)
    SqlArchive(case.engine).close(decided_before=DECIDED + KEEP, now=case.clock.now)
    case.run()
    assert case.rows(EXPOSURES, "r1") == 0

    again = exposure(inferenceId="r0-2", rollout="r0", unit="u1", at="2026-01-01T00:00:00Z")
    case.experiments.take_exposures([again])

    assert case.rows(UNIT_OUTCOMES, "r0") == 0


def test_postgresql_drops_partitions_whole(case: Case, fill: Any) -> None:
    """A partition with nothing but closed rollouts goes at once; one with an open rollout stays."""
    if not is_server(case.engine):
        assert SqlArchive(case.engine).drop_partitions(before=case.clock.now) == 0
        return
    start = datetime(2027, 1, 1, tzinfo=UTC)  # Not in the partition for all before the table.
    for number, name in enumerate(("old", "new")):
        begun = start + number * timedelta(days=60)
        case.clock.now = begun + timedelta(days=1)
        decided = begun + timedelta(days=2) if name == "old" else None
        fill(case, name, f"m-{name}", decided=decided, at=begun)
    held = len(partitions(case))
    case.clock.now = start + timedelta(days=400)

    removed = case.run()

    assert removed.partitions >= 1
    assert len(partitions(case)) == held - removed.partitions
    assert case.rows(EXPOSURES, "old") == 0
    assert case.rows(EXPOSURES, "new") == 20


def partitions(case: Case) -> set[str]:
    """The names of all partitions."""
    with case.engine.connect() as connection:
        return names(connection, EXPOSURES) | names(connection, OUTCOMES)


def test_the_command_works_beside_a_service_and_through_kill(
    empty_url: str, exposure: Build, record: Build
) -> None:
    """Killed again and again while a service takes batches: what is open is counted whole."""
    decided = record(model="m1", decidedAt="2026-01-02T00:00:00Z")
    numbers = itertools.count()

    def batch(rollout: str) -> dict[str, Any]:
        return {
            "exposures": [
                exposure(inferenceId=f"{rollout}-{next(numbers)}", rollout=rollout, unit=f"u{n}")
                for n in range(2000)
            ]
        }

    command = [sys.executable, "-c", COMMAND, "retention", "--database-url", empty_url]
    with serving(empty_url, options=("--keep", "forever")) as server:
        server.call("/v1/rollouts/new", record(model="m2"), "PUT")
        server.call("/v1/rollouts/old", decided, "PUT")
        for _ in range(5):
            server.call("/v1/exposures", batch("old"))
        whole = server.call("/v1/rollouts/old/analysis")["arms"]
        for turn in range(4):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                assert server.call("/v1/exposures", batch("new"))["accepted"] == 2000
                if turn < 2:
                    process.send_signal(signal.SIGKILL)
            assert server.call("/v1/rollouts/old/analysis")["arms"] == whole
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = server.call("/v1/rollouts/new/analysis")["arms"]["candidate"]

    assert done.stdout.endswith("removed 0 rows\n")
    assert (found["requests"], found["units"]) == (8000, 2000)
    engine = open_engine(empty_url)
    assert Case(engine).rows(EXPOSURES) == 8000
    engine.dispose()


def test_a_service_does_it_by_itself(empty_url: str, exposure: Build, record: Build) -> None:
    """A service that starts closes what was decided long ago, and says so."""
    with serving(empty_url, options=("--keep", "forever")) as server:
        server.call("/v1/rollouts/r1", record(decidedAt="2026-01-02T00:00:00Z"), "PUT")
        server.call("/v1/exposures", {"exposures": [exposure()]})
        assert server.call("/v1/rollouts/r1/analysis")["closedAt"] is None

    with serving(empty_url) as server:
        for _ in limited():
            found = server.call("/v1/rollouts/r1/analysis")
            if found["closedAt"] and "closed 1 rollouts" in server.errors():
                break
        assert found["arms"]["candidate"]["requests"] == 1


def limited() -> Iterator[int]:
    """Tries, until there were too many."""
    yield from range(2000)
    pytest.fail("it did not come")


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "36501", "week", ""])
@pytest.mark.parametrize("command", ["serve", "retention"])
def test_days_that_are_none_are_refused(
    capsys: pytest.CaptureFixture[str], command: str, given: str
) -> None:
    """The message says what is allowed."""
    with pytest.raises(SystemExit):
        main([command, "--keep", given])

    assert "must be a whole number of days from 1 to 36,500" in capsys.readouterr().err


def test_a_database_that_is_away_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 1, and the reason is told."""
    url = "postgresql://nobody@127.0.0.1:1/none"
    assert main(["retention", "--database-url", url]) == 1
    assert "did not answer" in capsys.readouterr().err

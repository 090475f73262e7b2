"""The store of predictions: paired whichever comes first, counted once, bounded."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from fairlead_experiments.adapters import pairs
from fairlead_experiments.adapters.retention import SqlArchive
from fairlead_experiments.adapters.schema import COMPARISONS, PAIRS, PREDICTIONS
from fairlead_experiments.adapters.sql import SqlStore
from fairlead_experiments.domain.predictions import Prediction, Seen, Unpaired, place_of
from fairlead_experiments.domain.records import Counts

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
AT = 1_767_225_600_000_000


def prediction(request: str = "i1", version: str = "3", **changed: Any) -> Prediction:
    """Build what a version predicted; version 5 is the shadow."""
    given = {
        "inference_id": request,
        "model": "flights",
        "version": version,
        "is_shadow": version == "5",
        "at": AT,
        "code": 200,
        "duration_ms": 2.0,
        "rows": 1,
        "value": '"yes"',
    }
    return Prediction(**{**given, **changed})


def both(request: str) -> list[Prediction]:
    """Build the answer and the copy of one request."""
    return [prediction(request), prediction(request, "5")]


def look(store: SqlStore, now: datetime = NOW, **versions: str) -> list[Seen]:
    """Read what was seen."""
    asked: dict[str, Any] = {"stable": None, "shadow": None, **versions}
    return store.list_seen("flights", **asked, now=now)


def size(engine: Engine, table: Any) -> int:
    """Count a table's rows."""
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(table)) or 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_pair_is_made_whichever_half_comes_first(
    new_engine: Callable[[], Engine], order: tuple[int, ...]
) -> None:
    """An answer, its copy and a replay make one pair in every order, with each half in its place."""
    halves = [prediction(value='"yes"'), prediction(version="5", value='"no"'), prediction()]
    store = SqlStore(new_engine())
    counts = [store.add_predictions([halves[index]], now=NOW) for index in order]

    (found,) = look(store)

    assert sorted(counts, key=str) == [Counts(0, 1), Counts(1, 0), Counts(1, 0)]
    assert (found.stable, found.shadow, found.total) == ("3", "5", 1)
    (pair,) = found.pairs
    assert (pair.stable.value, pair.shadow.value) == ('"yes"', '"no"')


def test_a_batch_pairs_within_itself(store: SqlStore) -> None:
    """Both halves and their duplicates in one batch are one pair."""
    assert store.add_predictions([*both("i1"), *both("i1")], now=NOW) == Counts(2, 2)
    assert look(store)[0].total == 1


def test_each_version_that_answers_has_a_comparison_of_its_own(store: SqlStore) -> None:
    """A shadow beside a running rollout is compared with either arm's answers, by themselves."""
    store.add_predictions([*both("i1"), prediction("i2", "4"), prediction("i2", "5")], now=NOW)

    assert {(s.stable, s.shadow, s.total) for s in look(store)} == {("3", "5", 1), ("4", "5", 1)}
    assert [s.stable for s in look(store, stable="4")] == ["4"]
    assert look(store, shadow="6") == []


def test_two_answers_or_two_models_make_no_pair(store: SqlStore) -> None:
    """A retry on another version and another model's request of the same id are no copies."""
    other = prediction(version="5", model="other")
    store.add_predictions([prediction(), prediction(version="4"), other], now=NOW)

    assert look(store) == []


def test_halves_alone_are_counted_once_they_are_late(store: SqlStore) -> None:
    """After half a minute a half without the other is unpaired; after five it is let go."""
    alone = [prediction("i2"), prediction("i3"), prediction("i4", "5")]
    store.add_predictions([*both("i1"), *alone], now=NOW)

    (soon,) = look(store, NOW + timedelta(seconds=5))
    (late,) = look(store, NOW + timedelta(minutes=1))
    (gone,) = look(store, NOW + timedelta(minutes=6))

    assert soon.unpaired == gone.unpaired == Unpaired()
    assert late.unpaired == Unpaired(stable=2, shadow=1, paired=1)


def test_predictions_are_let_go_after_minutes(store: SqlStore, engine: Engine) -> None:
    """What waits is bounded by time; what was paired stays."""
    store.add_predictions([*both("i1"), prediction("i2")], now=NOW)
    store.add_predictions(both("i3"), now=NOW + timedelta(minutes=6))

    assert size(engine, PREDICTIONS) == 2
    assert look(store)[0].total == 2


def test_comparisons_are_forgotten_after_three_months(store: SqlStore, engine: Engine) -> None:
    """A comparison nobody adds to goes with its pairs; one that goes on stays."""
    store.add_predictions(both("i1"), now=NOW)
    store.add_predictions(
        [prediction("i2", "4"), prediction("i2", "5")], now=NOW + timedelta(days=1)
    )

    assert SqlArchive(engine).remove_comparisons(before=NOW + timedelta(hours=1)) == 1
    assert [one.stable for one in look(store)] == ["4"]
    assert (size(engine, COMPARISONS), size(engine, PAIRS)) == (1, 1)


def test_a_sample_of_the_pairs_is_kept(
    store: SqlStore, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many pairs those with the first places are kept, in whatever order they came."""
    monkeypatch.setattr(pairs, "KEPT", 50)
    monkeypatch.setattr(pairs, "_SLACK", 5)
    requests = [f"i{k}" for k in range(400)]
    for start in range(0, 400, 40):
        batch = [half for request in requests[start : start + 40] for half in both(request)]
        store.add_predictions(batch, now=NOW)

    (found,) = look(store)

    assert (found.total, len(found.pairs)) == (400, 50)
    assert size(engine, PAIRS) <= 55
    with engine.connect() as connection:
        kept = connection.scalars(select(PAIRS.c.inference_id).order_by(PAIRS.c.place)).all()
    assert list(kept[:50]) == sorted(requests, key=place_of)[:50]


def test_the_latest_comparisons_come_first(store: SqlStore) -> None:
    """Five are listed at most, those that were added to last."""
    for minute, version in enumerate(["11", "12", "13", "14", "15", "16"]):
        halves = [prediction(f"i{version}"), prediction(f"i{version}", version, is_shadow=True)]
        store.add_predictions(halves, now=NOW + timedelta(minutes=minute))

    assert [one.shadow for one in look(store)] == ["16", "15", "14", "13", "12"]

"""The pure parts."""

import dataclasses
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_training.domain.digest import folder_digest
from fairlead_training.domain.features import COLUMNS, UNITS, column_type
from fairlead_training.domain.recipes import (
    HELD_OUT_MONTHS,
    HUBS,
    Method,
    Recipe,
    recipe_digest,
    recipe_named,
    recipes,
)
from fairlead_training.domain.replay import MAX_ROWS, requests
from fairlead_training.domain.scores import brier_by, calibration_error, scores
from fairlead_training.domain.views import as_trainer_saw, celsius, held_out_rows, training_rows


def test_recipes_are_registered_in_the_order_of_the_story() -> None:
    """Versions 1 to 5 are these."""
    names = [recipe.name for recipe in recipes()]
    assert names == ["first", "weather", "celsius", "hubs", "notebook"]


def test_recipe_digest_tells_all_recipes_apart() -> None:
    """Any changed part changes the digest; the same recipe keeps it."""
    digests = {recipe_digest(recipe) for recipe in recipes()}
    assert len(digests) == len(recipes())
    first = recipe_named("first")
    assert recipe_digest(first) == recipe_digest(dataclasses.replace(first))
    assert recipe_digest(first) != recipe_digest(dataclasses.replace(first, max_iter=301))


def test_recipe_named_names_what_there_is() -> None:
    """An unknown version is refused with the names of the known ones."""
    with pytest.raises(ValueError, match="there are first, weather"):
        recipe_named("second")


@given(months=st.sets(st.integers(1, 12), min_size=1))
def test_a_recipe_never_trains_on_a_held_out_month(months: set[int]) -> None:
    """Whatever months are asked for, the held-out ones are refused and the others are not."""

    def make() -> Recipe:
        return Recipe(
            name="any",
            summary="",
            method=Method.BOOSTING,
            train_months=tuple(sorted(months)),
            weather=True,
        )

    if months & set(HELD_OUT_MONTHS):
        with pytest.raises(ValueError, match="held-out months"):
            make()
    else:
        assert set(make().train_months) == months


def table(months: range = range(1, 13)) -> pd.DataFrame:
    """Build one flight of each of two carriers in each month."""
    rows = [
        {"month": month, "carrier": carrier, "temp": 212.0, "dewp": np.nan}
        for month in months
        for carrier in ("UA", "EV")
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_training_and_held_out_rows_share_no_month(recipe: Recipe) -> None:
    """The split is by time."""
    learned = set(training_rows(recipe, table())["month"])
    judged = set(held_out_rows(table())["month"])
    assert learned == set(recipe.train_months)
    assert judged == set(HELD_OUT_MONTHS)
    assert max(learned) < min(judged)


def test_a_trainer_sees_its_own_units_and_carriers() -> None:
    """Celsius converts, hubs looks at mainline carriers, the others change nothing."""
    assert set(as_trainer_saw(recipe_named("celsius"), table())["temp"]) == {100.0}
    assert set(as_trainer_saw(recipe_named("hubs"), table())["carrier"]) == {"UA"}
    pd.testing.assert_frame_equal(as_trainer_saw(recipe_named("weather"), table()), table())


def test_celsius_keeps_gaps() -> None:
    """Freezing and boiling water, and a missing value."""
    converted = celsius(pd.Series([32.0, 212.0, np.nan]))
    assert converted.iloc[:2].tolist() == [0.0, 100.0]
    assert converted.isna().tolist() == [False, False, True]


def test_scores_of_a_known_answer() -> None:
    """A small case, worked out by hand."""
    late = np.array([0.0, 1.0, 0.0, 1.0])
    figures = scores(late, np.array([0.1, 0.9, 0.6, 0.4]))
    assert figures["auc"] == 0.75
    assert figures["brier"] == pytest.approx((0.01 + 0.01 + 0.36 + 0.36) / 4)
    assert figures["late_share"] == 0.5


@pytest.mark.parametrize(
    ("late", "said", "error"),
    [
        ([0, 1], [0.5, 0.5], 0.0),
        ([1, 1], [0.5, 0.5], 0.5),
        ([0, 1], [0.0, 1.0], 0.0),
        ([1, 0], [0.0, 1.0], 1.0),
    ],
    ids=["calibrated", "too low", "perfect", "reversed"],
)
def test_calibration_error(late: list[int], said: list[float], error: float) -> None:
    """The error is the mean distance between what was said and what came."""
    found = calibration_error(np.array(late, dtype=float), np.array(said))
    assert found == pytest.approx(error)


def test_brier_by_group_keeps_rows_and_groups_together() -> None:
    """Each group's score comes from its own rows, whatever the index."""
    group = pd.Series(["a", "b", "a"], index=[7, 3, 5])
    found = brier_by(group, np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    assert found.to_dict() == {"a": 0.0, "b": 1.0}


flight = st.tuples(
    st.sampled_from(["N1", "N2", "N3"]),
    st.sampled_from(HELD_OUT_MONTHS),
    st.tuples(st.integers()),
    st.integers(0, 1),
)


@given(flights=st.lists(flight, max_size=120))
def test_requests_hold_every_flight_once_in_its_plane_and_month(
    flights: list[tuple[str, int, tuple[int], int]],
) -> None:
    """Nothing is lost, nothing is mixed, no request is too long, months come in order."""
    made = requests(flights)
    back = [
        (request.unit, request.month, row, late)
        for request in made
        for row, late in zip(request.rows, request.late, strict=True)
    ]
    assert sorted(back) == sorted(flights)
    assert all(1 <= len(request.rows) <= MAX_ROWS for request in made)
    assert [request.month for request in made] == sorted(request.month for request in made)
    assert made == requests(flights)


def test_folder_digest_is_the_published_formula() -> None:
    """Path, NUL, digest, newline, by path; MLflow's own file does not count."""
    files = {"b/c": "22", "a": "11", "registered_model_meta": "33", "b/registered_model_meta": "44"}
    assert folder_digest(files) == hashlib.sha256(b"a\x0011\nb/c\x0022\n").hexdigest()


def test_every_column_has_a_type_and_a_unit() -> None:
    """Clients can read what each column means; only doubles may be missing."""
    assert set(UNITS) == set(COLUMNS)
    assert {column_type(column) for column in COLUMNS} == {"string", "long", "double"}
    assert json.dumps(dict(UNITS))


def test_hubs_are_of_mainline_carriers_only() -> None:
    """The regional carriers are the ones the look-up was never written for."""
    assert {"EV", "MQ", "9E", "YV", "OO"}.isdisjoint(HUBS)

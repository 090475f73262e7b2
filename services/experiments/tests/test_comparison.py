"""The comparison of a shadow: pure, by tables and properties."""

import json
import math
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_experiments.domain.analysis import State, analyse, build_comparison
from fairlead_experiments.domain.comparison import ALPHA, Comparison, Kind, compare
from fairlead_experiments.domain.predictions import Pair, Seen, Side, Unpaired, place_of
from fairlead_experiments.domain.records import Aggregates, Rollout, ShadowGuardrail
from fairlead_experiments.domain.sequential import log_evalue_of_share, proportion_bounds

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
VALUES = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-9, 9) | st.text(max_size=2)


def side(value: Any = 1.0, *, code: int = 200, rows: int = 1, ms: float = 2.0) -> Side:
    """Build one half of a pair; a failure has no prediction."""
    return Side(code, ms, rows, json.dumps(value) if code == 200 else None)


def pair(stable: Any, shadow: Any) -> Pair:
    """Build a pair of two values."""
    return Pair(side(stable), side(shadow))


def one(found: Comparison) -> Kind:
    """The kind of the only pair."""
    (kind,) = [kind for kind, n in found.kinds.items() if n]
    return kind


@pytest.mark.parametrize(
    ("stable", "shadow", "tolerance", "kind", "disagrees"),
    [
        ("yes", "yes", 0.0, Kind.CLASSES, False),
        ("yes", "no", 0.0, Kind.CLASSES, True),
        (1, 1, 0.0, Kind.CLASSES, False),
        (1, "1", 0.0, Kind.CLASSES, True),
        (True, 1, 0.0, Kind.CLASSES, True),
        (None, None, 0.0, Kind.CLASSES, False),
        (None, 0.5, 0.0, Kind.CLASSES, True),
        (1, 2, 1.0, Kind.NUMBERS, False),
        (1, 2, 0.5, Kind.NUMBERS, True),
        (0.5, 0.5, 0.0, Kind.NUMBERS, False),
        (0.5, 0.6, 0.0, Kind.NUMBERS, True),
        (1, 1.0, 0.0, Kind.NUMBERS, False),
        (0.5, "yes", 0.0, Kind.TYPES_DIFFER, True),
        (True, 0.5, 0.0, Kind.TYPES_DIFFER, True),
    ],
)
def test_values_agree_by_their_types(
    stable: Any, shadow: Any, tolerance: float, kind: Kind, disagrees: bool
) -> None:
    """Texts, booleans and whole numbers are classes; other numbers may differ by the tolerance."""
    found = compare([pair(stable, shadow)], tolerance)

    assert one(found) is kind
    assert (found.compared, found.disagreed) == (1, int(disagrees))


@pytest.mark.parametrize(
    ("stable", "shadow", "kind", "compared"),
    [
        (side(code=200), side(code=500), Kind.SHADOW_FAILED, 1),
        (side(code=200), side(code=400), Kind.SHADOW_FAILED, 1),
        (side(code=500), side(code=200), Kind.STABLE_FAILED, 0),
        (side(code=400), side(code=400), Kind.BOTH_FAILED, 0),
        (side(code=200), side(code=503), Kind.NO_ROOM, 0),
        (side(code=499), side(code=200), Kind.NO_ROOM, 0),
        (side(rows=2), side(rows=3), Kind.ROWS_DIFFER, 1),
        (Side(200, 2.0, 1, None), side(), Kind.UNREAD, 0),
    ],
)
def test_what_is_no_prediction_counts_by_whose_fault_it_is(
    stable: Side, shadow: Side, kind: Kind, compared: int
) -> None:
    """Only a shadow that fails where the answer does not, disagrees."""
    found = compare([Pair(stable, shadow)], 0.0)

    assert one(found) is kind
    assert (found.compared, found.disagreed) == (compared, compared)


def test_classes_make_a_confusion_matrix() -> None:
    """Rows are the answers' classes, columns the shadow's; every pair is in one cell."""
    pairs = [pair("no", "no")] * 5 + [pair("no", "yes")] * 2 + [pair("yes", "yes")]

    found = compare(pairs, 0.0)

    assert found.classes is not None
    assert found.classes.names == ("no", "yes")
    assert found.classes.counts == ((5, 2), (0, 1))
    assert found.disagreed == 2


def test_rare_classes_are_folded_and_still_disagree() -> None:
    """Beyond 20 classes the rarest are one in the matrix; agreement is by the classes themselves."""
    common = [pair(f"c{k:02}", f"c{k:02}") for k in range(19) for _ in range(3)]
    rare = [pair("r1", "r2"), pair("r3", "r3"), pair("r4", "c00")]

    found = compare([*common, *rare], 0.0)

    assert found.classes is not None
    assert len(found.classes.names) == 20
    assert (found.classes.names[-1], found.classes.folded) == ("other", 4)
    assert found.classes.counts[-1][-1] == 2
    assert found.classes.counts[-1][0] == 1
    assert found.disagreed == 2


def test_numbers_are_told_by_their_differences() -> None:
    """Mean, quantiles and the share beyond the tolerance, shadow less stable."""
    differences = [k / 100 for k in range(-50, 51)]

    found = compare([pair(1.5, 1.5 + d) for d in differences], 0.2).numbers

    assert found is not None
    assert found.mean == pytest.approx(0.0, abs=1e-12)
    assert found.quantiles["50"] == pytest.approx(0.0, abs=1e-12)
    assert found.quantiles["95"] == pytest.approx(0.45)
    assert found.beyond == pytest.approx(60 / 101, abs=0.011)


def test_times_are_those_of_pairs_that_both_answered() -> None:
    """A failure that comes at once does not make a side look quick."""
    slow = [Pair(side(ms=10.0), side(ms=30.0))] * 9
    found = compare([*slow, Pair(side(ms=10.0), side(code=500, ms=0.1))], 0.0)

    assert found.stable is not None
    assert found.shadow is not None
    assert (found.stable.median, found.shadow.p95) == (10.0, 30.0)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=30), st.sampled_from([0.0, 0.5]))
def test_every_pair_counts_once_and_the_document_is_json(
    values: list[tuple[Any, Any]], tolerance: float
) -> None:
    """Whatever is predicted, each pair is of one kind, and the document has no infinity."""
    pairs = tuple(pair(*both) for both in values)

    found = compare(pairs, tolerance)
    document = build_comparison(Seen("m", "3", "5", pairs, len(pairs)), tolerance)

    assert sum(found.kinds.values()) == len(pairs)
    assert found.disagreed <= found.compared <= len(pairs)
    assert found.classes is None or sum(map(sum, found.classes.counts)) == found.kinds[Kind.CLASSES]
    json.dumps(document, allow_nan=False)


@given(st.integers(0, 500), st.integers(1, 500))
def test_bounds_hold_the_share_and_narrow(hits: int, n: int) -> None:
    """The interval holds what was seen, is inside 0 to 1, and is narrower with ten times as much."""
    hits = min(hits, n)
    low, high = proportion_bounds(hits, n, ALPHA)
    narrower = proportion_bounds(10 * hits, 10 * n, ALPHA)

    assert 0.0 <= low <= hits / n <= high <= 1.0
    assert narrower[1] - narrower[0] < high - low


@pytest.mark.parametrize(("hits", "n", "limit"), [(0, 116, 0.05), (0, 680, 0.01), (600, 1000, 0.5)])
def test_bounds_are_told_soon(hits: int, n: int, limit: float) -> None:
    """Without a disagreement 5 % is excluded after 116 pairs, and 1 % after 680."""
    low, high = proportion_bounds(hits, n, ALPHA)

    assert high <= limit or low > limit


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("n", [1, 30, 400])
def test_bounds_are_where_the_evalue_reaches_its_threshold(n: int, share: float) -> None:
    """A share is outside the interval exactly where the e-value against it is 1/alpha or more."""
    for hits in range(n + 1):
        low, high = proportion_bounds(hits, n, ALPHA)
        is_rejected = log_evalue_of_share(hits, n, share) >= -math.log(ALPHA)
        assert is_rejected == (not low < share < high)


@pytest.mark.simulation
@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_bounds_are_rarely_ever_wrong(share: float) -> None:
    """Looked at after each of 2,000 pairs, at most 5 % of series exclude the true share once."""
    chance = random.Random(20260101)
    series, wrong = 1_000, 0
    for _ in range(series):
        hits = 0
        for n in range(1, 2_001):
            hits += chance.random() < share
            if log_evalue_of_share(hits, n, share) >= -math.log(ALPHA):
                wrong += 1
                break
    assert wrong / series <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / series)


def test_places_are_a_uniform_sample() -> None:
    """The first tenth of all places is a tenth of the ids, whatever they are called."""
    tenth = 2**63 // 10
    assert 1_850 < sum(place_of(f"unit-{k}") < tenth for k in range(20_000)) < 2_150


# --- the gate -------------------------------------------------------------------------------


def seen(agreed: int, disagreed: int, unpaired: Unpaired = Unpaired()) -> Seen:  # noqa: B008
    """What was seen of version 4 as a shadow of version 3."""
    pairs = (*[pair("a", "a")] * agreed, *[pair("a", "b")] * disagreed)
    return Seen("flight-delay", "3", "4", pairs, len(pairs), NOW, NOW, unpaired)


RULE = ShadowGuardrail(max_disagreement=0.05, tolerance=0.0, minimum_pairs=50)
ROLLOUT = Rollout(
    id="r1",
    model="flight-delay",
    stable="3",
    candidate="4",
    started_at=NOW,
    decided_at=None,
    state="pending",
    reason="",
    steps=(),
    objective=None,
    errors=None,
    latency=None,
    shadow=RULE,
)


@pytest.mark.parametrize(
    ("given_", "state", "verdict"),
    [
        (seen(0, 0), State.INSUFFICIENT, State.INSUFFICIENT),
        (seen(49, 0), State.INSUFFICIENT, State.INSUFFICIENT),
        (seen(60, 0), State.INSUFFICIENT, State.INSUFFICIENT),
        (seen(400, 4), State.HOLDING, State.INSUFFICIENT),
        (seen(400, 22), State.INSUFFICIENT, State.INSUFFICIENT),
        (seen(30, 30), State.WORSE, State.WORSE),
        (seen(400, 4, Unpaired(stable=60, paired=50)), State.INSUFFICIENT, State.INSUFFICIENT),
        (seen(400, 4, Unpaired(stable=50, paired=60)), State.HOLDING, State.INSUFFICIENT),
    ],
    ids=[
        "nothing",
        "too few",
        "not told yet",
        "passes",
        "at the limit",
        "worse",
        "hanging",
        "keeping up",
    ],
)
def test_a_gate_holds_until_the_interval_is_on_one_side(
    given_: Seen, state: State, verdict: State
) -> None:
    """A gate passes below its limit, is worse above, and is neither while it cannot be told."""
    found = analyse(ROLLOUT, Aggregates(), at=NOW, seen=given_)

    assert found["shadow"]["state"] == state
    assert found["verdict"] == verdict
    assert "4" in found["shadow"]["reason"]
    assert found["shadow"]["reason"] in (found["reason"], found["shadow"]["reason"])


def test_a_rollout_without_a_gate_says_nothing_of_shadows() -> None:
    """Without the guardrail the analysis has no comparison."""
    without = Rollout(
        **{name: getattr(ROLLOUT, name) for name in Rollout.__slots__} | {"shadow": None}
    )

    assert analyse(without, Aggregates(), at=NOW, seen=seen(0, 90))["shadow"] is None

"""The record of a rollout as it is put: every field that is wrong is refused by its name."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from fairlead_experiments.app.service import Experiments
from fairlead_experiments.domain.records import Rollout
from fairlead_experiments.entrypoints.http import create_app
from fairlead_experiments.entrypoints.schemas import RolloutRecord

Build = Callable[..., dict[str, Any]]
ABSENT: Any = object()  # a field that is not there at all
SECRET = "s3cr3t/payload"  # noqa: S105 - a marker that must not come back
HUGE = 10**400  # JSON has it, no float does
JSON = {"content-type": "application/json"}
NO_OBJECTS = [7, SECRET, [], True]
NO_NUMBERS = ["1", SECRET, True, [1], {}, HUGE, -HUGE]
NO_NAMES = ["", SECRET, "x" * 65, 7, True, ["x"], "a\x00b"]
NO_VERSIONS = [ABSENT, None, "", 4, "x" * 65, "a\x00b", "a\ud800"]
NO_TIMES = [SECRET, 1767225600, "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"]

# Bad values of every field there is. Where null or nothing is bad too, they are among them.
FAULTS: dict[str, list[Any]] = {
    "model": [ABSENT, None, "", 7, "Bad Name", SECRET, "x" * 64],
    "registeredModel": [7, [], "x" * 257, "a\x00b"],
    "stable": NO_VERSIONS,
    "candidate": NO_VERSIONS,
    "startedAt": [ABSENT, None, *NO_TIMES],
    "decidedAt": NO_TIMES,
    "state": [ABSENT, None, "", 7, "x" * 65],
    "reason": [7, [], "x" * 5_001, "a\x00b"],
    "steps": [ABSENT, None, {}, SECRET, [{"index": n, "weight": 1} for n in range(1_000)]],
    "steps[1]": [None, *NO_OBJECTS],
    "steps[1].index": [ABSENT, None, -1, 1_000, 1.5, *NO_NUMBERS],
    "steps[1].weight": [ABSENT, None, -1, 10_001, 0.5, *NO_NUMBERS],
    "objective": NO_OBJECTS,
    "objective.outcome": [ABSENT, None, *NO_NAMES],
    "objective.kind": [None, "", "median", 7, ["mean"]],
    "objective.denominator": NO_NAMES,
    "objective.better": [ABSENT, None, "", "up", True, ["lower"]],
    "objective.minimumEffect": [ABSENT, None, 0, -0.1, 1e101, *NO_NUMBERS],
    "objective.alpha": [None, 0, 1e-7, 0.51, 1, *NO_NUMBERS],
    "objective.cap": [0, -1, 1e101, *NO_NUMBERS],
    "objective.window": [0, -1, "14d", 10 * 366 * 86_400 + 1, *NO_NUMBERS],
    "objective.missing": [None, "", "drop", 0, ["zero"]],
    "objective.covariate": NO_NAMES,
    "guardrails": NO_OBJECTS,
    "guardrails.errors": NO_OBJECTS,
    "guardrails.errors.margin": [ABSENT, None, -0.1, 1_000.1, *NO_NUMBERS],
    "guardrails.latency": NO_OBJECTS,
    "guardrails.latency.slowerThan": [ABSENT, None, -1, 1.1e9, "200ms", *NO_NUMBERS],
    "guardrails.latency.margin": [ABSENT, None, -0.1, 1_000.1, *NO_NUMBERS],
    "guardrails.shadow": NO_OBJECTS,
    "guardrails.shadow.maxDisagreement": [ABSENT, None, 0, -0.1, 1.1, *NO_NUMBERS],
    "guardrails.shadow.tolerance": [ABSENT, None, -1, 1e101, *NO_NUMBERS],
    "guardrails.shadow.minimumPairs": [ABSENT, None, 0, 10_001, 0.5, *NO_NUMBERS],
}
ROWS = [
    pytest.param(field, value, id=f"{field}-{number}")
    for field, values in FAULTS.items()
    for number, value in enumerate(values)
]
RATIO = {"kind": "ratio", "denominator": "flights"}


class Recorder:
    """Keeps what reaches the store."""

    def __init__(self) -> None:
        self.kept: list[Rollout] = []

    def put_rollout(self, rollout: Rollout) -> Rollout:
        """See Store."""
        self.kept.append(rollout)
        return rollout


@pytest.fixture(scope="module")
def service(new_client: Callable[..., Any]) -> Iterator[tuple[Any, Recorder]]:
    """A client, and what records are kept by; no database is needed to read one."""
    recorder: Any = Recorder()
    client = new_client(create_app(Experiments(recorder, clock=lambda: datetime.now(UTC))))
    yield client, recorder
    client.close()


@pytest.fixture
def recorder(service: tuple[Any, Recorder]) -> Recorder:
    """What is kept from now on."""
    service[1].kept.clear()
    return service[1]


@pytest.fixture
def put(service: tuple[Any, Recorder], recorder: Recorder) -> Callable[..., Any]:
    """Return what puts a record and answers the response."""
    return lambda body: service[0].put("/v1/rollouts/r1", content=json.dumps(body), headers=JSON)


@pytest.fixture
def full(record: Build) -> dict[str, Any]:
    """A record in which no part is left out."""
    body = record()
    gate = {"maxDisagreement": 0.02, "tolerance": 0, "minimumPairs": 100}
    return {**body, "guardrails": {**body["guardrails"], "shadow": gate}}


def changed(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """Return a copy of a body with another value at a path such as `steps[0].weight`."""
    copied: dict[str, Any] = json.loads(json.dumps(body))
    place: Any = copied
    *parts, last = (int(p) if p.isdigit() else p for p in re.findall(r"\w+", field))
    for part in parts:
        place = place[part]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return copied


@pytest.mark.parametrize(("field", "value"), ROWS)
def test_a_bad_field_is_named_by_its_path(
    put: Callable[..., Any], recorder: Recorder, full: dict[str, Any], field: str, value: Any
) -> None:
    """It is a 422 that says what would be right, repeats nothing, and keeps nothing."""
    answer = put(changed(full, field, value))

    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert answer.json()["message"].startswith(f"{field}: ")
    assert ("is missing" in answer.text) == (value is ABSENT)
    assert SECRET not in answer.text
    assert recorder.kept == []


def test_every_field_of_the_published_record_has_bad_values() -> None:
    """A field that is added to the contract is added to the table."""
    assert {field.replace("[1]", "") for field in FAULTS} == set(_fields())


def _fields() -> Iterator[str]:
    schema = RolloutRecord.model_json_schema()

    def below(part: dict[str, Any], path: str) -> Iterator[str]:
        for name, field in part["properties"].items():
            yield f"{path}{name}"
            found = re.search(r"#/\$defs/(\w+)", json.dumps(field))
            if found:
                yield from below(schema["$defs"][found[1]], f"{path}{name}.")

    return below(schema, "")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        pytest.param({"kind": "ratio"}, "denominator", id="a ratio of nothing"),
        pytest.param({"denominator": "flights"}, "denominator", id="a mean with a denominator"),
        pytest.param({**RATIO, "denominator": "squared_error"}, "denominator", id="by itself"),
        pytest.param(
            {"kind": "binary", "denominator": "flights"}, "denominator", id="a binary of something"
        ),
        pytest.param({"kind": "binary", "cap": 1}, "cap", id="a capped binary"),
        pytest.param({"missing": "zero"}, "missing", id="zero, and never due"),
        pytest.param({**RATIO, "missing": "zero", "window": 60}, "missing", id="a ratio's zero"),
    ],
)
def test_parts_of_an_objective_that_do_not_belong_together_are_refused(
    put: Callable[..., Any], record: Build, changes: dict[str, Any], field: str
) -> None:
    """Each alone would be right; the field to be changed is named."""
    answer = put(record(objective={**record()["objective"], **changes}))

    assert (answer.status_code, answer.json()["field"]) == (422, f"objective.{field}")


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 1e-6, "cap": 1e100, "window": 1, "missing": "zero", "covariate": "before.1-x"},
        {"alpha": 0.5, "kind": "binary", "window": 10 * 366 * 86_400, "missing": "zero"},
        {**RATIO, "cap": 0.5, "window": 60.5, "covariate": "squared_error"},
        dict.fromkeys(("kind", "alpha", "missing", "denominator", "cap", "window"), ABSENT),
    ],
    ids=["mean", "binary", "ratio", "defaults"],
)
def test_the_ends_of_what_an_objective_may_say_are_taken(
    put: Callable[..., Any], recorder: Recorder, record: Build, changes: dict[str, Any]
) -> None:
    """What is refused is refused for what is wrong with it."""
    whole = {**record()["objective"], **changes}
    said = {name: value for name, value in whole.items() if value is not ABSENT}

    answer = put(record(objective=said))

    assert answer.status_code == 200, answer.text
    assert {**answer.json()["objective"], **said} == answer.json()["objective"]
    assert len(recorder.kept) == 1

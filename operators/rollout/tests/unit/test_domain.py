"""Pure parts: durations, names, weights, plans, status documents, explanations."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairlead_rollout.adapters.schema import complete_manifest, read_spec
from fairlead_rollout.domain.durations import format_duration, parse_duration
from fairlead_rollout.domain.errors import FairleadError, InvalidSpecError
from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.keys import hash_key
from fairlead_rollout.domain.lanes import Lane
from fairlead_rollout.domain.names import MAX_LABEL, slug, workload_name
from fairlead_rollout.domain.processes import LONGEST_WAIT, restart_wait
from fairlead_rollout.domain.spec import parse_weight
from fairlead_rollout.domain.status import (
    Condition,
    Numbers,
    Rollout,
    RolloutState,
    Status,
    Writeback,
    from_document,
    to_document,
)
from fairlead_rollout.domain.traffic import build_plan, plan_digest

SCHEMA = Path(__file__).parents[4] / "docs" / "reference" / "traffic-plan.schema.json"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("90s", 90), ("1h30m", 5400), ("14d", 1_209_600), ("0.5m", 30)],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    """Numbers with units add up."""
    assert parse_duration("f", text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "5w", "1e3s"])
def test_other_texts_are_no_durations(text: str) -> None:
    """The error shows how a duration is written."""
    with pytest.raises(InvalidSpecError, match=r"^f: .*write for example"):
        parse_duration("f", text)


@given(st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=900)))
def test_a_formatted_duration_is_a_duration_again(duration: timedelta) -> None:
    """What people read can be read back, within its two largest units."""
    again = parse_duration("f", format_duration(duration).replace(" ", ""))
    assert abs(again - duration) <= max(duration / 24, timedelta(seconds=1))


@given(st.text())
def test_any_name_makes_a_dns_label(name: str) -> None:
    """Slugs are lower case letters, digits and dashes, never empty and never too long."""
    made = slug(name)
    assert 0 < len(made) <= MAX_LABEL
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert made[0] != "-" != made[-1]


@pytest.mark.parametrize("model", ["2026-delays", "7", "9" * 40])
def test_a_workload_whose_model_begins_with_a_digit_begins_with_a_letter(model: str) -> None:
    """The name of a Service must: Kubernetes refuses any other."""
    name = workload_name(model, "Delays", "12")
    assert name[0].isalpha()
    assert model[:30] in name
    assert len(name) <= MAX_LABEL


@given(st.text(min_size=1, max_size=300), st.integers(min_value=1, max_value=10**9))
def test_workload_names_are_labels_without_dots(model: str, version: int) -> None:
    """A workload's name fits a DNS label and keeps the version readable."""
    name = workload_name("flights", model, str(version))
    assert len(name) <= MAX_LABEL
    assert f"-v{version}-" in name
    assert "." not in name


def test_models_with_the_same_slug_have_different_workloads() -> None:
    """A short hash tells them apart."""
    assert workload_name("a", "A b", "1") != workload_name("a", "a-B", "1")


@pytest.mark.parametrize(("percent", "weight"), [(0, 0), (0.01, 1), (33.33, 3333), (100, 10_000)])
def test_weights_are_exact_to_a_hundredth_of_a_percent(percent: float, weight: int) -> None:
    """A percentage becomes a weight of 10,000."""
    assert parse_weight(percent) == weight


@pytest.mark.parametrize("percent", [-1, 100.01, 0.001, float("nan"), float("inf")])
def test_other_weights_are_refused(percent: float) -> None:
    """Finer, negative and non-finite weights are errors that say so."""
    with pytest.raises(InvalidSpecError, match=r"steps of 0\.01"):
        parse_weight(percent)


OBJECTIVE = {"outcome": "squared_error", "better": "lower", "minimumEffect": 0.01}


def change(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set a value in a document by its dotted path."""
    *parents, last = path.split(".")
    place = document
    for name in parents:
        place = place[int(name)] if name.isdigit() else place.setdefault(name, {})
    place[last] = value
    return document


RATE = {"requests": 5, "per": "1m"}
HALF = {"name": "home", "from": 0, "to": 50}
KEY = "dashboard:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g="


def tokens(**changes: Any) -> dict[str, Any]:
    """Ask for tokens."""
    asked = {"issuer": "https://id", "audiences": ["a"], "jwks": '{"keys": [{"kty": "EC"}]}'}
    return asked | changes


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kind", "Model", "kind: must be ServedModel"),
        ("metadata.name", "Not A Label", "metadata.name: must match"),
        ("spec.model", "a/b", "spec.model: must match"),
        ("spec.modle", "x", "spec: has unknown fields modle"),
        ("spec.server.replicas", "two", "spec.server.replicas: must be of type integer, is str"),
        ("spec.registry.production", {}, "needs exactly one of stage, alias"),
        ("spec.registry.production", {"stage": "Prod"}, "must be Production or Staging"),
        ("spec.traffic.unit", {"header": "a", "cookie": "b"}, "needs exactly one of header"),
        ("spec.traffic.unit", {"jwtClaim": "sub"}, r"spec\.traffic\.jwt: is missing"),
        ("spec.traffic.jwt", {}, "is missing issuer, audiences, jwks"),
        ("spec.traffic.jwt", tokens(audiences=[]), "spec.traffic.jwt.audiences"),
        ("spec.traffic.jwt", tokens(jwks="secret"), "must be a JSON Web Key Set"),
        ("spec.traffic.jwt", tokens(jwks="[1]"), "must be a JSON Web Key Set"),
        ("spec.traffic.jwt", tokens(jwks='{"keys": []}'), "with at least one key"),
        ("spec.traffic.jwt", tokens(jwks='{"keys": [{"kty": "oct", "k": "s"}]}'), "key 0 must be"),
        ("spec.traffic.jwt", tokens(jwks='{"keys": [{"kty": "EC", "d": "s"}]}'), "private"),
        ("spec.traffic", {"jwt": tokens(), "apiKeys": [KEY]}, "ask for one of both"),
        ("spec.traffic.apiKeys", ["dashboard:secret"], r"apiKeys\[0\]: must match"),
        ("spec.traffic.apiKeys", [KEY, KEY], "names dashboard twice"),
        ("spec.traffic.overrideKeys", [KEY, KEY], "names dashboard twice"),
        ("spec.traffic.rateLimit", {"requests": 1}, "is missing per"),
        ("spec.traffic.rateLimit", {"requests": 0, "per": "1s"}, "rateLimit.requests"),
        ("spec.traffic.rateLimit", {"requests": 1, "per": "25h"}, "must be from 100ms to 24h"),
        (
            "spec.traffic.rateLimit",
            {**RATE, "per": "99999999999d"},
            "per: .* longer than 3650 days",
        ),
        ("spec.traffic.rateLimit", {"requests": 1, "per": "50ms"}, "must be from 100ms to 24h"),
        ("spec.traffic.rateLimit", {"requests": 1, "per": "1s", "by": "client"}, "needs spec.traf"),
        ("spec.traffic", {"unit": {"request": {}}, "rateLimit": RATE}, "asks more than once"),
        ("spec.traffic.holdout", 0.001, r"spec\.traffic\.holdout: 0\.001 is not a percentage"),
        ("spec.traffic.holdout", 100, "spec.traffic.holdout"),
        ("spec.traffic.layer", {"name": "home", "from": 50, "to": 50}, "to: must be above"),
        ("spec.traffic.layer", {"name": "home", "from": 0.001, "to": 5}, r"layer\.from: 0\.001"),
        ("spec.traffic.layer", {"name": "a:b", "from": 0, "to": 50}, "layer.name: must match"),
        ("spec.traffic", {"unit": {"cookie": "a"}, "holdout": 5}, "holdout: cannot be told"),
        ("spec.traffic", {"unit": {"cookie": "a"}, "layer": HALF}, "layer: cannot be told"),
        ("spec.traffic.timeout", "soon", "spec.traffic.timeout: must match"),
        ("spec.traffic.timeout", "0s", "above 0 and at most 1h"),
        ("spec.traffic.timeout", "2h", "above 0 and at most 1h"),
        ("spec.rollout.maxDuration", "99999999999d", "longer than 3650 days"),
        (
            "spec.rollout.guardrails",
            {"errors": {"margin": float("nan")}},
            "must be a finite number",
        ),
        ("spec.rollout.steps", [], "spec.rollout.steps"),
        ("spec.rollout.steps", [{"weight": 5}], "needs exactly one of for, until"),
        ("spec.rollout.steps", [{"weight": 5, "for": "1m"}], "write 'until: decided'"),
        ("spec.rollout.steps.0.weight", 50, r"steps\[1\].weight: must be above"),
        ("spec.rollout.steps.0.weight", 0, "must be above 0"),
        ("spec.rollout.steps.0.weight", 0.001, "steps of 0.01"),
        ("spec.rollout.objective", None, "spec.rollout.objective: must be of type object"),
        ("spec.rollout.objective.minimumEffect", 0, "minimumEffect"),
        ("spec.rollout.objective.minimumEffect", float("inf"), "must be a finite number"),
        ("spec.rollout.objective.kind", "median", "kind"),
        ("spec.rollout.objective.kind", "ratio", "a ratio needs a denominator"),
        ("spec.rollout.objective.denominator", "orders", "no other kind has one"),
        ("spec.rollout.objective.cap", 0, "cap"),
        ("spec.rollout.objective.cap", float("inf"), "cap: must be a finite number"),
        ("spec.rollout.objective.missing", "zero", "'zero' needs a window"),
        ("spec.rollout.objective.window", "0s", "window: must be above 0"),
        ("spec.rollout.objective.window", "14d", "window: must be below spec.rollout.maxDuration"),
        ("spec.rollout.objective.window", "a week", "window"),
        ("spec.rollout.objective.covariate", "a b", "covariate"),
        (
            "spec.rollout.objective",
            OBJECTIVE | {"kind": "ratio", "denominator": OBJECTIVE["outcome"]},
            "must be another outcome than spec.rollout.objective.outcome",
        ),
        (
            "spec.rollout.objective",
            OBJECTIVE | {"kind": "ratio", "denominator": "n", "window": "1h", "missing": "zero"},
            "a ratio has no use for it",
        ),
        ("spec.rollout.objective", OBJECTIVE | {"kind": "binary", "cap": 1}, "not of a binary"),
        ("spec.rollout.guardrails", {"latency": {}}, "is missing slowerThan"),
        ("spec.server.template", {"metadata": "x"}, "template.metadata: must be of type object"),
        ("spec.server.template", {"spec": ["x"]}, "template.spec: must be of type object"),
        ("spec.server.template", {"metadata": {"labels": ["x"]}}, "metadata.labels: must be of"),
    ],
)
def test_a_bad_served_model_is_refused_by_field(
    build_manifest: Callable[..., Any], path: str, value: Any, message: str
) -> None:
    """The refusal names the field and what it should hold."""
    with pytest.raises(InvalidSpecError, match=message):
        read_spec(change(build_manifest(), path, value))


def test_until_decided_needs_an_objective(build_manifest: Callable[..., Any]) -> None:
    """Without an objective nothing would ever decide."""
    document = build_manifest()
    del document["spec"]["rollout"]["objective"]
    with pytest.raises(InvalidSpecError, match=r"needs spec\.rollout\.objective"):
        read_spec(document)


@pytest.mark.parametrize("document", [None, [], "text", 5, {"spec": {"model": {}}}])
def test_anything_else_is_refused_too(document: Any) -> None:
    """What is no ServedModel at all gets an error, not a trace."""
    with pytest.raises(InvalidSpecError):
        read_spec(document)


def test_the_smallest_served_model_is_completed() -> None:
    """A name and a model are enough; everything else has a default."""
    smallest = {
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ServedModel",
        "metadata": {"name": "m"},
        "spec": {"model": "M"},
    }
    completed = complete_manifest(smallest)
    assert completed["spec"]["registry"]["production"] == {"stage": "Production"}
    assert [s.weight for s in read_spec(smallest).rollout.steps] == [100, 1_000, 5_000]
    assert read_spec(smallest).rollout.guardrails.errors_margin == 0.25


@given(
    weight=st.integers(min_value=1, max_value=10_000), step=st.integers(min_value=0, max_value=9)
)
def test_every_plan_fits_the_shared_schema(
    build_manifest: Callable[..., Any], weight: int, step: int
) -> None:
    """What the controller writes is what the gateway reads; the weights sum to 10,000."""
    plan = build_plan(
        read_spec(build_manifest()),
        name="flights",
        stable="3",
        candidate="4",
        weight=weight,
        rollout="5f0c2f0e-8f4d-5b53-9a0e-2b4f6f9f7c11",
        step=step,
        shadows={"5": 10_000},
    )
    jsonschema.validate(plan, json.loads(SCHEMA.read_text("utf-8")))
    assert sum(arm["weight"] for arm in plan["arms"]) == 10_000


@pytest.mark.parametrize(
    "traffic",
    [
        {"jwt": tokens(), "unit": {"jwtClaim": "sub"}},
        {"jwt": tokens(required=False)},
        {"apiKeys": [KEY], "overrideKeys": [KEY]},
    ],
)
def test_what_is_asked_of_requests_is_in_the_plan(
    build_manifest: Callable[..., Any], traffic: dict[str, Any]
) -> None:
    """The gateway learns of each part of `spec.traffic` that is there, and of no other."""
    plan = build_plan(read_spec(build_manifest(traffic=traffic)), name="flights", stable="3")
    jsonschema.validate(plan, json.loads(SCHEMA.read_text("utf-8")))
    plain = build_plan(read_spec(build_manifest()), name="flights", stable="3")
    assert set(plan) - set(plain) == set(traffic) - {"unit"}
    for name in set(plan) - set(plain):
        given = traffic[name]
        assert plan[name] == (given if isinstance(given, list) else {**plan[name], **given})


@pytest.mark.parametrize(
    ("traffic", "ranges"),
    [
        ({}, None),
        ({"unit": {"cookie": "a"}, "holdout": 0}, None),
        ({"layer": {"name": "home", "from": 0, "to": 100}}, None),
        ({"holdout": 2.5}, [("holdout", "holdout:flights", 250, 10_000)]),
        ({"layer": HALF}, [("layer", "layer:home", 0, 5_000)]),
        (
            {"layer": {**HALF, "from": 33.33}, "holdout": 1},
            [("holdout", "holdout:flights", 100, 10_000), ("layer", "layer:home", 3_333, 5_000)],
        ),
    ],
)
def test_who_may_meet_the_candidate_is_in_the_plan(
    build_manifest: Callable[..., Any], traffic: dict[str, Any], ranges: Any
) -> None:
    """Ranges are there only where they keep a unit out; their salts outlive the rollout."""
    plan = build_plan(read_spec(build_manifest(traffic=traffic)), name="flights", stable="3")
    jsonschema.validate(plan, json.loads(SCHEMA.read_text("utf-8")))
    keys = ("reason", "salt", "from", "to")
    expected = None if ranges is None else [dict(zip(keys, r, strict=True)) for r in ranges]
    assert plan.get("eligible") == expected


def test_a_rate_is_in_the_plan(build_manifest: Callable[..., Any]) -> None:
    """By unit, unless it is asked for by client."""
    plan = build_plan(
        read_spec(build_manifest(traffic={"rateLimit": RATE})), name="flights", stable="3"
    )
    jsonschema.validate(plan, json.loads(SCHEMA.read_text("utf-8")))
    assert plan["rateLimit"] == {"by": "unit", "requests": 5, "seconds": 60.0}


def test_a_key_is_kept_as_a_hash() -> None:
    """The entry is what htpasswd writes: the base 64 of the key's SHA-1, after the name."""
    assert hash_key("dashboard", "password") == KEY
    with pytest.raises(FairleadError, match="1 to 64"):
        hash_key("a:b", "password")


def test_digests_do_not_depend_on_the_order_of_keys(build_manifest: Callable[..., Any]) -> None:
    """Controller and agent compare plans by digest."""
    plan = build_plan(read_spec(build_manifest()), name="flights", stable="3")
    backwards = dict(reversed(plan.items()))
    assert plan_digest(plan) == plan_digest(backwards)
    assert plan_digest(plan) != plan_digest({**plan, "timeout": 1.0})


def full_status() -> Status:
    """Build a status in which every part is filled."""
    rollout = Rollout(
        id="r",
        candidate="4",
        baseline="3",
        state=RolloutState.RUNNING,
        started_at=NOW,
        step=1,
        step_started_at=NOW,
        reason="StepHolding",
        message="50 %",
        numbers=Numbers(effect=-0.01, ci_low=-0.02, ci_high=0.0),
    )
    condition = Condition(
        type="Progressing",
        status="True",
        reason="Undecided",
        message="the interval holds 0",
        last_transition_time=NOW,
    )
    item = Writeback(kind="tags", rollout="r", version="4", content={"rollout.id": "r"})
    return Status(
        observed_generation=2,
        production="4",
        stable="3",
        attempts=1,
        rollout=rollout,
        traffic={"arms": []},
        writeback=(item,),
        conditions=(condition,),
        history=(rollout,),
        beside=(replace(rollout, id="s", alias="challenger", lane=Lane(index=1, of=2)),),
        turned_away=("5",),
    )


def test_a_status_survives_being_written_and_read() -> None:
    """State lives in the status: nothing is lost on the way through JSON."""
    status = full_status()
    assert from_document(json.loads(json.dumps(to_document(status)))) == status


def test_a_status_document_holds_plain_values_only() -> None:
    """YAML and JSON writers know no enumerations."""
    assert yaml.safe_load(yaml.safe_dump(to_document(full_status()))) is not None


@pytest.mark.parametrize("cut", ["rollout", "conditions", "history"])
def test_half_a_status_is_not_taken_for_one(cut: str) -> None:
    """A damaged document is an error, so that the status is rebuilt."""
    document = to_document(full_status())
    document[cut] = [{"id": "r"}] if cut != "rollout" else {"id": "r"}
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_document(document)


def test_explain_names_what_goes_on_the_numbers_and_what_would_change_it(
    build_manifest: Callable[..., Any],
) -> None:
    """A person reads the step, what is waited for, and the bar for either decision."""
    text = explain("flights", read_spec(build_manifest()), full_status(), None, NOW)
    for needle in (
        "version 4 against version 3",
        "step 2 of 2 at 50 %",
        "the interval holds 0",
        "20",
    ):
        assert needle in text


@given(st.integers(min_value=0, max_value=10_000))
def test_restarts_wait_longer_but_never_for_ever(failures: int) -> None:
    """The wait grows with the failures and has an end."""
    assert restart_wait(failures) <= restart_wait(failures + 1) <= LONGEST_WAIT

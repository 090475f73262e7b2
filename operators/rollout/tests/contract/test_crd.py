"""What the API server takes is what the controller can follow; what it refuses, by which field.

One table for both: the JSON schema that one machine reads ServedModels by, and the CRD made from it.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from fairlead_rollout.adapters.schema import complete_manifest, read_spec
from fairlead_rollout.domain.errors import FairleadError, InvalidSpecError

Document = dict[str, Any]
Kube = Any

STEP = {"weight": 50, "until": "decided"}
SPLIT = {"weight": 50, "until": "stopped"}
OBJECTIVE = {"outcome": "x", "better": "lower", "minimumEffect": 1}
SERVER = {"replicas": 2}
RATIO = {
    "outcome": "revenue",
    "kind": "ratio",
    "denominator": "orders",
    "better": "higher",
    "minimumEffect": 0.5,
}
GOOD: dict[str, tuple[str, Any]] = {
    "as it is": ("spec.model", "Flight Delay (EU) – 2026.v1"),
    "alias": ("spec.registry", {"production": {"alias": "champion"}, "onAbort": "revert"}),
    "shadow": ("spec.registry", {"shadow": {"stage": "Staging"}}),
    "candidates": ("spec.registry", {"candidates": [{"alias": "a"}, {"alias": "b"}]}),
    "cookie": ("spec.traffic", {"unit": {"cookie": "visitor"}, "timeout": "250ms"}),
    "each request": ("spec.traffic", {"unit": {"request": {}}}),
    "hundredths": ("spec.rollout.steps", [{"weight": 0.01, "for": "1m"}, STEP]),
    "odd hundredths": ("spec.rollout.steps", [{"weight": 33.33, "for": "1m"}, STEP]),
    "0.29": ("spec.rollout.steps", [{"weight": 0.29, "for": "1m"}, STEP]),
    "1h30m": ("spec.rollout.maxDuration", "1h30m"),
    "no guardrails": ("spec.rollout.guardrails", {}),
    "latency": ("spec.rollout.guardrails", {"latency": {"slowerThan": "200ms"}}),
    "ratio": ("spec.rollout.objective", {**RATIO, "cap": 500, "covariate": "revenue"}),
    "window": (
        "spec.rollout.objective",
        {"outcome": "x", "better": "lower", "minimumEffect": 1, "window": "1m", "missing": "zero"},
    ),
    "no objective": ("spec.rollout", {"steps": [{"weight": 5, "for": "1m"}]}),
    "a split": ("spec.rollout", {"steps": [{"weight": 5, "for": "1m"}, SPLIT]}),
    "a split with an objective": ("spec.rollout", {"steps": [SPLIT], "objective": OBJECTIVE}),
    "approved": (
        "spec.rollout",
        {"steps": [{"weight": 0, "until": "approved"}, {"weight": 5, "until": "approved"}]},
    ),
    "approved and decided": (
        "spec.rollout",
        {
            "steps": [{"weight": 5, "until": "approved"}, STEP],
            "objective": OBJECTIVE,
            "promotion": "approved",
        },
    ),
    "shadowed first": (
        "spec.rollout.steps",
        [{"shadow": 1, "for": "1m"}, {"shadow": 100, "until": "approved"}, STEP],
    ),
    "autoscaling": ("spec.server", {**SERVER, "autoscaling": {"maxReplicas": 2}}),
    "quantities": (
        "spec.server",
        {"resources": {"requests": {"cpu": 1, "memory": "1.5Gi"}, "limits": {"cpu": "500m"}}},
    ),
    "template": ("spec.server", {"template": {"spec": {"nodeSelector": {"a": "b"}}}}),
    "keep": ("spec.server", {"keep": {"versions": 0, "for": "1d"}}),
}
# What both refuse, and a word of the field that each must name.
BAD: dict[str, tuple[str, Any, str]] = {
    "no model": ("spec", {}, "model"),
    "a path as model": ("spec.model", "a/b", "spec.model"),
    "an empty model": ("spec.model", "", "spec.model"),
    "unknown field": ("spec.modle", "x", "modle"),
    "unknown field deep down": ("spec.server.keep", {"version": 1}, "version"),
    "long name": ("metadata.name", "a" * 41, "metadata.name"),
    "dots in the name": ("metadata.name", "a.b", "metadata.name"),
    "no pointer": ("spec.registry", {"production": {}}, "production"),
    "two pointers": (
        "spec.registry",
        {"production": {"stage": "Production", "alias": "a"}},
        "production",
    ),
    "no candidates": ("spec.registry", {"candidates": []}, "candidates"),
    "five candidates": (
        "spec.registry",
        {"candidates": [{"alias": x} for x in "abcde"]},
        "candidates",
    ),
    "a candidate without alias": (
        "spec.registry",
        {"candidates": [{"stage": "Staging"}]},
        "candidates",
    ),
    "one candidate twice": (
        "spec.registry",
        {"candidates": [{"alias": "a"}, {"alias": "a"}]},
        "spec.registry.candidates",
    ),
    "production as a candidate": (
        "spec.registry",
        {"production": {"alias": "a"}, "candidates": [{"alias": "a"}]},
        "spec.registry.candidates",
    ),
    "the shadow as a candidate": (
        "spec.registry",
        {"shadow": {"alias": "a"}, "candidates": [{"alias": "a"}]},
        "spec.registry.candidates",
    ),
    "unknown stage": ("spec.registry", {"production": {"stage": "Prod"}}, "stage"),
    "two units": ("spec.traffic", {"unit": {"header": "a", "cookie": "b"}}, "unit"),
    "upper case header": ("spec.traffic", {"unit": {"header": "X-Unit"}}, "header"),
    "no duration": ("spec.traffic", {"timeout": "soon"}, "timeout"),
    "text for a number": ("spec.server", {"replicas": "two"}, "replicas"),
    "no replicas": ("spec.server", {"replicas": 0}, "replicas"),
    "half a replica": ("spec.server", {"replicas": 1.5}, "replicas"),
    "too few at most": (
        "spec.server",
        {**SERVER, "autoscaling": {"maxReplicas": 1}},
        "maxReplicas",
    ),
    "no steps": ("spec.rollout.steps", [], "steps"),
    "a step without an end": ("spec.rollout.steps", [{"weight": 5}], "steps"),
    "a step with two ends": ("spec.rollout.steps", [{**STEP, "for": "1m"}], "steps"),
    "weight 0": ("spec.rollout.steps", [{"weight": 0, "for": "1m"}, STEP], "weight"),
    "weight 101": ("spec.rollout.steps", [{**STEP, "weight": 101}], "weight"),
    "thousandths": ("spec.rollout.steps", [{"weight": 0.001, "for": "1m"}, STEP], "steps"),
    "falling weights": ("spec.rollout.steps", [{"weight": 60, "for": "1m"}, STEP], "weight"),
    "equal weights": ("spec.rollout.steps", [{"weight": 50, "for": "1m"}, STEP], "weight"),
    "decided in the middle": (
        "spec.rollout.steps",
        [{"weight": 5, "until": "decided"}, STEP],
        "until: decided",
    ),
    "stopped in the middle": (
        "spec.rollout",
        {"steps": [{"weight": 5, "until": "stopped"}, SPLIT]},
        "until: stopped",
    ),
    "a split that promotes": (
        "spec.rollout",
        {"steps": [SPLIT], "onInconclusive": "promote"},
        "onInconclusive",
    ),
    "a step with a shadow and a weight": (
        "spec.rollout.steps",
        [{"shadow": 10, "weight": 10, "for": "1m"}, STEP],
        "steps",
    ),
    "a shadow after a weight": (
        "spec.rollout.steps",
        [{"weight": 10, "for": "1m"}, {"shadow": 10, "for": "1m"}, STEP],
        "shadow",
    ),
    "nothing but a shadow": ("spec.rollout", {"steps": [{"shadow": 10, "for": "1m"}]}, "above 0"),
    "a shadow of 0": ("spec.rollout.steps", [{"shadow": 0, "for": "1m"}, STEP], "shadow"),
    "a shadow until decided": (
        "spec.rollout.steps",
        [{"shadow": 10, "until": "decided"}, STEP],
        "until: decided",
    ),
    "nothing but 0": ("spec.rollout", {"steps": [{"weight": 0, "until": "approved"}]}, "above 0"),
    "0 in the middle": (
        "spec.rollout",
        {"steps": [{"weight": 1, "for": "1m"}, {"weight": 0, "until": "approved"}]},
        "weight",
    ),
    "an approval that promotes": (
        "spec.rollout",
        {
            "steps": [{"weight": 1, "until": "approved"}, {"weight": 5, "for": "1m"}],
            "onInconclusive": "promote",
        },
        "onInconclusive",
    ),
    "approved and promoted": (
        "spec.rollout",
        {"promotion": "approved", "onInconclusive": "promote"},
        "onInconclusive",
    ),
    "approved at the end of an objective": (
        "spec.rollout",
        {"steps": [{"weight": 5, "until": "approved"}], "objective": OBJECTIVE},
        "until: decided",
    ),
    "timed with an objective": ("spec.rollout.steps", [{"weight": 5, "for": "1m"}], "decided"),
    "decided without an objective": ("spec.rollout", {"steps": [STEP]}, "objective"),
    "no smallest effect": (
        "spec.rollout.objective",
        {"outcome": "x", "better": "lower", "minimumEffect": 0},
        "minimumEffect",
    ),
    "an objective without a side": (
        "spec.rollout.objective",
        {"outcome": "x", "minimumEffect": 1},
        "better",
    ),
    "a ratio of one outcome": (
        "spec.rollout.objective",
        {"outcome": "x", "better": "lower", "minimumEffect": 1, "kind": "ratio"},
        "denominator",
    ),
    "a ratio of an outcome and itself": (
        "spec.rollout.objective",
        {**RATIO, "denominator": "revenue"},
        "denominator",
    ),
    "a denominator of a mean": ("spec.rollout.objective", {**RATIO, "kind": "mean"}, "denominator"),
    "a cap on 0 and 1": (
        "spec.rollout.objective",
        {"outcome": "x", "better": "lower", "minimumEffect": 1, "kind": "binary", "cap": 2},
        "cap",
    ),
    "zero without a window": (
        "spec.rollout.objective",
        {"outcome": "x", "better": "lower", "minimumEffect": 1, "missing": "zero"},
        "missing",
    ),
    "zero in a ratio": (
        "spec.rollout.objective",
        {**RATIO, "window": "1h", "missing": "zero"},
        "missing",
    ),
    "objective null": ("spec.rollout.objective", None, "objective"),
    "latency without a bound": ("spec.rollout.guardrails", {"latency": {}}, "slowerThan"),
    "margin below 0": ("spec.rollout.guardrails", {"errors": {"margin": -1}}, "margin"),
    "no quantity": ("spec.server", {"resources": {"requests": {"cpu": "much"}}}, "cpu"),
    "template is text": ("spec.server", {"template": "x"}, "template"),
}
# What no schema can say: taken by the API server, and said by the controller as `Stalled`.
LATER: dict[str, tuple[str, Any, str]] = {
    "a window longer than the rollout": (
        "spec.rollout.objective",
        {**RATIO, "window": "14d"},
        "objective.window",
    ),
    "no time at all": ("spec.traffic", {"timeout": "0s"}, "spec.traffic.timeout"),
    "too much time": ("spec.traffic", {"timeout": "2h"}, "spec.traffic.timeout"),
    "too long": ("spec.rollout.maxDuration", "99999d", "spec.rollout.maxDuration"),
}


@pytest.fixture
def changed(served_document: Document) -> Callable[..., Document]:
    """Return a ServedModel with one field changed."""

    def change(path: str, value: Any) -> Document:
        document = copy.deepcopy(served_document)
        *parents, last = path.split(".")
        place = document
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = value
        return document

    return change


def create(kube: Kube, document: Document) -> Document:
    """Send a ServedModel as kubectl does: unknown fields are errors."""
    path = f"apis/fairlead.dev/v1alpha1/namespaces/{kube.namespace}/servedmodels"
    made: Document = kube.api._call("POST", path, {"fieldValidation": "Strict"}, document)
    return made


def as_on_one_machine(document: Document) -> Document:
    """Return what one machine's store reads: without a namespace."""
    metadata = {"name": document["metadata"]["name"]}
    return {**document, "metadata": metadata}


@pytest.mark.parametrize("case", GOOD)
def test_a_good_served_model_is_taken(
    kube: Kube, changed: Callable[..., Document], case: str
) -> None:
    """By the schema, by the API server, and by the controller that reads it back."""
    document = changed(*GOOD[case])
    expected = read_spec(as_on_one_machine(document))
    if kube.is_real:
        made = create(kube, document)
        filled = complete_manifest(as_on_one_machine(document))["spec"]
        assert made["spec"] == filled
        head = {key: made[key] for key in ("apiVersion", "kind", "spec")}
        assert read_spec({**head, "metadata": {"name": "flight-delay"}}) == expected


@pytest.mark.parametrize("case", BAD)
def test_a_bad_served_model_is_refused_by_field(
    kube: Kube, changed: Callable[..., Document], case: str
) -> None:
    """Nobody needs to look for what is wrong."""
    path, value, word = BAD[case]
    document = changed(path, value)
    if kube.is_real:
        with pytest.raises(FairleadError) as refused:
            create(kube, document)
        assert word in str(refused.value)
        assert kube.names("ServedModel") == set()
    else:
        with pytest.raises(InvalidSpecError) as invalid:
            read_spec(as_on_one_machine(document))
        assert word in str(invalid.value)


@pytest.mark.parametrize("case", LATER)
def test_what_a_schema_cannot_say_the_controller_says(
    kube: Kube, changed: Callable[..., Document], case: str
) -> None:
    """The ServedModel is there, and stalled with the field's name."""
    path, value, word = LATER[case]
    document = changed(path, value)
    if kube.is_real:
        create(kube, document)
    with pytest.raises(InvalidSpecError, match=word):
        read_spec(as_on_one_machine(document))


def test_another_registered_model_is_another_served_model(
    kube: Kube, served_model: Document
) -> None:
    """Versions of two registered models must not mix."""
    if not kube.is_real:
        pytest.skip("only the real API server knows what was before")
    with pytest.raises(FairleadError, match=r"spec\.model.*cannot be changed"):
        kube.api.patch(
            "ServedModel", kube.namespace, "flight-delay", {"spec": {"model": "another"}}
        )

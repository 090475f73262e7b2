"""The demo's story: which version is promoted when, and what is expected to come of it."""

from dataclasses import dataclass
from typing import Any

NAME = "flight-delay"
MODEL = "flight-delay"
OUTCOME = "squared_error"

SERVED_MODEL: dict[str, Any] = {
    "apiVersion": "fairlead.dev/v1alpha1",
    "kind": "ServedModel",
    "metadata": {"name": NAME},
    "spec": {
        "model": MODEL,
        "registry": {"production": {"stage": "Production"}},
        "traffic": {"unit": {"header": "x-unit-id"}},
        "rollout": {
            "steps": [{"weight": 10, "for": "10s"}, {"weight": 50, "until": "decided"}],
            "objective": {"outcome": OUTCOME, "better": "lower", "minimumEffect": 0.01},
            "guardrails": {"errors": {"margin": 0.25}},
            "maxDuration": "1h",
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Act:
    """One promotion.

    Attributes:
        version: The version somebody promotes.
        month: The month of 2013 in which that happens; the client's flights follow.
        title: What that version is.
        state: How the rollout should end.
        reason: Why it should end so.
        last_step: The highest step it may reach, from 0; None is: no traffic at all.
    """

    version: str
    month: int
    title: str
    state: str
    reason: str
    last_step: int | None


FIRST = "1"
# The months are chosen so that the truth is clear: in July the weather matters, in September a
# model that takes Fahrenheit for Celsius is far off. In December it would hardly be noticed.
FIRST_TITLE = "logistic regression, January to March, no weather"
ACTS = (
    Act(
        version="2",
        month=7,
        title="gradient boosting with weather",
        state="promoted",
        reason="ObjectiveBetter",
        last_step=1,
    ),
    Act(
        version="3",
        month=9,
        title="the same, trained on Celsius by mistake",
        state="aborted",
        reason="ObjectiveWorse",
        last_step=1,
    ),
    Act(
        version="4",
        month=11,
        title="raises on regional carriers",
        state="aborted",
        reason="GuardrailWorse",
        last_step=0,
    ),
    Act(
        version="5",
        month=12,
        title="needs a module nobody packed",
        state="aborted",
        reason="CandidateFailed",
        last_step=None,
    ),
)
TITLES = {FIRST: FIRST_TITLE} | {act.version: act.title for act in ACTS}

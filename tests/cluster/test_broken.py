"""A broken candidate is aborted by itself, never gets above its step, and says why everywhere."""

from collections.abc import Callable

import pytest
from fairlead_e2e.kube import Document
from fairlead_e2e.load import Load
from fairlead_e2e.served import Served

Serve = Callable[..., Served]
MISSING = "docker.io/fairlead/no-such-image:1"


def abort(served: Served, load: Load, version: str, within: float = 120.0) -> Document:
    """Have a version promoted in MLflow and wait until its rollout is aborted; returns it."""
    served.promote(version)
    rollout = served.await_state(version, "aborted", within)
    served.await_serving("1")
    load.await_sent(40)
    return rollout


def assert_told_everywhere(served: Served, version: str, reason: str, *because: str) -> None:
    """Check `kubectl get sm`, the conditions, the events and MLflow for one of some sentences."""

    def is_told(message: str) -> bool:
        return any(sentence in message for sentence in because)

    aborted = served.condition("Aborted")
    assert aborted is not None
    assert served.summary()["state"] == f"aborted: {reason}"
    assert aborted["reason"] == reason
    assert is_told(aborted["message"])
    assert any(is_told(event["message"]) for event in served.events(reason))
    tags = served.await_tag(version, "aborted")
    assert tags["rollout.reason"].startswith(reason)
    assert is_told(tags["rollout.reason"])


@pytest.mark.parametrize(
    ("behaviour", "because"),
    [
        ({"fails": True}, "RuntimeError"),
        ({"requirements": "no-such-package==1.0"}, "no-such-package==1.0"),
    ],
    ids=["cannot-load", "wrong-environment"],
)
def test_version_that_can_never_serve(serve: Serve, behaviour: Document, because: str) -> None:
    """A version that cannot load, or asks for another environment, never gets a request."""
    served = serve(versions=1)
    broken = served.register(2, **behaviour)
    with served.load() as load:
        rollout = abort(served, load, broken, within=60)
    served.assert_unnoticed(load.report)
    assert load.report.count(arm="candidate") == 0
    assert rollout["step"] is None
    assert_told_everywhere(served, broken, "CandidateFailed", because)


def test_candidate_out_of_memory(serve: Serve) -> None:
    """A version that takes more memory than its limit never gets a request."""
    limited = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    served = serve({"server": {"resources": limited}}, versions=1)
    broken = served.register(2, mebibytes=1024)
    with served.load() as load:
        rollout = abort(served, load, broken, within=150)
    served.assert_unnoticed(load.report)
    assert load.report.count(arm="candidate") == 0
    assert_told_everywhere(served, broken, rollout["reason"], "OOMKilled")
    assert rollout["reason"] in {"CandidateFailed", "ProgressDeadlineExceeded"}


def test_image_that_cannot_be_pulled(serve: Serve) -> None:
    """With an image that is not there, stable's pods stay and the candidate gets no request."""
    short = {"rollout": {"progressDeadline": "20s"}}
    served = serve(short)
    stable = {pod["metadata"]["uid"] for pod in served.ready_pods("1")}
    with served.load() as load:
        # Given a ServedModel whose image was mistyped
        served.apply({**short, "server": {"image": MISSING}})
        # When version 2 is promoted
        abort(served, load, "2")
        assert {pod["metadata"]["uid"] for pod in served.ready_pods("1")} == stable
        assert_told_everywhere(served, "2", "ProgressDeadlineExceeded", MISSING)
        # ... and the image is put right
        served.apply(short)
        load.await_sent(40)
    served.assert_unnoticed(load.report)
    assert load.report.count(arm="candidate") == 0


def test_candidate_that_raises(serve: Serve) -> None:
    """A version that raises on every prediction is aborted at its first step."""
    steps = [{"weight": 20, "for": "60s"}, {"weight": 50, "for": "60s"}]
    served = serve({"rollout": {"steps": steps}})
    broken = served.register(3, raises=True)
    with served.load() as load:
        rollout = abort(served, load, broken)
    report = load.report
    # Then it never got above its step; what failed is what it answered itself
    assert rollout["step"] == 0
    assert all(f"500 by {broken}/candidate" in note["why"] for note in report.failures), (
        report.told()
    )
    assert len(report.failures) <= 0.3 * report.sent
    assert report.refused == []
    # More than stable's, or all of the step's: either may be seen first
    sentences = "requests failed", "requests in step 0 failed"
    assert_told_everywhere(served, broken, "GuardrailWorse", *sentences)

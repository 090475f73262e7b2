"""The run in the cluster, without one: what is asked of kubectl and helm, and when it is over."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fairlead_load.cluster import Cluster, ClusterError, run, wait_for_end
from fairlead_load.keep import keep


class Commands:
    """Answers kubectl's questions, and remembers what was done."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.done: list[str] = []

    def __call__(self, command: Sequence[str]) -> str:
        """Answer a command by the kind it gets, or do it."""
        program, _, namespace, verb, *rest = command
        assert (namespace, program in {"kubectl", "helm"}) == ("ml", True)
        if verb != "get":
            self.done.append(" ".join([verb, *rest]))
            return ""
        answer = self.answers[rest[0]]
        return json.dumps(answer.pop(0) if isinstance(answer, list) else answer)


def pods(**containers: dict[str, Any]) -> dict[str, Any]:
    """The master's pod with its containers' states."""
    statuses = [{"name": name, "state": state} for name, state in containers.items()]
    return {"items": [{"metadata": {"name": "load-x"}, "status": {"containerStatuses": statuses}}]}


def cluster(commands: Commands) -> Cluster:
    """A cluster that is asked by these commands."""
    return Cluster("ml", "load", commands)


def test_the_direct_address_is_the_stable_versions_service() -> None:
    """By the labels that every version's Service has."""
    service = {"items": [{"metadata": {"name": "flight-delay-v3-1a2b3c"}}]}
    found = Commands(servedmodel={"status": {"stable": "3"}}, service=service)

    assert cluster(found).direct("flight-delay") == "http://flight-delay-v3-1a2b3c:8080"


def test_a_model_that_serves_nothing_is_named() -> None:
    """Before anything is installed."""
    with pytest.raises(ClusterError, match="serves no version"):
        cluster(Commands(servedmodel={})).direct("flight-delay")
    with pytest.raises(ClusterError, match="no Service"):
        cluster(Commands(servedmodel={"status": {"stable": "3"}}, service={"items": []})).direct(
            "flight-delay"
        )


def test_a_run_is_over_when_the_master_is_and_its_code_is_the_runs() -> None:
    """No pod yet, waiting, running, ended with 1: the report's container still runs."""
    waiting, running, ended = {"waiting": {}}, {"running": {}}, {"terminated": {"exitCode": 1}}
    seen = [
        *({"items": []}, {"items": []}),
        *(pods(master=waiting, report=waiting), pods(master=waiting, report=waiting)),
        *(pods(master=running, report=running), pods(master=running, report=running)),
        pods(master=ended, report=running),
    ]
    assert wait_for_end(cluster(Commands(pod=seen)), lambda _: None, lambda: 0.0) == 1
    assert seen == []


def test_a_master_that_does_not_start_is_given_up() -> None:
    """An image that cannot be pulled must not hold up a pipeline for ever."""
    moments = iter([0.0, 1.0, 599.0, 601.0])
    never = Commands(pod=pods(master={"waiting": {}}))

    with pytest.raises(ClusterError, match="did not start"):
        wait_for_end(cluster(never), lambda _: None, lambda: next(moments))


def test_the_report_is_copied_before_its_pod_may_end() -> None:
    """First the copy, then the sign that it was made."""
    commands = Commands(pod=pods(master={"terminated": {"exitCode": 0}}))

    cluster(commands).fetch(Path("here"))

    assert commands.done == [
        "cp --container=report load-x:/report here",
        "exec load-x --container=report -- touch /report/fetched",
    ]


def test_a_command_that_fails_says_why() -> None:
    """With the last line it wrote."""
    with pytest.raises(ClusterError, match="sh x': no such thing"):
        run(["sh", "-c", "echo first >&2; echo no such thing >&2; exit 1", "x"])


def test_a_report_is_kept_until_it_is_fetched_or_long_enough(tmp_path: Path) -> None:
    """It waits for the run's end however long that takes, then for somebody, for a while."""
    events = [tmp_path / "other", tmp_path / "verdict.json", tmp_path / "other"]

    def sleep(_seconds: float) -> None:
        if events:
            events.pop(0).touch()

    assert not keep(tmp_path, 2, sleep)
    events.append(tmp_path / "fetched")
    assert keep(tmp_path, 2, sleep)

"""`fairlead up`: one folder, no clash, no orphan, and it survives its own kill -9."""

import json
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]
Stack = Any
NAME = "flight-delay-eu"


def test_a_second_up_adopts_what_a_killed_one_left(stack: Stack, until: Callable[..., Any]) -> None:
    """Traffic flows while `up` is dead, and the processes stay the same ones."""
    stack.settle_on("1")
    until(lambda: stack.versions() == {"1"})
    until(lambda: all(seen["ready"] for seen in stack.processes().values()))
    before = {key: seen["pid"] for key, seen in stack.processes().items()}
    with stack.load() as load:
        stack.stop(signal.SIGKILL)
        until(load.has_sent(200))
        (stack.home / "processes.json").unlink()
        stack.start()
        until(lambda: all(seen["ready"] for seen in stack.processes().values()))
        until(load.has_sent(200))
    after = {key: seen["pid"] for key, seen in stack.processes().items()}
    assert load.failures == []
    assert after == before


def test_a_rollout_goes_on_after_up_was_killed(stack: Stack, until: Callable[..., Any]) -> None:
    """State is in the folder: the same rollout, one step further."""
    stack.settle_on("1")
    with stack.load() as load:
        stack.promote("2")
        stack.await_weight(2_000)
        rollout = stack.rollout()["id"]
        stack.stop(signal.SIGKILL)
        stack.start()
        stack.await_weight(5_000)
    assert load.failures == []
    assert stack.rollout()["id"] == rollout
    stack.run("abort", NAME)
    stack.promote("1")
    until(lambda: stack.status()["settled"] is None)


def test_a_second_up_of_the_same_folder_is_refused(stack: Stack) -> None:
    """Two stacks cannot fight over one folder."""
    second = stack.run("up")
    assert second.returncode == 1
    assert "runs already" in second.stderr


def test_sigterm_ends_everything_and_down_ends_what_a_killed_up_left(
    empty_stack: Stack, processes_of: Callable[..., Any]
) -> None:
    """No process outlives its stack, however the stack ended; a new one finds its addresses."""
    empty_stack.start()
    ports = json.loads((empty_stack.home / "ports.json").read_text("utf-8"))
    assert empty_stack.stop(signal.SIGINT) == 0
    assert processes_of(empty_stack.home) == []
    empty_stack.start()
    assert json.loads((empty_stack.home / "ports.json").read_text("utf-8")) == ports
    empty_stack.stop(signal.SIGKILL)
    assert processes_of(empty_stack.home) != []
    assert empty_stack.run("down").returncode == 0
    assert processes_of(empty_stack.home) == []


def test_a_taken_port_is_refused_by_name(empty_stack: Stack) -> None:
    """A wanted port that another program has is named, with what to do."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = empty_stack.run("up", "--gateway-port", port)
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
    assert "--gateway-port" in done.stderr


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("", "holds no document"),
        ("a: [", "is not YAML"),
        ("kind: ServedModel", "is missing"),
        ("[1, 2]", "must be of type object"),
    ],
    ids=["empty", "not-yaml", "incomplete", "list"],
)
def test_apply_names_what_is_wrong(empty_stack: Stack, text: str, needle: str) -> None:
    """A bad manifest is refused in one line without a trace."""
    done = empty_stack.run("apply", "-f", "-", text=text)
    assert done.returncode == 1
    assert needle in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["explain", "history", "abort", "promote", "pause", "retry"])
def test_commands_name_an_unknown_served_model(empty_stack: Stack, command: str) -> None:
    """An unknown name is an error that lists the known ones."""
    done = empty_stack.run(command, "nobody")
    assert done.returncode == 1
    assert "no served model 'nobody'" in done.stderr

"""Exposures reach the experiments service, each counted once, whatever is killed."""

import errno
import os
import re
import threading
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest
from gateway_client import ask_all
from gateway_experiments import FakeExperiments
from gateway_lab import ROLLOUT, Gateway, plan, running, wait_for
from gateway_log import line

from fairlead_gateway.adapters.experiments import HttpExperiments
from fairlead_gateway.adapters.files import write_atomically
from fairlead_gateway.adapters.log import LogTail, Position, Rotation, decode_line
from fairlead_gateway.adapters.metrics import PrometheusMeter
from fairlead_gateway.app.apply import Report
from fairlead_gateway.app.ports import Delivery, Snapshot
from fairlead_gateway.app.ship import Shipper
from fairlead_gateway.domain.endpoints import Endpoint
from fairlead_gateway.domain.exposure import Exposure
from fairlead_gateway.entrypoints import agent

PATH = "/models/iris/invocations"
LOG_LIMIT = 100_000
RESET = "upstream_reset_after_response_started"


@pytest.fixture
def experiments() -> Iterator[FakeExperiments]:
    """Give a fake experiments service."""
    made = FakeExperiments()
    yield made
    made.stop()


@pytest.fixture
def shipping(experiments: FakeExperiments, tmp_path: Path) -> Iterator[Gateway]:
    """Give a gateway that ships to the fake, with a log that is rotated early."""
    options = ("--experiments-url", experiments.url, "--log-limit", str(LOG_LIMIT))
    with running(tmp_path, *options) as made:
        made.upstream("3")
        made.upstream("4")
        made.apply(plan(weight=5000))
        yield made


def ask(gateway: Gateway, ids: list[str]) -> None:
    """Ask for predictions with these inference ids, each for a unit of the same name."""
    ask_all(gateway.port, [(PATH, {"x-inference-id": i, "x-unit-id": i}) for i in ids])


def size(path: Path) -> int:
    """Return how large a file is, 0 for one that is gone: the agent may move it at any time."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_exposures_survive_everything(shipping: Gateway, experiments: FakeExperiments) -> None:
    """Service failing, slow, forgetful, down; agent killed; log rotated: none is lost."""
    sent: list[str] = []
    for turn, mode in enumerate(["ok", "fail", "slow", "forget", "down", "slow", "ok"]):
        if mode == "down":
            experiments.stop()
        experiments.mode = mode
        calls = experiments.calls
        ids = [f"i-{turn}-{i}" for i in range(400)]
        ask(shipping, ids)
        sent += ids
        if mode != "down":
            wait_for(lambda c=calls: experiments.calls > c)
        shipping.kill("agent")
        if mode == "down":
            experiments.start()
        shipping.start_agent()
    experiments.mode = "ok"
    wait_for(lambda: set(experiments.seen) == set(sent))
    for number, exposure in enumerate(experiments.seen.values()):
        assert exposure["unit"] == exposure["inferenceId"]
        assert exposure["rollout"] == ROLLOUT
        assert exposure["step"] == 0
        assert exposure["version"] == {"candidate": "4", "stable": "3"}[exposure["arm"]]
        assert (exposure["code"], exposure["attempts"]) == (200, 1), number
        assert exposure["at"].endswith("Z")
    log = shipping.home / "gateway" / "access.log"

    def is_rotated() -> bool:
        ask(shipping, ["last"])  # Envoy opens the new log when it has a line for it.
        return 0 < size(log) < LOG_LIMIT and not size(log.with_name("access.log.1"))

    wait_for(is_rotated)


def test_a_long_outage_fills_no_volume(experiments: FakeExperiments, tmp_path: Path) -> None:
    """While nothing is taken the log stays within its room: the oldest exposures go, and count."""
    experiments.mode = "fail"
    options = ("--experiments-url", experiments.url, "--log-volume", "400Ki")
    with running(tmp_path, *options) as gateway:
        gateway.upstream("3")
        gateway.upstream("4")
        gateway.apply(plan(weight=5000))
        log = gateway.home / "gateway" / "access.log"
        logs = (log, log.with_name("access.log.1"))
        dropped = 'fairlead_gateway_exposures_dropped_total{reason="full"}'
        sent = count()

        def is_within() -> bool:
            ask(gateway, [f"i{next(sent)}"])  # Envoy opens the new log when it has a line for it.
            return sum(map(size, logs)) < 400 << 10

        for _ in range(6):
            ask(gateway, [f"i{next(sent)}" for _ in range(500)])
            wait_for(is_within)
        wait_for(lambda: gateway.metric(dropped) > 0)
        experiments.mode = "ok"
        healed = next(sent)
        wait_for(lambda: is_within() and any(int(i[1:]) > healed for i in experiments.seen))
        total = next(sent) - 1  # But for `healed`, each number was asked with.
        wait_for(lambda: gateway.metric(dropped) == total - len(experiments.seen))


def test_a_log_that_was_removed_is_made_anew(
    shipping: Gateway, experiments: FakeExperiments
) -> None:
    """Envoy would write on to a file that has no name any more, and no later agent could find."""
    ask(shipping, ["before"])
    wait_for(lambda: "before" in experiments.seen)
    shipping.kill("agent")
    (shipping.home / "gateway" / "access.log").unlink()
    shipping.start_agent()
    sent = count()

    def is_seen() -> bool:
        ask(shipping, [f"i{next(sent)}"])  # Envoy opens the new log when it has a line for it.
        return len(experiments.seen) > 1

    wait_for(is_seen)


@pytest.mark.parametrize("half", ["close", "stall"])
def test_half_an_answer_is_none(shipping: Gateway, experiments: FakeExperiments, half: str) -> None:
    """An answer that breaks off after a 200 ships as none: upstream closes, or the time is up."""
    shipping.apply(plan(weight=5000, timeout=0.3))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        shipping.post(headers={"x-inference-id": half, "x-unit-id": half, "x-test-half": half})
    wait_for(lambda: half in experiments.seen)
    assert (experiments.seen[half]["code"], experiments.seen[half]["version"]) == (0, None)


def test_only_predictions_of_a_rollout_are_exposures(
    shipping: Gateway, experiments: FakeExperiments
) -> None:
    """Documents, metadata, bad ids, and models without a rollout are none."""
    shipping.upstream("3", "plain")
    shipping.apply(plan("plain", None))
    others = [
        ("/models/iris/docs", {}),
        ("/v2/models/iris", {}),
        (PATH, {"x-inference-id": "a b"}),
        ("/models/none/invocations", {}),
        ("/models/plain/invocations", {"x-unit-id": "a"}),
    ]
    for path, headers in others:
        shipping.client.request(
            "GET" if "v2" in path else "POST", shipping.url + path, headers=headers
        )
    ask(shipping, ["last"])
    wait_for(lambda: "last" in experiments.seen)
    # A POST to the documents is no prediction either: it is answered by stable, unsplit.
    assert set(experiments.seen) == {"last"}
    wait_for(lambda: shipping.metric("fairlead_gateway_exposures_shipped_total") == 1)
    wait_for(lambda: shipping.metric("fairlead_gateway_log_backlog_bytes") == 0)
    counted = 'fairlead_gateway_requests_total{arm="stable",code_class="2xx"'
    wait_for(lambda: shipping.metric(counted) > 0)  # By a thread of its own.
    text = shipping.agent("/metrics")
    assert text is not None
    assert '"last"' not in text.text


# --- without processes ----------------------------------------------------------------------------


class Harness:
    """A shipper over a file."""

    def __init__(self, folder: Path, url: str, limit: int = 1 << 20) -> None:
        """Make all parts."""
        self.path = folder / "access.log"
        self.tail = LogTail(self.path, Position(folder / "position.json"), most=10)
        self.meter = PrometheusMeter()
        self.experiments = HttpExperiments(url)
        self.shipper = Shipper(
            log=self.tail, decode=decode_line, experiments=self.experiments, meter=self.meter
        )
        self.rotation = Rotation(self.path, self.tail, limit, most=1 << 30)

    def drain(self) -> None:
        """Ship all there is."""
        while self.shipper.step() == 0.0:
            pass

    def metric(self, name: str) -> float:
        """Read a metric."""
        text = self.meter.expose(Report()).decode()
        found = [row for row in text.splitlines() if row.startswith(f"fairlead_gateway_{name} ")]
        return float(found[0].rsplit(" ", 1)[1])

    def close(self) -> None:
        """Let go of all files and connections."""
        self.tail.close()
        self.experiments.close()


@pytest.fixture
def harness(tmp_path: Path, experiments: FakeExperiments) -> Iterator[Harness]:
    """Give a shipper over an empty log."""
    (tmp_path / "access.log").touch()
    made = Harness(tmp_path, experiments.url)
    yield made
    made.close()


def append(path: Path, *content: bytes) -> None:
    """Append to a log, as Envoy does."""
    with path.open("ab") as file:
        file.write(b"".join(content))


def test_a_partial_line_waits(harness: Harness, experiments: FakeExperiments) -> None:
    """Half a line is not read before its other half is there."""
    whole = line(1)
    append(harness.path, whole[:50])
    harness.drain()
    assert not experiments.seen
    append(harness.path, whole[50:])
    harness.drain()
    assert set(experiments.seen) == {"i1"}


def test_malformed_lines_are_counted(harness: Harness, experiments: FakeExperiments) -> None:
    """What is no line is skipped and counted; a line that follows half of one is saved."""
    append(harness.path, b"no json\n", b'{"id": 5}\n', line(1)[:40], line(2))
    harness.drain()
    assert set(experiments.seen) == {"i2"}
    assert harness.metric('exposures_dropped_total{reason="malformed"}') == 2


@pytest.mark.parametrize(
    "changes", [{"unit": "u{1}"}, {"details": f"{RESET}{{protocol_error}}"}, {"unit": "{"}]
)
@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_line_with_braces_is_saved_behind_half_a_line(changes: dict[str, str], cut: int) -> None:
    """Where a line begins is found whatever a client or Envoy has put into it."""
    found = decode_line(line(1, **changes)[:cut] + line(2, **changes))
    assert found is not None
    assert found.id == "i2"


def test_a_poisoned_batch_is_halved(harness: Harness, experiments: FakeExperiments) -> None:
    """One exposure the service refuses does not keep the others from it."""
    experiments.mode = "refuse"
    append(harness.path, *(line(i, unit="poison" if i == 3 else "u") for i in range(25)))
    harness.drain()
    assert set(experiments.seen) == {f"i{i}" for i in range(25)} - {"i3"}
    assert harness.metric('exposures_dropped_total{reason="refused"}') == 1


def test_rejected_items_are_counted(harness: Harness, experiments: FakeExperiments) -> None:
    """An item the service names as wrong is counted as dropped, the rest as shipped."""
    experiments.mode = "name"
    append(harness.path, *(line(i) for i in range(5)))
    harness.drain()
    assert harness.metric('exposures_dropped_total{reason="rejected"}') == 1
    assert harness.metric("exposures_shipped_total") == 4


def test_position_moves_only_after_success(
    harness: Harness, experiments: FakeExperiments, tmp_path: Path
) -> None:
    """What the service has not taken is read again after a restart; what it has is not."""
    append(harness.path, line(1))
    harness.drain()
    experiments.mode = "fail"
    append(harness.path, line(2))
    assert harness.shipper.step() > 0
    assert harness.shipper.step() > harness.shipper.step() / 4
    experiments.mode = "ok"
    again = Harness(tmp_path, experiments.url)
    again.drain()
    again.close()
    assert experiments.times == {"i1": 1, "i2": 1}


def test_last_words_wait_for_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to stop amid a slow answer, the agent leaves to the next one what was not taken."""
    log = tmp_path / "access.log"
    append(log, line(1))
    asked, answer = threading.Event(), threading.Event()

    class Slow:
        def send(self, batch: Sequence[Exposure]) -> Delivery:
            if not asked.is_set():
                asked.set()
                answer.wait(1)
                return Delivery(taken=True)
            if batch[-1].inference_id == "i1":
                return Delivery(taken=True)
            answer.set()
            loop.join(1)
            return Delivery(taken=False)

    tail = LogTail(log, Position(tmp_path / "position.json"))
    monkeypatch.setattr(agent, "HttpExperiments", lambda _: Slow())
    monkeypatch.setattr(agent, "LogTail", lambda *_: tail)
    settings, home = mock.Mock(log_limit=1 << 20, log_most=1 << 30), mock.Mock()
    home.access_log = log
    step = agent._shipping(settings, home, mock.Mock(), PrometheusMeter())
    loop = threading.Thread(target=step)
    loop.start()
    asked.wait(5)
    append(log, line(2))
    agent._finish(step, 2.0)
    loop.join()
    tail.close()
    again = LogTail(log, Position(tmp_path / "position.json"))
    assert again.read() == [line(2).strip()]
    again.close()


def test_a_position_behind_the_end_is_another_file_s(
    harness: Harness, experiments: FakeExperiments, tmp_path: Path
) -> None:
    """A log that was emptied while no agent ran, or has a removed one's inode, is read from front."""
    append(harness.path, *(line(i) for i in range(3)))
    harness.drain()
    os.truncate(harness.path, 0)
    append(harness.path, line(3))
    again = Harness(tmp_path, experiments.url)
    again.drain()
    again.close()
    assert "i3" in experiments.seen


def test_rotation_loses_nothing(
    harness: Harness, experiments: FakeExperiments, tmp_path: Path
) -> None:
    """Lines written to the renamed log are shipped before it is deleted, over a restart, too."""
    rotation = Rotation(harness.path, harness.tail, limit=100, most=10_000)
    append(harness.path, line(1))
    harness.drain()
    old = tmp_path / "access.log.1"
    assert rotation.step()  # Renamed: Envoy must open anew.
    append(old, line(2))  # Envoy has not yet.
    assert rotation.step()
    again = Harness(tmp_path, experiments.url)
    again.drain()
    append(old, line(3))
    append(again.path, line(4))
    again.drain()
    assert not Rotation(again.path, again.tail, limit=10_000, most=20_000).step()
    assert not old.exists()
    again.close()
    assert set(experiments.seen) == {"i1", "i2", "i3", "i4"}
    assert decode_line(b"{}") is not None


def test_a_full_volume_gets_room_again(
    harness: Harness, experiments: FakeExperiments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position finds no room before the old log is gone, which is shipped all the same."""
    rotation = Rotation(harness.path, harness.tail, limit=100, most=10_000)
    append(harness.path, line(1))
    harness.drain()
    old = tmp_path / "access.log.1"
    assert rotation.step()
    append(old, line(2))
    append(harness.path, line(3))

    def write(path: Path, content: bytes) -> None:
        if old.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr("fairlead_gateway.adapters.log.write_atomically", write)
    harness.drain()
    assert not Rotation(harness.path, harness.tail, limit=10_000, most=20_000).step()
    assert not old.exists()
    again = Harness(tmp_path, experiments.url)
    again.drain()
    append(harness.path, line(4))
    again.drain()
    again.close()
    assert set(experiments.seen) == {"i1", "i2", "i3", "i4"}
    assert experiments.times["i4"] == 1


def test_a_full_log_loses_its_oldest_part(
    harness: Harness, experiments: FakeExperiments, tmp_path: Path
) -> None:
    """Both files have room for half each; the older one goes, but for what is on its way."""
    experiments.mode = "fail"
    size = len(line(1)) * 10
    append(harness.path, *(line(i) for i in range(10, 30)))
    assert harness.shipper.step() > 0  # Ten are on their way, as many as one read returns.
    dropped: list[int] = []
    rotation = Rotation(harness.path, harness.tail, size, 4 * size, dropped.append)
    assert rotation.step()
    append(harness.path, *(line(i) for i in range(30, 49)))
    assert not rotation.step()
    assert dropped == []
    append(harness.path, *(line(i) for i in range(49, 51)))
    assert not rotation.step()
    assert dropped == [10]
    assert rotation.step(), "the new log is large, too"
    experiments.mode = "ok"
    harness.drain()
    assert set(experiments.seen) == {f"i{i}" for i in [*range(10, 20), *range(30, 51)]}
    append(harness.path, line(51))
    harness.drain()
    assert not rotation.step()
    assert not (tmp_path / "access.log.1").exists()
    assert dropped == [10]


def test_a_log_that_nobody_ships_fills_no_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an experiments service the log is kept within its room."""
    path, room = tmp_path / "access.log", 20 * len(line(10))
    settings = mock.Mock(log_limit=1 << 20, log_most=room)
    home, admin = mock.Mock(), mock.Mock()
    home.access_log, home.position = path, tmp_path / "position.json"
    tail = LogTail(path, Position(home.position))
    monkeypatch.setattr(agent, "LogTail", lambda *_: tail)
    step = agent._keeping(settings, home, admin)
    for number in range(10, 95):
        append(path, line(number))
        step()
        assert sum(map(size, tmp_path.glob("access.log*"))) <= room + len(line(10))
    tail.close()
    again = LogTail(path, Position(home.position))
    kept = len(again.read()) + len(again.read())
    again.close()
    assert 10 <= kept <= 20


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"flags": "UPE", "details": f"{RESET}{{protocol_error}}"}, 0),
        ({"flags": "UC", "details": f"{RESET}{{connection_termination}}", "code": 404}, 0),
        ({"flags": "UT", "details": "response_timeout"}, 0),
        ({"flags": "UT", "details": "response_timeout", "code": 504}, 504),
        ({"flags": "UF", "details": "upstream_reset_before_response_started{x}", "code": 503}, 503),
        ({"flags": "DC", "details": "downstream_remote_disconnect"}, 200),
        ({"flags": "UPE,DC", "details": f"{RESET}{{protocol_error}}"}, 200),
        ({"details": "request_payload_too_large", "code": 413}, 413),
    ],
)
def test_code_of_a_line(
    harness: Harness, experiments: FakeExperiments, changes: dict[str, Any], code: int
) -> None:
    """Half an answer is none, unless it was the client that left; all else keeps its code."""
    append(harness.path, line(1, **changes))
    harness.drain()
    assert experiments.seen["i1"]["code"] == code


class Hours:
    """A clock that is moved by hand."""

    time = 0.0

    def now(self) -> float:
        """Tell the time."""
        return self.time

    def monotonic(self) -> float:
        """Tell the time."""
        return self.time


def test_versions_that_are_gone_are_not_counted_for_ever() -> None:
    """Series of a version go some minutes after it; those of one that is there stay."""
    clock = Hours()
    meter = PrometheusMeter(clock)
    endpoint = Endpoint(address="10.0.0.1", port=8080, ready=True)
    for version in ("3", "4"):
        found = decode_line(line(1, version=version, cluster=f"iris-v{version}"))
        assert found is not None
        meter.request(found)

    def counted(*versions: str) -> set[str]:
        there = {("iris", version): (endpoint,) for version in versions}
        report = Report(snapshot=Snapshot(plans={}, endpoints=there))
        text = meter.expose(report).decode()
        return set(re.findall(r'requests_total\{.*version="(.)"', text)) | set(
            re.findall(r'seconds_count\{.*version="(.)"', text)
        )

    assert counted("3", "4") == {"3", "4"}
    clock.time += 5000
    assert counted("4") == {"3", "4"}, "until now it was there"
    clock.time += 500
    assert counted("4") == {"3", "4"}, "for every scraper to see its end"
    clock.time += 500
    counted("4")
    assert counted("4") == {"4"}
    assert counted("3", "4") == {"4"}


def test_facts_of_a_line(harness: Harness, experiments: FakeExperiments) -> None:
    """Fallback, no answer and a client that left are told as the contract says."""
    append(
        harness.path,
        line(1, version="3", attempts=2),
        line(2, details="upstream_reset", code=503, version="4"),
        line(3, code=0, details="downstream_remote_disconnect"),
        line(4, arm=None),
        line(5, rollout=None, step=None),
        line(6, unit=None, arm="stable"),
    )
    harness.drain()
    seen = experiments.seen
    assert set(seen) == {"i1", "i2", "i3", "i6"}
    assert (seen["i1"]["version"], seen["i1"]["attempts"]) == ("3", 2)
    assert (seen["i2"]["version"], seen["i2"]["code"]) == (None, 503)
    assert (seen["i3"]["version"], seen["i3"]["code"]) == (None, 499)
    assert seen["i6"]["unit"] is None
    assert seen["i1"]["at"] == "2026-11-21T12:05:21.850Z"

"""Reports of compared predictions: which, of what, and at nobody's cost."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_asgi import Client

from fairlead_serving.adapters import reports as module
from fairlead_serving.adapters.reports import Report, Reports
from fairlead_serving.domain.predictions import LONGEST, UNREAD, Predicted, read_predicted

BODY = json.dumps({"inputs": {"hour": [1.5, 2.5, 3.5]}}).encode()
JSON = {"content-type": "application/json"}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
ANSWERS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
)


class Experiments:
    """An experiments service that takes, refuses or hangs as it is told."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        self.rejected: list[dict[str, Any]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                document = json.loads(self.rfile.read(length))
                outer.may_answer.wait(30)
                status = outer.statuses.pop(0) if outer.statuses else 200
                if status == 200:
                    outer.taken += document["predictions"]
                answer = json.dumps({"rejected": outer.rejected}).encode()
                with contextlib.suppress(ConnectionError):  # The process has ended.
                    self.send_response(status)
                    self.send_header("content-length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def experiments() -> Iterator[Experiments]:
    """An experiments service."""
    service = Experiments()
    yield service
    service.may_answer.set()
    service.server.shutdown()
    service.server.server_close()


def post(client: Client, *marks: dict[str, str]) -> list[int]:
    """Send requests over one run of the application; what is reported is sent at its end."""

    async def go() -> list[int]:
        async with client.connected() as http:
            answers = [
                await http.post("/invocations", content=BODY, headers={**JSON, **mark})
                for mark in marks
            ]
        return [answer.status_code for answer in answers]

    return asyncio.run(go())


def marked(number: int, mark: str = "answer") -> dict[str, str]:
    """The headers of a request that the gateway has marked."""
    return {"x-inference-id": f"i{number}", "x-fairlead-compare": mark}


def report(number: int = 1, size: int = 0) -> Report:
    """Build a report of an answer with so many bytes more."""
    body = json.dumps({"predictions": [1.5], "more": "x" * size}).encode()
    return Report(f"i{number}", is_shadow=False, at=1e9, status=200, seconds=0.0032, body=body)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""

    async def wait() -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    asyncio.run(wait())


@pytest.mark.parametrize(
    ("answer", "rows", "values"),
    [
        ({"predictions": [1.5]}, 1, {1.5}),
        ({"predictions": ["a", "b"]}, 2, {"a", "b"}),
        ({"predictions": [[0.2, 0.8], [0.6, 0.4]]}, 2, {0.2, 0.6}),
        ({"predictions": [{"label": "a", "score": 0.9}]}, 1, {"a"}),
        ({"predictions": {"y": [1, 2], "z": [3, 4]}}, 2, {1, 2}),
        ({"predictions": "a"}, 1, {"a"}),
        ({"predictions": [None, True]}, 2, {None, True}),
        ({"predictions": []}, 0, {UNREAD}),
        ({"predictions": [1e101]}, 1, {UNREAD}),
        ({"predictions": [[]]}, 1, {UNREAD}),
        ({"outputs": [{"shape": [2], "data": [1, 2]}, {"data": [9]}]}, 2, {1, 2}),
        ({"outputs": [{"shape": [2, 3], "data": [1, 2, 3, 4, 5, 6]}]}, 2, {1, 4}),
        ({"outputs": [{"shape": [2, 1], "parameters": {"binary_data_size": 8}}]}, 0, {UNREAD}),
        ({"outputs": []}, 0, {UNREAD}),
        (None, 0, {UNREAD}),
    ],
)
def test_one_prediction_is_read_of_every_form(answer: Any, rows: int, values: set[Any]) -> None:
    """Of several rows any may be chosen, and all are by some id; of several outputs the first."""
    found = [read_predicted(answer, f"i{number}") for number in range(40)]

    assert {one.rows for one in found} == {rows}
    assert {one.value for one in found} == values


def test_all_versions_tell_of_the_same_row() -> None:
    """Which row it is depends on the id and the number of rows, not on what was predicted."""
    for number in range(50):
        mine = read_predicted({"predictions": list(range(7))}, f"i{number}").value
        theirs = read_predicted({"predictions": [[k + 0.5] for k in range(7)]}, f"i{number}").value
        assert theirs == mine + 0.5  # type: ignore[operator]


def test_long_texts_are_cut_and_stay_apart() -> None:
    """Two long texts that differ at the end are still two, and none is above the limit."""
    texts = ["x" * 500 + end for end in "ab"]
    read = [read_predicted({"predictions": [text]}, "i").value for text in texts]

    assert read[0] != read[1]
    assert all(isinstance(one, str) and len(one) == LONGEST for one in read)


@given(answer=ANSWERS, outputs=ANSWERS)
def test_no_answer_is_too_odd_to_be_read(answer: Any, outputs: Any) -> None:
    """Whatever a model gives, something is told of it, and JSON has a word for that."""
    for one in (answer, {"predictions": answer}, {"outputs": outputs}):
        found = read_predicted(one, "i")
        assert isinstance(found, Predicted)
        assert found.value is UNREAD or json.dumps(found.value, allow_nan=False)


def test_marked_requests_alone_are_reported(experiments: Experiments) -> None:
    """The gateway's mark tells which requests, and on which side; the rest is nobody's business."""
    client = Client([1.0, 2.0, 3.0], experiments=experiments.url)
    plain = {"x-inference-id": "i0"}

    assert post(client, plain, marked(1), marked(2, "shadow"), plain) == [200] * 4

    told = {one["inferenceId"]: one for one in experiments.taken}
    assert set(told) == {"i1", "i2"}
    assert (told["i1"]["shadow"], told["i2"]["shadow"]) == (False, True)
    assert (told["i1"]["model"], told["i1"]["version"], told["i1"]["code"]) == ("flights", "4", 200)
    assert told["i1"]["prediction"] in {1.0, 2.0, 3.0}
    assert told["i1"]["rows"] == 3
    assert told["i1"]["durationMs"] > 0


def test_failures_are_reported_without_a_prediction(experiments: Experiments) -> None:
    """A model that raises is told with its code."""
    assert post(Client(OSError("secret"), experiments=experiments.url), marked(1)) == [500]

    (told,) = experiments.taken
    assert (told["code"], told["rows"], "prediction" in told) == (500, 0, False)


def test_requests_are_answered_while_the_service_hangs(
    experiments: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that takes a report and never answers costs reports at most, never an answer."""
    monkeypatch.setattr(module, "_FAREWELL", 0.1)
    experiments.may_answer.clear()

    assert post(Client(None, experiments=experiments.url), *map(marked, range(50))) == [200] * 50


def test_requests_are_answered_while_there_is_no_service() -> None:
    """An address where nobody listens costs no answer."""
    client = Client(None, experiments="http://127.0.0.1:9")

    assert post(client, marked(1), marked(2)) == [200, 200]


def test_reports_wait_for_a_service_that_comes_back(
    experiments: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the service did not take is sent again, and counted once it is taken."""
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.01)
    experiments.statuses = [503, 500, 200]
    reports = Reports(experiments.url, "flights", "4")
    reports.add(report())
    wait_for(lambda: reports.counts["reported"] == 1)
    reports.close()

    assert len(experiments.taken) == 1
    assert reports.counts == {"reported": 1, "rejected": 0, "dropped": 0}


def test_what_is_refused_is_dropped_and_counted(experiments: Experiments) -> None:
    """A service that will never take it is not asked again; an item it rejects is counted."""
    experiments.statuses = [404]
    reports = Reports(experiments.url, "flights", "4")
    reports.add(report(1))
    wait_for(lambda: reports.counts["dropped"] == 1)
    experiments.rejected = [{"index": 0, "field": "at", "reason": "…"}]
    reports.add(report(2))
    reports.close()

    assert reports.counts == {"reported": 0, "rejected": 1, "dropped": 1}


def test_the_backlog_is_bounded(experiments: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow service cannot take is dropped and counted, and memory stays as it is."""
    monkeypatch.setattr(module, "_BACKLOG_BYTES", 1_000_000)
    monkeypatch.setattr(module, "_BATCH", 1)
    experiments.may_answer.clear()
    reports = Reports(experiments.url, "flights", "4")
    for number in range(10):
        reports.add(report(number, size=300_000))
    dropped = reports.counts["dropped"]
    experiments.may_answer.set()
    reports.close()

    assert 6 <= dropped <= 7  # One may be on its way, and three wait.
    assert reports.counts["reported"] + reports.counts["dropped"] == 10


def test_metrics_count_reports(experiments: Experiments) -> None:
    """The process's own metrics say what became of its reports."""
    client = Client(None, experiments=experiments.url)

    async def go() -> str:
        async with client.connected() as http:
            await http.post("/invocations", content=BODY, headers={**JSON, **marked(1)})
            async with asyncio.timeout(20):
                while not experiments.taken:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            return (await http.get("/metrics")).text

    assert 'fairlead_serving_predictions_total{model="flights",result="' in asyncio.run(go())

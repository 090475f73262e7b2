"""The command, started as users start it, on models that MLflow saved."""

import signal
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from free_ports import free_port

from fairlead_serving.entrypoints.cli import main
from fairlead_serving.protocol import open_inference_pb2 as pb

ROW = {"dataframe_records": [{"hour": 1.0, "day": 2, "late": 0}]}


@pytest.mark.parametrize("name", ["cloudpickle", "booster", "pyfunc"])
def test_predicts_what_mlflow_predicts(
    name: str, models: Path, expected: Mapping[str, Any], serve: Callable[..., Any]
) -> None:
    """A served model gives what MLflow gives in-process, and only pyfunc imports MLflow."""
    with serve(models / name, environment={"PYTHONPROFILEIMPORTTIME": "1"}) as server:
        server.wait_ready()
        answer = server.predict(expected[name]["payload"])
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(
            answer.json()["predictions"], expected[name]["predictions"], rtol=1e-6
        )
        if name == "pyfunc":
            given = server.predict({**ROW, "params": {"factor": 10}})
            assert given.json() == {"predictions": [10.0]}
        imported = {line.rpartition("|")[2].strip() for line in server.log.read_text().split("\n")}
    assert "numpy" in imported
    assert ("mlflow" in imported) is (name == "pyfunc")


def test_values_inside_lists_and_objects_reach_a_model_as_they_were_read(
    models: Path, serve: Callable[..., Any]
) -> None:
    """MLflow, which refuses every one of these from JSON, does not check them once more."""
    row = {"list": [1.5, 2, None], "moment": {"n": 3, "when": "2013-01-02T03:04:05"}}
    with serve(models / "nested") as server:
        server.wait_ready()
        answer = server.predict({"dataframe_records": [row]})
    assert answer.status_code == 200, answer.text
    (seen,) = answer.json()["predictions"]
    assert "'list': [1.5, 2.0, nan]" in seen
    assert "'moment': {'n': 3, 'when': datetime.datetime(2013, 1, 2, 3, 4, 5)}" in seen


def test_model_that_can_never_load_ends_with_3(
    models: Path, serve: Callable[..., Any], tmp_path: Path
) -> None:
    """Exit code 3, and one sentence with the reason in the log and in the termination log."""
    log = tmp_path / "termination"
    with serve(models / "unmet", "--termination-log", str(log)) as server:
        assert server.wait_exit() == 3
        printed = server.log.read_text()
    sentence = log.read_text()
    assert "scikit-learn==0.1 (" in sentence
    assert "nobody-has-this (nothing is installed)" in sentence
    assert sentence.count("\n") == 1
    assert sentence.strip() in printed
    assert "Traceback" not in printed


def test_taken_port_is_one_sentence(models: Path, serve: Callable[..., Any]) -> None:
    """A port that is in use ends the process with 1 and says so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with serve(models / "plain", "--port", port) as server:
            assert server.wait_exit() == 1
            assert f"Cannot listen on 127.0.0.1:{port}" in server.log.read_text()


class _Load:
    """Callers that send requests until told to stop, and keep every answer."""

    def __init__(self, url: str, callers: int) -> None:
        self.codes: list[int] = []
        self.failures: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(url,)) for _ in range(callers)]
        for thread in self._threads:
            thread.start()

    def _call(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=10.0) as client:
            while not self._stop.is_set():
                try:
                    self.codes.append(client.post("/invocations", json=ROW).status_code)
                except httpx.HTTPError as error:
                    self.failures.append(error)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_drains_without_a_failed_request(
    models: Path, serve: Callable[..., Any], wait: Callable[[Callable[[], bool]], None]
) -> None:
    """After SIGTERM readiness goes at once, requests are still answered, the exit code is 0."""
    with serve(models / "slow", "--drain-seconds", "3") as server:
        server.wait_ready()
        load = _Load(server.url, callers=4)
        try:
            wait(lambda: len(load.codes) > 8)
            server.process.send_signal(signal.SIGTERM)
            wait(lambda: server.status("/readyz") == 503)
            assert server.status("/livez") == 200
            before = len(load.codes)
            wait(lambda: len(load.codes) > before + 8)
        finally:
            load.stop()
        assert server.wait_exit() == 0
    assert load.failures == []
    assert set(load.codes) == {200}


def test_request_in_flight_outlives_the_drain(
    models: Path, serve: Callable[..., Any], wait: Callable[[Callable[[], bool]], None]
) -> None:
    """A request that is being answered when the drain is over still gets its answer."""
    with serve(models / "slow", "--drain-seconds", "0") as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url, timeout=10.0) as client:
            answers: list[int] = []
            caller = threading.Thread(
                target=lambda: answers.append(client.post("/invocations", json=ROW).status_code)
            )
            caller.start()
            wait(
                lambda: 'in_flight{model="slow",version=""} 1.0' in server.http.get("/metrics").text
            )
            server.process.send_signal(signal.SIGTERM)
            caller.join()
        assert answers == [200]
        assert server.wait_exit() == 0


def test_options_reach_what_they_are_about(models: Path, serve: Callable[..., Any]) -> None:
    """Edges of the latency histogram are those of the command; a slow sender has the time it gives."""
    options = ("--latency-buckets", "0.5,60", "--receive-seconds", "0.3")
    with serve(models / "plain", *options) as server:
        server.wait_ready()
        assert server.predict(ROW).status_code == 200
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as slow:
            slow.settimeout(60)
            slow.sendall(b"POST /invocations HTTP/1.1\r\n")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        name = "fairlead_serving_request_duration_seconds"
        assert server.metric(f"{name}_bucket", code="2xx", le="60.0") == 1
        text = server.http.get("/metrics").text
    edges = {
        line.partition('le="')[2].partition('"')[0] for line in text.splitlines() if name in line
    }
    assert edges == {"", "0.5", "60.0", "+Inf"}
    assert "fairlead_serving_ready{" in text


def test_grpc_drains_without_a_failed_call(
    models: Path,
    serve: Callable[..., Any],
    wait: Callable[[Callable[[], bool]], None],
) -> None:
    """After SIGTERM gRPC is not ready, and still answers all that was and is asked until the end."""
    port = free_port()
    options = ("--grpc-port", str(port), "--drain-seconds", "8", "--timeout-seconds", "600")
    tensors = [
        {"name": name, "datatype": datatype, "shape": [1], "contents": {contents: [1]}}
        for name, datatype, contents in (
            ("hour", "FP64", "fp64_contents"),
            ("day", "INT64", "int64_contents"),
            ("late", "INT64", "int64_contents"),
        )
    ]
    request = pb.ModelInferRequest(model_name="slow", inputs=tensors)
    with (
        serve(models / "slow", *options) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        server.wait_ready()
        service = "/inference.GRPCInferenceService"
        write = lambda one: one.SerializeToString()  # noqa: E731
        infer = channel.unary_unary(
            f"{service}/ModelInfer", write, pb.ModelInferResponse.FromString
        )
        ready = channel.unary_unary(
            f"{service}/ServerReady", write, pb.ServerReadyResponse.FromString
        )
        assert ready(pb.ServerReadyRequest(), timeout=60).ready
        infer(request, timeout=600)  # The first imports pandas.
        under_way = [infer.future(request, timeout=60) for _ in range(8)]
        wait(lambda: server.metric("fairlead_serving_requests_in_flight") > 0)
        server.process.send_signal(signal.SIGTERM)
        wait(lambda: not ready(pb.ServerReadyRequest(), timeout=60).ready)
        under_way += [infer.future(request, timeout=60) for _ in range(8)]
        assert [len(one.result().outputs) for one in under_way] == [1] * 16
        assert server.wait_exit() == 0


def test_second_signal_ends_at_once(
    models: Path, serve: Callable[..., Any], wait: Callable[[Callable[[], bool]], None]
) -> None:
    """A second SIGTERM does not wait for the drain."""
    with serve(models / "plain", "--drain-seconds", "600") as server:
        server.wait_ready()
        server.process.send_signal(signal.SIGTERM)
        wait(lambda: server.status("/readyz") == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        pytest.param("models:/flights/Production", "NAME/VERSION", id="a stage"),
        pytest.param("models:/flights/4", "--tracking-uri", id="no server named"),
    ],
)
def test_wrong_arguments_end_with_2(
    model: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An argument that cannot mean anything is a usage error that says what is wanted."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["--model", model, "--port", "1"])
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err

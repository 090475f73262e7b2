"""Client libraries of other servers against a real process, over REST and gRPC."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from free_ports import free_port
from serving_asgi import Client

from fairlead_serving.app.ports import ModelFolder
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.data import Columns
from fairlead_serving.domain.signature import Column, Kind, Signature
from fairlead_serving.domain.v2 import DTYPES
from fairlead_serving.protocol import open_inference_pb2 as pb

CLIENTS = Path(sys.prefix).parent / ".venv-clients" / "bin" / "python"
SCRIPT = Path(__file__).with_name("other_clients.py")
GENERATE = Path(__file__).with_name("generated_client.py")
ROWS = {"hour": [1.5, 2.5], "day": [2, 3], "late": [0, 1]}
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    models: Path,
    start_server: Callable[..., Any],
) -> Iterator[tuple[Any, int]]:
    """A process that speaks both, and its gRPC port."""
    port = free_port()
    log = tmp_path_factory.mktemp("clients") / "server.log"
    options = ("--name", "flights", "--grpc-port", str(port))
    with ExitStack() as stack:
        running = stack.enter_context(start_server(log, models / "cloudpickle", *options))
        running.wait_ready()
        yield running, port


def _ask(library: str, server: tuple[Any, int]) -> Mapping[str, Any]:
    """Have a library ask; give what it got over HTTP and over gRPC."""
    running, grpc_port = server
    return _run(SCRIPT, library, str(httpx.URL(running.url).port), str(grpc_port))


def _run(script: Path, *arguments: str) -> Mapping[str, Any]:
    assert CLIENTS.exists(), "make .venv-clients/.installed installs the client libraries"
    done = subprocess.run(
        [str(CLIENTS), "-W", "ignore", str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def expected(server: tuple[Any, int]) -> list[float]:
    """What the same process predicts by MLflow's protocol."""
    predictions: list[float] = server[0].predict({"inputs": ROWS}).json()["predictions"]
    return predictions


def test_tritonclient(server: tuple[Any, int], expected: list[float]) -> None:
    """Bytes and JSON, over HTTP and gRPC, give what the model predicts."""
    found = _ask("triton", server)
    for way in ("binary True", "binary False", "all outputs"):
        assert found["http"][way] == expected
    assert found["grpc"]["binary"] == expected
    for answers in found.values():
        assert (answers["live"], answers["ready"]) == (True, True)
        assert answers["server"] == "fairlead-serving"
        assert answers["refused"].endswith("The input 'day' is missing.")
    assert [(one["name"], one["datatype"]) for one in found["http"]["model"]["inputs"]] == [
        ("hour", "FP64"),
        ("day", "INT64"),
        ("late", "INT64"),
    ]
    assert found["grpc"]["inputs"] == ["hour", "day", "late"]
    assert found["grpc"]["unknown"] == "This process serves version 1 of 'flights' alone."


class _Echo:
    is_rowwise = is_compiled = False

    def predict(self, data: Columns, params: Mapping[str, object]) -> object:
        return list(data.cells[0])


def test_tritonclient_sends_words() -> None:
    """Strings come and go as bytes and as JSON, empty ones and line ends too."""
    signature = Signature(columns=(Column("word", Kind.STRING),))
    folder = ModelFolder(path=Path(), flavors={}, signature=signature)
    client = Client(state={"served": Served(_Echo(), folder)})
    with client.listening() as url:
        found = _run(SCRIPT, "words", str(httpx.URL(url).port), "0")
    assert found == {way: ["é", "", "a\nb"] for way in ("binary True", "binary False")}


def test_tritonclient_sends_every_datatype(models: Path, serve: Callable[..., Any]) -> None:
    """To its last value each comes back as its own type, as bytes and as JSON, by HTTP and gRPC."""
    port = free_port()
    with serve(models / "echo", "--name", "flights", "--grpc-port", str(port)) as running:
        running.wait_ready()
        found = _ask("datatypes", (running, port))
    assert len(found) == 5 * len(DTYPES)
    assert {way: told for way, told in found.items() if told} == {}


def test_kserve_clients(server: tuple[Any, int], expected: list[float]) -> None:
    """KServe's own library gets the predictions by both protocols."""
    wanted = {"live": True, "ready": True, "predictions": expected}
    assert _ask("kserve", server) == {"http": wanted, "grpc": wanted}


def test_generated_client(server: tuple[Any, int], expected: list[float], tmp_path: Path) -> None:
    """A client generated from the document predicts with typed models and gets typed errors."""
    found = _run(GENERATE, server[0].url, str(tmp_path))
    assert found["types"] == ["Predictions", "Error", "InferResponse", "InferError"]
    assert found["predictions"] == expected
    assert found["refused"] == [400, "BAD_REQUEST", "late"]
    assert (found["outputs"], found["id"]) == ([["output-1", expected]], "7")
    assert found["lacking"] == "The input 'late' is missing."
    assert found["inputs"] == ["hour", "day", "late"]
    # CSV is beyond this generator; it says so, and about nothing else.
    assert "Unsupported content type text/csv" in found["generator"]
    assert "Endpoint will not be generated" not in found["generator"]


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        pytest.param(
            pb.ModelInferRequest(model_name="flights"), "INVALID_ARGUMENT", "no inputs", id="none"
        ),
        pytest.param(
            pb.ModelInferRequest(
                model_name="flights",
                inputs=[{"name": "hour", "datatype": "X", "shape": [1]}],
            ),
            "INVALID_ARGUMENT",
            "a datatype",
            id="datatype",
        ),
        pytest.param(
            pb.ModelInferRequest(
                model_name="flights",
                inputs=[{"name": "hour", "datatype": "FP64", "shape": [1]}],
                raw_input_contents=[b"12345678", b""],
            ),
            "INVALID_ARGUMENT",
            "raw_input_contents",
            id="more bytes than inputs",
        ),
        pytest.param(
            pb.ModelInferRequest(
                model_name="flights",
                inputs=[{"name": "hour", "datatype": "FP64", "shape": [1]}],
                raw_input_contents=[b"123"],
            ),
            "INVALID_ARGUMENT",
            "no values",
            id="half a value",
        ),
        pytest.param(
            pb.ModelInferRequest(model_name="flights", model_version="9"),
            "NOT_FOUND",
            "version 1",
            id="another version",
        ),
    ],
)
def test_bad_calls_are_refused(
    request_: Any, code: str, words: str, server: tuple[Any, int]
) -> None:
    """GRPC's own codes say whose mistake it is."""
    with grpc.insecure_channel(f"127.0.0.1:{server[1]}") as channel:
        call = channel.unary_unary(INFER, lambda one: one.SerializeToString(), bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(request_, timeout=10)
    assert caught.value.code().name == code
    assert words in caught.value.details()


def test_taken_port_is_told(
    server: tuple[Any, int],
    models: Path,
    serve: Callable[..., Any],
) -> None:
    """A second process on the same gRPC port ends and says why."""
    with serve(models / "cloudpickle", "--grpc-port", str(server[1])) as second:
        assert second.wait_exit() == 1
        assert f"Cannot listen on 127.0.0.1:{server[1]}" in second.log.read_text()

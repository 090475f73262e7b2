"""ONNX models, loaded without MLflow, against what MLflow's own server answers."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from importing import imported_by
from serving_asgi import Client

from fairlead_serving.app.lane import Limits
from fairlead_serving.app.serving import Served
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.wiring import fetch_and_load

ROWWISE = {"boosted", "encoded", "encoded_frame", "flat", "frame", "matrix", "unsigned"}
ANSWERED = (
    "boosted",
    "centred",
    "columns",
    "encoded",
    "frame",
    "matrix",
    "sums",
    "unsigned",
    "weighed",
    "words",
)
REFUSED_BY_MLFLOW = ("encoded_frame", "flat", "whole")
CANARY = "c4n4ry"


@pytest.fixture(scope="module")
def onnx_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of `make_onnx_models.py`, one folder each."""
    root = tmp_path_factory.mktemp("onnx")
    script = Path(__file__).with_name("make_onnx_models.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(root)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def answers(onnx_models: Path) -> Mapping[str, Any]:
    """For each model a payload and what MLflow's server answers; null where it fails."""
    document: Mapping[str, Any] = json.loads((onnx_models / "expected.json").read_text())
    return document


@pytest.fixture(scope="module")
def load(onnx_models: Path) -> Callable[[str], Served]:
    """Load a model, once."""
    loaded: dict[str, Served] = {}

    def give(name: str) -> Served:
        if name not in loaded:
            loaded[name] = fetch_and_load(Settings(model=str(onnx_models / name)))
        return loaded[name]

    return give


def test_each_model_is_in_a_list(answers: Mapping[str, Any]) -> None:
    """MLflow answers for the one list of models and fails for the other."""
    assert {name for name in answers if answers[name]["predictions"] is not None} == set(ANSWERED)
    assert set(answers) == {*ANSWERED, *REFUSED_BY_MLFLOW}


@pytest.mark.parametrize("name", ANSWERED)
def test_invocations_answers_what_mlflow_does(
    name: str, answers: Mapping[str, Any], load: Callable[[str], Served]
) -> None:
    """The answer is that of MLflow's server, to the last digit of its 32-bit floats."""
    answer = Client(state={"served": load(name)}).post(answers[name]["payload"])
    assert answer.status_code == 200, answer.text
    _assert_same(answer.json()["predictions"], answers[name]["predictions"])


def _assert_same(found: Any, expected: Any) -> None:
    """Compare as JSON; with room for the last bit, which depends on the rows of a call."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_same(one, other)
    else:
        assert type(found) is type(expected)
        assert found == (pytest.approx(expected, rel=1e-6) if type(found) is float else expected)


@pytest.mark.parametrize("name", ["boosted", "columns", "encoded", "sums", "words"])
def test_v2_answers_what_mlflow_does(
    name: str, answers: Mapping[str, Any], load: Callable[[str], Served]
) -> None:
    """The Open Inference Protocol has the same numbers, an output for each of the graph's."""
    served = load(name)
    payload = answers[name]["payload"].get("inputs") or {
        column: [row[at] for row in answers[name]["payload"]["dataframe_split"]["data"]]
        for at, column in enumerate(answers[name]["payload"]["dataframe_split"]["columns"])
    }
    inputs = [
        {
            "name": tensor,
            "shape": list(np.array(values).shape),
            "datatype": "BYTES" if np.array(values).dtype.kind == "U" else "FP64",
            "data": np.array(values).ravel().tolist(),
        }
        for tensor, values in payload.items()
        if tensor in {spec.name for spec in (*served.signature.columns, *served.signature.tensors)}
    ]
    answer = Client(state={"served": served}).post(
        {"inputs": inputs}, path="/v2/models/flights/infer"
    )
    assert answer.status_code == 200, answer.text
    wanted = answers[name]["predictions"]
    if isinstance(wanted, list):
        wanted = {column: [row[column] for row in wanted] for column in wanted[0]}
    found = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    _assert_same(found, {column: np.array(wanted[column]).ravel().tolist() for column in wanted})


def test_rows_keep_their_lists_where_mlflow_fails(
    answers: Mapping[str, Any], load: Callable[[str], Served]
) -> None:
    """Labels beside probabilities are no frame to MLflow; here each row has both."""
    found = (
        Client(state={"served": load("flat")})
        .post(answers["flat"]["payload"])
        .json()["predictions"]
    )
    matrix = answers["matrix"]["predictions"]
    expected = zip(matrix["label"], matrix["probabilities"], strict=True)
    _assert_same(found, [{"label": one, "probabilities": many} for one, many in expected])


def test_column_goes_into_a_table_of_one(
    answers: Mapping[str, Any], load: Callable[[str], Served]
) -> None:
    """What was converted from a ColumnTransformer takes the columns of a frame."""
    payload = {"dataframe_records": [{"carrier": "AA", "distance": 3.0}]}
    found = Client(state={"served": load("encoded_frame")}).post(payload).json()["predictions"]
    wanted = answers["encoded"]["predictions"]
    _assert_same(
        found, [{"label": wanted["label"][0], "probabilities": wanted["probabilities"][0]}]
    )


@pytest.mark.parametrize("name", sorted({*ANSWERED, *REFUSED_BY_MLFLOW}))
def test_only_graphs_of_rows_are_merged(name: str, load: Callable[[str], Served]) -> None:
    """A graph by hand is not, nor one that says a converter made it but mixes its rows."""
    assert load(name).model.is_rowwise is (name in ROWWISE)


def test_merged_requests_get_their_own_rows(
    answers: Mapping[str, Any], load: Callable[[str], Served]
) -> None:
    """Outputs by name are cut by rows as well."""
    client = Client(state={"served": load("matrix")}, limits=Limits(timeout=10))

    async def send() -> list[Any]:
        async with client.connected() as http:
            sent = [
                http.post("/invocations", json={"inputs": [row]})
                for row in answers["matrix"]["payload"]["inputs"]
            ]
            found = [answer.json()["predictions"] for answer in await asyncio.gather(*sent)]
            metrics = (await http.get("/metrics")).text
            assert 'merged_requests_bucket{le="1.0",model="flights",version="4"} 0.0' in metrics
            return found

    found = asyncio.run(send())
    wanted = answers["matrix"]["predictions"]
    _assert_same(
        found, [{key: [many[at]] for key, many in wanted.items()} for at in range(len(found))]
    )


@pytest.mark.parametrize(
    ("name", "payload", "words"),
    [
        pytest.param(
            "whole",
            {"dataframe_records": [{"hour": 1.0, "day": 2}]},
            "'day' must hold float32, not int64",
            id="type of a column",
        ),
        pytest.param(
            "unsigned", {"inputs": [[1, 2, 3]]}, "'X' must hold float32, not int64", id="type"
        ),
        pytest.param(
            "unsigned", {"inputs": [[CANARY] * 3]}, "'X' must hold float32, not str", id="text"
        ),
        pytest.param("unsigned", {"inputs": [[1.5]]}, "shape [-1, 3], not [1, 1]", id="width"),
        pytest.param("unsigned", {"inputs": [1.5]}, "shape [-1, 3], not [1]", id="rank"),
        pytest.param("unsigned", {"inputs": {CANARY: [[1.5]]}}, "inputs are X", id="unknown name"),
        pytest.param("unsigned", {"inputs": {}}, "'X' is missing", id="no name"),
    ],
)
def test_what_the_graph_cannot_take_is_a_400(
    name: str, payload: object, words: str, load: Callable[[str], Served]
) -> None:
    """The message names the input and what it takes, and does not repeat what came."""
    answer = Client(state={"served": load(name)}).post(payload)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["message"]
    assert CANARY not in answer.text


def test_graph_that_fails_by_itself_is_a_500(load: Callable[[str], Served]) -> None:
    """Inputs that are each as asked for but do not go together are the model's to refuse."""
    served = load("sums")
    payload = {"inputs": {"pair": [[1.0, 2.0]] * 3, "factor": [1.0, 2.0]}}
    answer = Client(state={"served": served}).post(payload)
    assert answer.status_code == 500
    assert "Fail" in answer.json()["message"]


def test_threads_are_those_of_the_command(onnx_models: Path, wait: Callable[..., None]) -> None:
    """What the model's author set for another machine is not taken; all else is."""
    process = psutil.Process()
    for threads, more in ((1, 0), (3, 2)):
        before = process.num_threads()
        served = fetch_and_load(Settings(model=str(onnx_models / "sums"), threads=threads))
        assert process.num_threads() - before == more
        del served
        wait(lambda before=before: process.num_threads() == before)


def test_server_needs_no_mlflow(
    onnx_models: Path, answers: Mapping[str, Any], serve: Callable[..., Any]
) -> None:
    """The command serves the model with onnxruntime alone."""
    environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    with serve(onnx_models / "matrix", environment=environment) as server:
        server.wait_ready()
        found = server.predict(answers["matrix"]["payload"])
        imported = {line.rpartition("|")[2].strip() for line in server.log.read_text().split("\n")}
    _assert_same(found.json()["predictions"], answers["matrix"]["predictions"])
    assert "onnxruntime" in imported
    assert not imported & {"mlflow", "onnx", "sklearn"}


def test_command_converts_when_asked(
    models: Path, expected: Mapping[str, Any], serve: Callable[..., Any]
) -> None:
    """`--predictor onnx` predicts by a graph, and the metric for compiled models says so."""
    with serve(models / "cloudpickle", "--predictor", "onnx") as server:
        server.wait_ready()
        found = server.predict(expected["cloudpickle"]["payload"]).json()["predictions"]
        metrics = server.http.get("/metrics").text
    np.testing.assert_allclose(found, expected["cloudpickle"]["predictions"], rtol=1e-4)
    assert (
        'fairlead_serving_predictor{model="cloudpickle",predictor="compiled",version=""} 1.0'
        in metrics
    )


def test_onnx_model_brings_neither_scikit_learn_nor_pandas(onnx_models: Path) -> None:
    """A graph of arrays needs onnxruntime and numpy alone."""
    imported = imported_by(onnx_models / "matrix", '{"inputs": [[1.0, 2.0, 3.0]]}')
    assert "onnxruntime" in imported
    assert not imported & {"mlflow", "httpx", "grpc", "torch", "sklearn", "pandas", "xgboost"}

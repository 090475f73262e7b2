"""What MLServer's own codecs write is read, and what is answered they read as the model gave it.

`mlserver_codecs.json` has requests of those codecs, the answers, and what the codecs make of these.
To write it again, run this file: `make bench` has made the environment that it needs.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from serving_asgi import Client

from fairlead_serving.adapters.arrays import Arrays, to_answer
from fairlead_serving.app.ports import ModelFolder, Predictor
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.signature import ArrayOf, Column, Kind, Signature, Tensor

FIXTURE = Path(__file__).with_name("mlserver_codecs.json")
SCRIPT = Path(__file__).with_name("mlserver_codecs.py")
MLSERVER = Path(__file__).parents[3] / ".venv-bench" / "mlserver" / "bin" / "python"

FLIGHTS = Signature(
    columns=(
        Column("hour", Kind.DOUBLE),
        Column("day", Kind.LONG),
        Column("late", Kind.BOOLEAN),
        Column("carrier", Kind.STRING),
    )
)
HOURS = {"hour": [1.5, None, 3.25], "day": [1, 2, 3], "late": [True, False, True]}
ROWS = {**HOURS, "carrier": ["AA", "é", ""]}
LISTS = Signature(columns=(Column("ids", ArrayOf(Kind.LONG)), Column("word", ArrayOf(Kind.STRING))))
MIXED = Signature(
    columns=(
        Column("when", Kind.DATETIME),
        Column("photo", Kind.BINARY),
        Column("word", Kind.STRING),
        Column("n", Kind.INTEGER),
    )
)
MOMENTS = [datetime(2013, 1, 1, 5, 30), datetime(2013, 1, 2)]  # noqa: DTZ001  # MLflow's have none.


def _matrix(dtype: str) -> Signature:
    return Signature(tensors=(Tensor(None, dtype, (-1, 2)),))


CASES: Mapping[str, tuple[Signature, Any, Any]] = {
    "frame": (FLIGHTS, ROWS, np.array([0.5, 1.5, 2.5])),
    "frame, frame back": (
        FLIGHTS,
        ROWS,
        pd.DataFrame({"delay": [0.5, 1.5, 2.5], "gate": ["A", "B", "é"]}),
    ),
    "frame of lists": (LISTS, {"ids": [[1, 2], [3]], "word": [["a", "b"], []]}, ["x", "é"]),
    "matrix": (_matrix("float32"), np.array([[0.1, 2], [3, 4]], "float32"), np.float32([0.1, 2])),
    "matrix of words": (
        _matrix("object"),
        np.array([["a", "é"], ["", "d"]], object),
        np.array([["b", "é"], ["", "e"]], object),
    ),
    "words": (
        Signature(columns=(Column("word", Kind.STRING),)),
        {"word": ["a", "é"]},
        np.array(["b", "é"], object),
    ),
    "by input": (
        MIXED,
        {"when": MOMENTS, "photo": [b"\x01\x02", b"\xff"], "word": ["a", "é"], "n": [1, 2]},
        np.array([1, 2]),
    ),
    "by output": (_matrix("float64"), np.array([[1.5, 2.5]]), np.array([4.0])),
}
"""For each request the signature, what the model has to see, and what it predicts."""


class _Model:
    is_rowwise = False
    predictor = Predictor.OWN

    def __init__(self, prediction: Any) -> None:
        self.seen: Any = None
        self._prediction = prediction

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        del params
        self.seen = Arrays().build(data)
        return to_answer(self._prediction)


def _ask(case: str, request: Any) -> tuple[Any, Any]:
    """Send a request; give the answer, and what the model saw."""
    signature, _, prediction = CASES[case]
    model = _Model(prediction)
    served = Served(model, ModelFolder(path=Path(), flavors={}, signature=signature))
    answer = Client(signature=signature, state={"served": served}).post(
        request, path="/v2/models/flights/infer"
    )
    assert answer.status_code == 200, answer.text
    return answer.json(), model.seen


def _fixture() -> Any:
    return json.loads(FIXTURE.read_text())


@pytest.mark.parametrize("case", CASES)
def test_model_sees_what_the_codecs_were_given(case: str) -> None:
    """Missing numbers, lists, moments and bytes among it."""
    _, wanted, _ = CASES[case]
    _, seen = _ask(case, _fixture()["requests"][case])
    if isinstance(seen, np.ndarray):
        assert (seen.tolist(), seen.shape) == (wanted.tolist(), wanted.shape)
        return
    found = {
        name: [None if value is None or value != value else value for value in seen[name].tolist()]  # noqa: PLR0124
        for name in seen
    }
    listed = {name: [_listed(value) for value in values] for name, values in found.items()}
    assert listed == wanted


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("case", CASES)
def test_answers_are_those_that_the_codecs_read(case: str) -> None:
    """What the fixture has of them: these very answers the codecs have read."""
    fixture = _fixture()
    assert _ask(case, fixture["requests"][case])[0] == fixture["answers"][case]


@pytest.mark.parametrize("case", CASES)
def test_codecs_read_what_the_model_predicted(case: str) -> None:
    """As a whole and output by output, by the content types that the answer names."""
    _, _, prediction = CASES[case]
    read = _fixture()["read"][case]
    if isinstance(prediction, pd.DataFrame):
        assert read["whole"]["records"] == prediction.to_dict(orient="records")
        assert read["whole"]["dtypes"]["delay"] == "float64"
        assert list(read["outputs"]) == list(prediction)
        return
    (output,) = read["outputs"].values()
    assert read["whole"] == output
    if isinstance(output, list):
        assert output == list(prediction)
        return
    rows = np.reshape(prediction, (len(prediction), -1))
    assert (output["values"], output["shape"]) == (rows.tolist(), list(rows.shape))
    assert output["dtype"] == ("U" if rows.dtype == object else str(rows.dtype))


@pytest.mark.skipif(not MLSERVER.exists(), reason="make bench installs MLServer's environment")
def test_fixture_is_what_the_codecs_write_and_read() -> None:
    """Where the peer's environment is, its codecs are asked again."""
    fixture = _fixture()
    assert _run("encode") == fixture["requests"]
    assert _run("decode", fixture["answers"]) == fixture["read"]


def _run(what: str, document: object = None) -> Any:
    command = [str(MLSERVER), "-W", "ignore", str(SCRIPT), what]
    done = subprocess.run(
        command, input=json.dumps(document), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def _write() -> None:
    requests = _run("encode")
    answers = {case: _ask(case, request)[0] for case, request in requests.items()}
    document = {"requests": requests, "answers": answers, "read": _run("decode", answers)}
    FIXTURE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(_write())

"""The Open Inference Protocol over REST: JSON, binary tensors, columns, metadata."""

import json
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_asgi import COLUMNS, Client

from fairlead_serving.adapters.arrays import to_answer
from fairlead_serving.adapters.outputs import to_outputs
from fairlead_serving.domain.data import Columns, Records, Tensors
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import (
    Anything,
    ArrayOf,
    Column,
    Kind,
    Param,
    Signature,
    Tensor,
)
from fairlead_serving.domain.v2 import Infer, read_infer

MATRIX = Signature(tensors=(Tensor(None, "float64", (-1, 2)),))
ONE_WIDE = Signature(tensors=(Tensor(None, "float64", (-1, 1)),))
NAMED = Signature(
    columns=(
        Column("hour", Kind.DOUBLE),
        Column("gate", Kind.STRING),
        Column("late", Kind.LONG, required=False),
    ),
    params=(Param("factor", Kind.DOUBLE, 1.0, is_list=False),),
)
NUMBERS = Signature(columns=(Column("a", Kind.DOUBLE), Column("b", Kind.DOUBLE)))
MIXED_NUMBERS = Signature(columns=(Column("a", Kind.DOUBLE), Column("b", Kind.LONG)))
CANARY = "c4n4ry"


def _tensor(name: str, shape: list[int], datatype: str, data: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}


def _read(signature: Signature, *inputs: dict[str, Any], **more: Any) -> Infer:
    return read_infer(json.dumps({"inputs": inputs, **more}).encode(), None, signature)


def _columns(infer: Infer) -> dict[Any, list[Any]]:
    data = infer.request.data
    assert isinstance(data, Columns | Records)
    cells = data.cells if isinstance(data, Columns) else list(zip(*data.cells, strict=True))
    return dict(zip(data.layout.names, map(list, cells), strict=True))


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]]], ids=["flat", "nested"])
def test_tensor_is_read_flat_or_nested(data: Any) -> None:
    """Values come in C order or in nested lists; the input's name is the caller's choice."""
    found = _read(MATRIX, _tensor("whatever", [2, 2], "FP32", data)).request.data
    assert isinstance(found, Tensors)
    assert (list(found.arrays[None].values), found.arrays[None].shape) == ([1, 2, 3, 4], (2, 2))
    assert found.rows == 2


def test_columns_are_read_by_name() -> None:
    """One input for each column, in any order, [rows] or [rows, 1]; an optional one may lack."""
    infer = _read(
        NAMED,
        _tensor("gate", [2], "BYTES", ["a", None]),
        _tensor("hour", [2, 1], "FP64", [1, None]),
        id="x",
        parameters={"content_type": "pd", "factor": 3, "priority": 1},
    )
    assert _columns(infer) == {"hour": [1, None], "gate": ["a", None]}
    assert infer.request.params == {"factor": 3.0}
    assert infer.id == "x"


@pytest.mark.parametrize("signature", [NUMBERS, MIXED_NUMBERS], ids=["one type", "two types"])
def test_columns_are_read_by_position(signature: Signature) -> None:
    """A single table of numbers fills the columns from the left."""
    infer = _read(signature, _tensor("x", [3, 2], "INT64", [1, 2, 3, 4, 5, 6]))
    assert _columns(infer) == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_without_signature_inputs_pass_through() -> None:
    """A single input is an array, several are columns."""
    one = _read(Signature(), _tensor("x", [1, 2], "FP32", [1, 2])).request.data
    assert isinstance(one, Tensors)
    assert one.arrays[None].dtype == "float32"
    several = _read(Signature(), _tensor("a", [1], "FP64", [1]), _tensor("b", [1], "BYTES", ["x"]))
    assert _columns(several) == {"a": [1], "b": ["x"]}


def test_nested_columns_are_read() -> None:
    """Lists have a shape of their own; other nested values are text in JSON; base64 is bytes."""
    signature = Signature(
        columns=(
            Column("ids", ArrayOf(Kind.LONG)),
            Column("any", Anything()),
            Column("raw", Kind.BINARY),
            Column("text", Kind.BINARY),
        )
    )
    infer = _read(
        signature,
        _tensor("ids", [2, 2], "INT64", [1, 2, 3, 4]),
        _tensor("any", [2, 1], "BYTES", ['{"a": 1}', "[2]"]),
        _tensor("raw", [2, 1], "BYTES", ["AQI=", "AQI="], parameters={"content_type": "base64"}),
        _tensor("text", [2, 1], "BYTES", ["é", "x"]),
    )
    assert _columns(infer) == {
        "ids": [[1, 2], [3, 4]],
        "any": [{"a": 1}, [2]],
        "raw": [b"\1\2", b"\1\2"],
        "text": ["é".encode(), b"x"],
    }


@pytest.mark.parametrize(
    ("datatype", "code", "values"),
    [
        ("BOOL", "?", [True, False]),
        ("UINT8", "B", [0, 255]),
        ("INT16", "h", [-5, 5]),
        ("UINT64", "Q", [0, 2**62]),
        ("INT64", "q", [-(2**63), 2**63 - 1]),
        ("FP16", "e", [0.5, -2.0]),
        ("FP32", "f", [0.5, -2.0]),
        ("FP64", "d", [0.1, -2.0]),
    ],
)
def test_binary_tensors_are_read(datatype: str, code: str, values: list[Any]) -> None:
    """Bytes behind the JSON are the values of each input that says so, in order."""
    words = ["é", ""]
    packed = struct.pack(f"<2{code}", *values)
    strings = b"".join(struct.pack("<I", len(word.encode())) + word.encode() for word in words)
    inputs = [
        _tensor("a", [2], datatype, None, parameters={"binary_data_size": len(packed)}),
        _tensor("b", [2], "BYTES", None, parameters={"binary_data_size": len(strings)}),
    ]
    text = json.dumps({"inputs": inputs}).encode()
    infer = read_infer(text + packed + strings, len(text), Signature())
    assert _columns(infer) == {"a": values, "b": words}


@pytest.mark.parametrize(
    ("signature", "inputs", "words"),
    [
        pytest.param(MATRIX, [], "no inputs", id="none"),
        pytest.param(MATRIX, [_tensor("x", [1, 2], "FP64", None)], "no data", id="no data"),
        pytest.param(MATRIX, [_tensor("x", [1, 2], "F64", [1, 2])], "datatype", id="datatype"),
        pytest.param(MATRIX, [_tensor("x", [2, 2], "FP64", [1, 2])], "fill", id="too few"),
        pytest.param(MATRIX, [_tensor("x", [-1, -2], "FP64", [1, 2])], "fill", id="negative"),
        pytest.param(MATRIX, [_tensor("x", [1, 3], "FP64", [1, 2, 3])], "shape", id="shape"),
        pytest.param(MATRIX, [_tensor("x", [1, 2], "BYTES", ["a", "b"])], "number", id="text"),
        pytest.param(MATRIX, [_tensor("x", [0, 2], "FP64", [])], "no rows", id="no rows"),
        pytest.param(MATRIX, [_tensor("x", [1], "FP64", [[1], 2])], "lengths", id="ragged"),
        pytest.param(NAMED, [_tensor("hour", [1], "FP64", [1])], "'gate' is missing", id="missing"),
        pytest.param(
            NAMED,
            [_tensor("hour", [1], "FP64", [1]), _tensor("gate", [2], "BYTES", ["a", "b"])],
            "how many rows",
            id="lengths",
        ),
        pytest.param(
            NAMED,
            [_tensor("hour", [1, 2], "FP64", [1, 2]), _tensor("gate", [1], "BYTES", ["a"])],
            "[rows, 1]",
            id="two values in a row",
        ),
        pytest.param(
            NUMBERS, [_tensor("a", [1], "FP64", [1])] * 2, "twice", id="the same name twice"
        ),
        pytest.param(
            NAMED,
            [_tensor("hour", [1], "BYTES", [CANARY]), _tensor("gate", [1], "BYTES", ["a"])],
            "'hour' in row 0 must be a number",
            id="text for a number",
        ),
    ],
)
def test_bad_inputs_are_refused(
    signature: Signature, inputs: list[dict[str, Any]], words: str
) -> None:
    """What is not of the signature is a 400 in the protocol's own form, without the values."""
    answer = Client(signature=signature).post({"inputs": inputs}, path="/v2/models/flights/infer")
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert CANARY not in answer.text


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        pytest.param(b"{", {}, "valid JSON", id="not JSON"),
        pytest.param(b"[]", {}, "not an infer request", id="a list"),
        pytest.param(b"\xff", {}, "valid JSON", id="not UTF-8"),
        pytest.param(b"[" * 900, {}, "not an infer request", id="deep"),
        pytest.param(
            b'{"inputs": 1}', {"inference-header-content-length": "x"}, "a number", id="header"
        ),
        pytest.param(
            b'{"inputs": []}ab', {"inference-header-content-length": "14"}, "no input", id="rest"
        ),
        pytest.param(
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "parameters":'
            b' {"binary_data_size": 8}}]}abc',
            {"inference-header-content-length": "100"},
            "binary_data_size",
            id="too few bytes",
        ),
    ],
)
def test_bad_bodies_are_refused(body: bytes, headers: dict[str, str], words: str) -> None:
    """A body that is not of the protocol says so."""
    answer = Client(signature=MATRIX).post(body, headers, path="/v2/models/flights/infer")
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("datatype", "wrong"),
    [
        ("BOOL", 5),
        ("BOOL", CANARY),
        ("UINT8", -1),
        ("UINT8", 256),
        ("UINT16", 65_536),
        ("UINT32", 2**32),
        ("UINT64", 2**64),
        ("INT8", -129),
        ("INT16", 32_768),
        ("INT32", 2**31),
        ("INT64", 2**63),
        ("INT64", 1.5),
        ("INT64", "7"),
        ("INT64", True),
        ("FP16", 65_505),
        ("FP32", 1e300),
        ("FP64", 10**400),
        ("FP64", CANARY),
        ("FP64", {}),
        ("BYTES", 7),
    ],
)
@pytest.mark.parametrize(
    "signature", [NUMBERS, Signature(), MATRIX], ids=["columns", "none", "one"]
)
def test_value_that_is_not_of_its_datatype_is_refused_with_its_place(
    signature: Signature, datatype: str, wrong: object
) -> None:
    """Whatever the model would take: the caller said what the value is."""
    right = "a" if datatype == "BYTES" else 1
    columns = [_tensor("a", [2], "FP64", [1, 2]), _tensor("b", [2], datatype, [right, wrong])]
    single = [_tensor("x", [1, 2], datatype, [right, wrong])]
    answer = Client(signature=signature).post(
        {"inputs": columns if signature is NUMBERS else single}, path="/v2/models/flights/infer"
    )
    assert answer.status_code == 400
    place = "inputs[1].data[1]" if signature is NUMBERS else "inputs[0].data[0][1]"
    assert answer.json()["error"].startswith(f"'{place}' is not ")
    assert datatype in answer.json()["error"]
    assert CANARY not in answer.text


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_infinity_is_refused(datatype: str) -> None:
    """Bytes can hold what JSON cannot; a model would only raise."""
    packed = np.array([np.inf, 1], dtype={"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}[datatype])
    tensor = {"name": "x", "shape": [1, 2], "datatype": datatype}
    tensor["parameters"] = {"binary_data_size": packed.nbytes}  # type: ignore[assignment]
    text = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(BadInputError, match="finite"):
        read_infer(text + packed.tobytes(), len(text), MATRIX)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        pytest.param(np.array([1.5, 2]), [("output-1", "FP64", (2, 1), [1.5, 2])], id="numbers"),
        pytest.param(
            np.array([[1, 2], [3, 4]], dtype="int32"),
            [("output-1", "INT32", (2, 2), [1, 2, 3, 4])],
            id="a table",
        ),
        pytest.param([True, False], [("output-1", "BOOL", (2, 1), [True, False])], id="booleans"),
        pytest.param(["a", None], [("output-1", "BYTES", (2, 1), ["a", None])], id="words"),
        pytest.param(
            [["a", "b"], [None, "d"]],
            [("output-1", "BYTES", (2, 2), ["a", "b", None, "d"])],
            id="a table of words",
        ),
        pytest.param(
            [["a"], ["b", "c"]],
            [("output-1", "BYTES", (2, 1), ['["a"]', '["b","c"]'])],
            id="ragged words",
        ),
        pytest.param([[1], [2, 3]], [("output-1", "BYTES", (2, 1), ["[1]", "[2,3]"])], id="ragged"),
        pytest.param(
            [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
            [("a", "INT64", (2, 1), [1, 2]), ("b", "BYTES", (2, 1), ["x", "y"])],
            id="a data frame",
        ),
        pytest.param({"a": [1.0]}, [("a", "FP64", (1, 1), [1.0])], id="arrays by name"),
        pytest.param([{}], [], id="nothing"),
        pytest.param([1, 2.5, None], [("output-1", "FP64", (3, 1), [1, 2.5, None])], id="missing"),
    ],
)
def test_outputs_have_types(predictions: Any, expected: list[Any]) -> None:
    """Every answer has a tensor: numbers by their type, all else as text."""
    outputs = to_outputs(predictions, 2, ())
    found = [
        (one.name, one.datatype, one.shape, json.loads(_listed(one.values))) for one in outputs
    ]
    assert found == expected


def _listed(values: Any) -> str:
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def test_outputs_are_written_as_asked_for() -> None:
    """Some outputs only, as JSON or as bytes behind it; the id comes back."""
    client = Client(answer=[{"a": 1.5, "b": "é"}], signature=MATRIX)
    request = {"id": "7", "inputs": [_tensor("x", [1, 2], "FP64", [1, 2])]}
    whole = client.post(request, path="/v2/models/flights/versions/4/infer").json()
    assert (whole["model_name"], whole["model_version"], whole["id"]) == ("flights", "4", "7")
    assert [output["data"] for output in whole["outputs"]] == [[1.5], ["é"]]
    wanted = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    answer = client.post({**request, "outputs": wanted}, path="/v2/models/flights/infer")
    length = int(answer.headers["inference-header-content-length"])
    found = json.loads(answer.content[:length])["outputs"]
    assert [output["name"] for output in found] == ["b", "a"]
    assert found[0]["parameters"]["binary_data_size"] == len(answer.content) - length
    assert answer.content[length:] == struct.pack("<I", 2) + "é".encode()
    assert answer.headers["content-type"] == "application/octet-stream"
    unknown = client.post({**request, "outputs": [{"name": "c"}]}, path="/v2/models/flights/infer")
    assert unknown.status_code == 400
    assert "a, b" in unknown.json()["error"]


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(("dtype", "datatype"), [("float16", "FP16"), ("float32", "FP32")])
def test_short_floats_keep_their_type_and_have_mlflows_digits(
    dtype: str, datatype: str, *, by_name: bool
) -> None:
    """A tensor of them is one; in MLflow's protocol each is written as the long one it becomes."""
    array = np.array([0.1, 2.0], dtype)
    client = Client(to_answer({"a": array} if by_name else array), MATRIX)
    request = {"inputs": [_tensor("x", [2, 2], "FP64", [1, 2, 3, 4])]}
    (output,) = client.post(request, path="/v2/models/flights/infer").json()["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, [2, 1])
    assert np.array(output["data"], dtype).tolist() == array.tolist()
    answer = client.post({"inputs": [[1, 2], [3, 4]]}).json()["predictions"]
    assert (answer["a"] if by_name else answer) == array.tolist()


@pytest.mark.parametrize(
    ("path", "status", "document"),
    [
        ("/v2/health/live", 200, {"live": True}),
        ("/v2/health/ready", 200, {"ready": True}),
        ("/v2/models/flights/ready", 200, {"name": "flights", "ready": True}),
        ("/v2/models/flights/versions/4/ready", 200, {"name": "flights", "ready": True}),
        (
            "/v2/models/flights",
            200,
            {
                "name": "flights",
                "versions": ["4"],
                "platform": "mlflow",
                "inputs": [{"name": "input-1", "datatype": "FP64", "shape": [-1, 2]}],
                "outputs": [],
            },
        ),
    ],
)
def test_metadata(path: str, status: int, document: dict[str, Any]) -> None:
    """The server and the model describe themselves."""
    answer = Client(signature=MATRIX).send("GET", path)
    assert (answer.status_code, answer.json()) == (status, document)


def test_loading_is_not_ready() -> None:
    """Live at once, ready with the model; infer and metadata say why not."""
    client = Client(state={"served": None})
    assert client.send("GET", "/v2/health/live").status_code == 200
    for path in ("/v2/health/ready", "/v2/models/flights/ready", "/v2/models/flights"):
        assert client.send("GET", path).status_code == 503
    answer = client.post({"inputs": []}, path="/v2/models/flights/infer")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("path", ["", "/ready", "/infer", "/versions/5", "/versions/5/infer"])
def test_another_model_is_not_here(path: str) -> None:
    """A process serves one version of one model; the answer says which."""
    name = "flights" if "versions" in path else "other"
    method = "POST" if path.endswith("infer") else "GET"
    answer = Client().send(method, f"/v2/models/{name}{path}")
    assert answer.status_code == 404
    assert "version 4 of 'flights'" in answer.json()["error"]


def test_model_that_raises_is_a_500() -> None:
    """The class of what the model raised is named in the protocol's form."""
    request = {"inputs": [_tensor("x", [1, 2], "FP64", [1, 2])]}
    client = Client(answer=ValueError(CANARY), signature=MATRIX)
    answer = client.post(request, path="/v2/models/flights/infer")
    assert (answer.status_code, answer.json()) == (500, {"error": "The model raised ValueError."})


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.just(CANARY),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
_INPUTS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["hour", "gate", "late", "a", "b", CANARY]),
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "datatype": st.sampled_from(["FP64", "INT64", "BYTES", "BOOL", "X"]),
    },
    optional={
        "data": _VALUES,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "content_type"]),
            st.sampled_from(["base64", 1, 8, -1]),
        ),
    },
)


@settings(max_examples=300, deadline=None)
@given(
    inputs=st.lists(_INPUTS, max_size=3),
    behind=st.binary(max_size=16),
    signature=st.sampled_from([MATRIX, NAMED, NUMBERS, MIXED_NUMBERS, Signature()]),
)
def test_whatever_comes_is_read_or_refused(
    inputs: list[Any], behind: bytes, signature: Signature
) -> None:
    """No body raises anything but a refusal, and none is repeated."""
    text = json.dumps({"inputs": inputs}).encode()
    found = _outcome(text + behind, len(text), signature)
    if isinstance(found, BadInputError):
        assert CANARY not in found.message
        assert CANARY not in (found.field or "")
    else:
        assert found.request.data.rows > 0


def _outcome(body: bytes, json_length: int, signature: Signature) -> Infer | BadInputError:
    try:
        return read_infer(body, json_length, signature)
    except BadInputError as error:
        return error


@pytest.mark.parametrize("datatype", ["FP64", "FP16", "INT64", "UINT64", "BOOL"])
@pytest.mark.parametrize("signature", [COLUMNS, ONE_WIDE], ids=["columns", "tensor"])
def test_number_of_endless_digits_is_refused(datatype: str, signature: Signature) -> None:
    """A whole number that no type can hold is the caller's mistake and not the model's."""
    tensor = {"name": "hour", "shape": [1, 1], "datatype": datatype, "data": [10**400]}
    answer = Client(signature=signature).post({"inputs": [tensor]}, path="/v2/models/flights/infer")
    assert answer.status_code == 400

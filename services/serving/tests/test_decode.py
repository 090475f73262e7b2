"""Payloads against signatures: forms, columns, tensors, parameters, CSV."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from fairlead_serving.domain.csv import read_csv
from fairlead_serving.domain.data import Columns, Raw, Tensors
from fairlead_serving.domain.decode import decode, decode_columns
from fairlead_serving.domain.digest import digest_of
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.reader import Reader
from fairlead_serving.domain.signature import (
    ArrayOf,
    Column,
    Kind,
    Param,
    Signature,
    Tensor,
    read_signature,
)
from fairlead_serving.domain.source import ModelVersion, cache_name, parse_model

NAMED = Signature(
    columns=(
        Column("hour", Kind.DOUBLE),
        Column("day", Kind.LONG),
        Column("gate", Kind.STRING, required=False),
    ),
    params=(
        Param("factor", Kind.DOUBLE, 1.0, is_list=False),
        Param("ids", Kind.LONG, [1], is_list=True),
    ),
)
UNNAMED = Signature(columns=(Column(None, Kind.DOUBLE), Column(None, Kind.DOUBLE)))
SINGLE = Signature(columns=(Column("text", Kind.STRING),))
NESTED = Signature(columns=(Column("ids", ArrayOf(Kind.LONG)), Column("who", Kind.STRING)))
MATRIX = Signature(tensors=(Tensor(None, "float32", (-1, 2)),))
TENSORS = Signature(tensors=(Tensor("a", "int8", (-1,)), Tensor("b", "bool", (-1, 1))))
NONE = Signature()


@pytest.mark.parametrize(
    ("signature", "payload", "columns"),
    [
        pytest.param(
            NAMED,
            {"dataframe_split": {"columns": ["day", "hour"], "data": [[1, 2], [3, 4]]}},
            {"hour": [2, 4], "day": [1, 3]},
            id="split, in another order",
        ),
        pytest.param(
            NAMED,
            {"dataframe_records": [{"hour": 1, "day": 2, "extra": 3}]},
            {"hour": [1], "day": [2]},
            id="unknown column is left out",
        ),
        pytest.param(
            NAMED,
            {"dataframe_records": [{"hour": 1, "day": 2, "gate": "B"}, {"day": 3}]},
            {"hour": [1, None], "day": [2, 3], "gate": ["B", None]},
            id="value missing in one record",
        ),
        pytest.param(
            NAMED,
            {"inputs": {"hour": 1.0, "day": 2, "gate": None}},
            {"hour": [1.0], "day": [2], "gate": [None]},
            id="scalars are one row, optional null is missing",
        ),
        pytest.param(
            NAMED, {"inputs": {"hour": [1, 2], "day": 3}}, {"hour": [1, 2], "day": [3, 3]},
            id="a scalar beside lists is that of every row",
        ),
        pytest.param(
            UNNAMED, {"inputs": [[1, 2], [3, 4]]}, {0: [1, 3], 1: [2, 4]}, id="rows without names"
        ),
        pytest.param(SINGLE, {"inputs": ["a", "b"]}, {"text": ["a", "b"]}, id="the only column"),
        pytest.param(
            NESTED,
            {"inputs": {"ids": [1, 2], "who": "x"}},
            {"ids": [[1, 2]], "who": ["x"]},
            id="an object is one row where lists are values",
        ),
        pytest.param(
            NONE, {"dataframe_records": [{"a": 1}, {"b": 2}]}, {"a": [1, None], "b": [None, 2]},
            id="no signature",
        ),
    ],
)  # fmt: skip
def test_columns_are_read(
    signature: Signature, payload: object, columns: dict[Any, list[Any]]
) -> None:
    """Every form gives the columns of the signature, in its order."""
    data = decode(payload, signature).data
    assert isinstance(data, Columns)
    found = zip(data.layout.names, map(list, data.cells), strict=True)
    assert dict(found) == columns


@pytest.mark.parametrize(
    ("signature", "payload", "field", "words"),
    [
        pytest.param(NAMED, [], None, "a JSON object", id="a list"),
        pytest.param(NAMED, {}, None, "none of them", id="no form"),
        pytest.param(NAMED, {"inputs": 1, "instances": 2}, None, "instances and inputs", id="two"),
        pytest.param(NAMED, {"inputs": {"hour": [1]}}, "day", "is missing", id="column missing"),
        pytest.param(NAMED, {"inputs": [[1, 2, 3]]}, "hour", "is missing", id="names missing"),
        pytest.param(
            NAMED, {"inputs": {"hour": [1], "day": [1, 2]}}, "inputs", "differ", id="lengths"
        ),
        pytest.param(NAMED, {"dataframe_records": []}, "dataframe_records", "records", id="empty"),
        pytest.param(NAMED, {"dataframe_records": [1]}, "dataframe_records", "object", id="number"),
        pytest.param(NAMED, {"dataframe_split": []}, "dataframe_split", "'data'", id="split list"),
        pytest.param(
            NAMED,
            {"dataframe_split": {"columns": ["hour"], "data": [[1, 2]]}},
            "dataframe_split.data",
            "row 0",
            id="row too long",
        ),
        pytest.param(
            NAMED,
            {"dataframe_split": {"columns": ["hour", "hour"], "data": [[1, 2]]}},
            "dataframe_split.columns",
            "twice",
            id="name twice",
        ),
        pytest.param(
            NAMED,
            {"dataframe_split": {"columns": [[]], "data": [[1]]}},
            "dataframe_split.columns",
            "names",
            id="name of another type",
        ),
        pytest.param(
            NAMED,
            {"dataframe_split": {"data": []}},
            "dataframe_split.data",
            "no rows",
            id="no rows",
        ),
        pytest.param(UNNAMED, {"inputs": [[1]]}, None, "takes 2 columns, not 1", id="too few"),
        pytest.param(NONE, {"inputs": []}, "inputs", "no rows", id="no rows, no signature"),
        pytest.param(MATRIX, {"inputs": [[1], [2]]}, "inputs", "[-1, 2]", id="shape"),
        pytest.param(MATRIX, {"inputs": [[1, 2], [3]]}, "inputs", "different", id="ragged"),
        pytest.param(MATRIX, {"inputs": 1}, "inputs", "a list", id="scalar for tensor"),
        pytest.param(
            MATRIX, {"inputs": [[1, "b"]]}, "inputs[0][1]", "a number", id="text in tensor"
        ),
        pytest.param(TENSORS, {"inputs": {"a": [1]}}, "b", "missing", id="tensor missing"),
        pytest.param(
            TENSORS,
            {"inputs": {"a": [128], "b": [[True]]}},
            "a[0]",
            "out of the range of a whole number (int8)",
            id="int8",
        ),
        pytest.param(TENSORS, {"inputs": 5}, "inputs", "tensors a, b", id="no mapping"),
    ],
)
def test_payload_is_refused(
    signature: Signature, payload: object, field: str | None, words: str
) -> None:
    """A payload that is not of the signature is refused, naming what is wrong with it."""
    with pytest.raises(BadInputError) as caught:
        decode(payload, signature)
    assert caught.value.field == field
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("given", "params"),
    [
        pytest.param(None, {"factor": 1.0, "ids": [1]}, id="defaults"),
        pytest.param({"factor": 2}, {"factor": 2.0, "ids": [1]}, id="one given"),
        pytest.param({"ids": [3, 4]}, {"factor": 1.0, "ids": [3, 4]}, id="a list"),
    ],
)
def test_params_are_read(given: object, params: dict[str, object]) -> None:
    """A parameter that is not given has the model's default."""
    assert decode({"inputs": {"hour": 1, "day": 1}, "params": given}, NAMED).params == params


@pytest.mark.parametrize(
    ("signature", "given", "field"),
    [
        pytest.param(NAMED, {"facto": 1}, "params", id="misspelt"),
        pytest.param(NONE, {"factor": 1}, "params", id="model without parameters"),
        pytest.param(NAMED, [1], "params", id="a list"),
        pytest.param(NAMED, {"factor": "x"}, "params.factor", id="wrong type"),
        pytest.param(NAMED, {"ids": 1}, "params.ids", id="scalar for a list"),
        pytest.param(NAMED, {"ids": ["x"]}, "params.ids", id="wrong type in a list"),
    ],
)
def test_params_are_refused(signature: Signature, given: object, field: str) -> None:
    """An unknown or wrong parameter is refused by name."""
    with pytest.raises(BadInputError) as caught:
        decode({"inputs": {"hour": 1, "day": 1}, "params": given}, signature)
    assert caught.value.field == field


def test_tensors_are_read() -> None:
    """Nested lists become flat values with a shape; rows are the first dimension."""
    data = decode({"inputs": {"a": [1, 2], "b": [[True], [False]]}}, TENSORS).data
    assert isinstance(data, Tensors)
    assert data.rows == 2
    assert data.arrays["b"].shape == (2, 1)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({"inputs": [[1, 2]]}, id="inputs"),
        pytest.param({"instances": [[1, 2]]}, id="instances"),
        pytest.param({"dataframe_split": {"columns": ["x", "y"], "data": [[1, 2]]}}, id="split"),
        pytest.param({"dataframe_records": [{"xy": [1, 2]}]}, id="one column of lists"),
    ],
)
def test_every_form_fits_a_matrix(payload: object) -> None:
    """A model that takes one tensor takes it in every form."""
    data = decode(payload, MATRIX).data
    assert isinstance(data, Tensors)
    assert (list(data.arrays[None].values), data.arrays[None].shape) == ([1, 2], (1, 2))


def test_nan_is_a_missing_value_outside_of_text() -> None:
    """What Python writes for a missing number is null; the same letters in a text stay."""
    body = b'{"dataframe_records": [{"hour": NaN, "day": 1, "gate": "a \\" NaN"}]}'
    data = Reader(NAMED).read_json(body).data
    assert isinstance(data, Columns)
    assert list(map(list, data.cells)) == [[None], [1], ['a " NaN']]


@pytest.mark.parametrize(
    ("read", "body"),
    [
        pytest.param(
            Reader(NAMED).read_json,
            b'{"inputs": {"day": 1, "hour": "' + b"1" * 500_000 + b'x"}}',
            id="digits in JSON",
        ),
        pytest.param(
            Reader(NAMED).read_csv,
            b"hour,day\n" + b"1" * 100_000 + b"x,1\n",
            id="digits in CSV",
        ),
        pytest.param(Reader(NAMED).read_json, b'{"NaN' + b'\\"' * 500_000, id="quotes after NaN"),
    ],
)
def test_long_text_is_refused_in_one_pass(read: Callable[[bytes], object], body: bytes) -> None:
    """What looks like a number or a string to its end costs no more than its length."""
    with pytest.raises(BadInputError):
        read(body)


def test_columns_that_the_signature_does_not_know_are_not_looked_at() -> None:
    """What is left out may have another length, or its name twice."""
    columns = {"hour": [1], "day": [2], "extra": [1, 2, 3]}
    split = {"columns": ["x", "x", "day", "hour"], "data": [["a", "b", 2, 1]]}
    for payload in ({"inputs": columns}, {"dataframe_split": split}):
        data = decode(payload, NAMED).data
        assert isinstance(data, Columns)
        assert data.layout.names == ("hour", "day")


def test_without_signature_values_pass_through() -> None:
    """Nothing describes the data, so nothing is checked."""
    assert decode({"inputs": [["x", None]]}, NONE).data == Raw([["x", None]], 1)
    assert decode({"instances": [{"a": 1}, {"a": 2}]}, NONE).data == Raw({"a": [1, 2]}, 1)


def test_csv_reads_as_the_signature_says() -> None:
    """Cells become what the column is; an empty one is missing; an unknown column is left out."""
    columns = read_csv("gate,hour,day,zip\n007,1.5,2,01\n,,3,02\n", NAMED)
    data = decode_columns(columns, NAMED).data
    assert isinstance(data, Columns)
    assert data.layout.names == ("hour", "day", "gate")
    assert data.cells == [[1.5, None], [2, 3], ["007", None]]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        pytest.param("", "csv", id="nothing"),
        pytest.param("hour,hour\n1,2", "csv", id="name twice"),
        pytest.param("hour,day\n1", "csv", id="line too short"),
        pytest.param('hour,day\n"1,2', "csv", id="quote left open"),
        pytest.param("hour,day", None, id="no rows"),
        pytest.param("hour,day\nx,1", "hour", id="text for a number"),
        pytest.param("hour,day\ninf,1", "hour", id="infinity"),
        pytest.param(f"hour,day\n1,{'9' * 5000}", "day", id="digits without end"),
    ],
)
def test_csv_is_refused(text: str, field: str | None) -> None:
    """CSV that is not of the signature is refused like JSON."""
    with pytest.raises(BadInputError) as caught:
        decode_columns(read_csv(text, NAMED), NAMED)
    assert caught.value.field == field


def test_tensor_is_named_once_in_a_csv() -> None:
    """Neither of two columns with the name of a tensor is taken."""
    with pytest.raises(BadInputError, match="twice"):
        read_csv("a,a,b\n1,2,true\n", TENSORS)


def test_signature_of_mlflow_is_read() -> None:
    """The parts are JSON strings; nested types and parameters come through."""
    signature = read_signature(
        {
            "inputs": '[{"type": "array", "items": {"type": "map", "values": {"type": "long"}},'
            ' "name": "a", "required": false}]',
            "outputs": '[{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1]}}]',
            "params": '[{"name": "p", "default": 1, "shape": null, "type": "long"}]',
        }
    )
    assert signature.columns[0].name == "a"
    assert signature.outputs == (Tensor(None, "float64", (-1,)),)
    assert signature.params == (Param("p", Kind.LONG, 1, is_list=False),)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param("models:/flights/4", ModelVersion("flights", "4"), id="plain"),
        pytest.param(
            "models:/Flight Delay (EU) – 2026.v1/4",
            ModelVersion("Flight Delay (EU) – 2026.v1", "4"),
            id="spaces, dots, brackets, a dash",
        ),
        pytest.param("models:/m-0a1b", ModelVersion("", "", "m-0a1b"), id="model id"),
        pytest.param("./models", None, id="folder"),
    ],
)
def test_model_is_told_from_a_folder(text: str, version: ModelVersion | None) -> None:
    """The version number stands after the last slash."""
    assert parse_model(text) == version


@pytest.mark.parametrize("text", ["models:/flights", "models:/flights/Production", "models://4"])
def test_uri_without_a_version_number_is_refused(text: str) -> None:
    """A stage or an alias is the controller's to resolve."""
    with pytest.raises(ValueError, match="NAME/VERSION"):
        parse_model(text)


def test_cache_names_are_safe_and_differ() -> None:
    """Names that a slug would merge stay apart, and so do registries."""
    versions = [ModelVersion(name, "4") for name in ("a b", "a-b", "../a b", "–" * 300)]
    names = {cache_name(version, uri) for version in versions for uri in ("http://a", "http://b")}
    assert len(names) == 8
    assert all(name.replace("-", "").isalnum() and len(name) < 64 for name in names)


def test_digest_is_the_published_one() -> None:
    """The digest depends on paths and bytes alone, and is what other tools compute."""
    files = [("b", "11"), ("a/c", "22"), ("deep/registered_model_meta", "33")]
    wanted = hashlib.sha256(b"a/c\x0022\nb\x0011\n").hexdigest()
    assert digest_of(files) == digest_of(reversed(files)) == wanted

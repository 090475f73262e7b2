"""The short way of decoding, with the long way as its oracle."""

import copy
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead_serving.domain.data import Columns, Records, Request, Tensors
from fairlead_serving.domain.decode import decode
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.reader import Reader
from fairlead_serving.domain.signature import (
    ArrayOf,
    Column,
    Kind,
    Param,
    Signature,
    Tensor,
)
from fairlead_serving.domain.typed import compile_decoder

FLAT = Signature(
    columns=(Column("hour", Kind.DOUBLE), Column("day", Kind.LONG), Column("gate", Kind.STRING)),
    params=(Param("factor", Kind.DOUBLE, 1.0, is_list=False),),
)
OPTIONAL = Signature(
    columns=(
        Column("hour", Kind.FLOAT),
        Column("day", Kind.INTEGER, required=False),
        Column("when", Kind.DATETIME, required=False),
        Column("late", Kind.BOOLEAN),
    )
)
NESTED = Signature(columns=(Column("hour", ArrayOf(Kind.LONG)), Column("gate", Kind.BINARY)))
UNNAMED = Signature(columns=(Column(None, Kind.DOUBLE), Column(None, Kind.LONG)))
MATRIX = Signature(tensors=(Tensor(None, "float32", (-1, 2)),))
CUBE = Signature(tensors=(Tensor(None, "uint8", (-1, 2, 1)),))
NAMED_TENSORS = Signature(tensors=(Tensor("hour", "int8", (-1,)), Tensor("day", "bool", (-1, 1))))
SIGNATURES = (FLAT, OPTIONAL, NESTED, UNNAMED, MATRIX, CUBE, NAMED_TENSORS, Signature())

_NAMES = ("hour", "day", "gate", "when", "late", "other")
_EDGES = (0, 1, -1, 127, 128, -129, 255, 2**31, -(2**31), 2**63, -(2**63) - 1, 2**64, 1e39, 7.0)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(_EDGES)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "é", "\ud800", "AQI=", "2020-02-30", "2020-02-28T01:02:03+01:00"])
)
_CELLS = _SCALARS | st.lists(_SCALARS, max_size=2)


def _records(cells: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.dictionaries(st.sampled_from(_NAMES), cells, max_size=6), max_size=3)


def _good(signature: Signature) -> st.SearchStrategy[Any]:
    """Rows that are mostly of a signature, so that the short way is often taken."""
    likely = {
        Kind.DOUBLE: st.integers(-5, 5) | st.floats(-5, 5) | st.none(),
        Kind.FLOAT: st.floats(-5, 5) | st.none(),
        Kind.LONG: st.integers(-5, 5),
        Kind.INTEGER: st.integers(-5, 5) | st.none(),
        Kind.STRING: st.sampled_from(["a", "é", None]),
        Kind.BOOLEAN: st.booleans(),
        Kind.DATETIME: st.sampled_from([None, "2020-02-28"]),
    }
    fields = {
        str(spec.name): likely.get(spec.type, _CELLS)  # type: ignore[arg-type]
        for spec in signature.columns
    }
    return st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=3)


def _forms(signature: Signature) -> st.SearchStrategy[dict[str, Any]]:
    records = _records(_CELLS) | _good(signature)
    columns = st.dictionaries(st.sampled_from(_NAMES), st.lists(_CELLS, max_size=3), max_size=6)
    rows = st.lists(st.lists(_CELLS, min_size=1, max_size=3), max_size=3)
    split = records.map(
        lambda found: {
            "columns": list(found[0]) if found else [],
            "data": [list(record.values()) for record in found],
        }
    )
    return st.one_of(
        st.fixed_dictionaries({"dataframe_records": records}),
        st.fixed_dictionaries({"dataframe_split": split}),
        st.fixed_dictionaries({"inputs": st.one_of(records, columns, rows, _SCALARS)}),
        st.fixed_dictionaries(
            {"instances": st.one_of(records, rows)}, optional={"inputs": rows, "params": _SCALARS}
        ),
    )


def _plainly(request: Request) -> Any:
    """Give a request in one form, whichever way it was read: values by column, whole numbers."""
    data = request.data
    if isinstance(data, Records | Columns):
        cells = data.cells if isinstance(data, Columns) else list(zip(*data.cells, strict=True))
        return data.layout, [list(column) for column in cells], request.params
    assert isinstance(data, Tensors)
    arrays = {
        name: (list(array.values), array.shape, array.dtype) for name, array in data.arrays.items()
    }
    return arrays, data.rows, request.params


class Refused(NamedTuple):
    """What a caller is told."""

    message: str
    field: str | None


def _outcome(read: Callable[[], Request | None]) -> Any:
    try:
        request = read()
    except BadInputError as error:
        return Refused(error.message, error.field)
    return request and _plainly(request)


@settings(max_examples=1500, deadline=None)
@given(
    pair=st.sampled_from(SIGNATURES).flatmap(
        lambda signature: st.tuples(st.just(signature), _forms(signature))
    )
)
def test_what_the_short_way_takes_the_long_way_reads_alike(
    pair: tuple[Signature, dict[str, Any]],
) -> None:
    """The short way refuses only what the long way refuses, and reads nothing otherwise."""
    signature, payload = pair
    body = json.dumps(payload).encode()
    found = _outcome(lambda: compile_decoder(signature)(body))
    if found is not None:
        known = _outcome(lambda: _the_long_way(body, signature))
        # Of several mistakes each finds another one first.
        assert found == known or (isinstance(found, Refused) and isinstance(known, Refused))


def _the_long_way(body: bytes, signature: Signature) -> Request:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInputError("The body is not valid JSON.") from error
    return decode(payload, signature)


_ROWS = [{"hour": 1.5, "day": 1, "gate": "a"} for _ in range(3)]
_LISTS = [[1.5, 1, "a"] for _ in range(3)]


def _with(document: Any, *path: Any) -> Any:
    """Put the last of the path in the place that the others lead to."""
    changed = copy.deepcopy(document)
    inner = changed
    for key in path[:-2]:
        inner = inner[key]
    inner[path[-2]] = path[-1]
    return changed


@pytest.mark.parametrize("form", ["dataframe_records", "instances", "inputs"])
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(_with(_ROWS, 2, "hour", "x"), id="text"),
        pytest.param(_with(_ROWS, 0, "hour", [1]), id="a list"),
        pytest.param(_with(_ROWS, 1, "day", None), id="null"),
        pytest.param(_with(_ROWS, 1, "day", 2**63), id="out of range"),
        pytest.param(_with(_ROWS, 2, "gate", {"a": 1}), id="an object"),
        pytest.param(_with(_ROWS, 2, {"hour": 1, "gate": "a"}), id="without one"),
        pytest.param(_with(_ROWS, 0, {"hour": 1, "gate": "a"}), id="without one at first"),
        pytest.param([{"hour": 1, "gate": "a"}] * 3, id="without one in any"),
    ],
)
def test_mistake_in_a_record_is_told_alike(form: str, rows: Any) -> None:
    """The decoder stops at the mistake that the long way finds, and says it in the same words."""
    _tell_alike(FLAT, {form: rows})


@pytest.mark.parametrize(
    ("signature", "payload"),
    [
        pytest.param(
            FLAT,
            {"dataframe_split": {"columns": ["hour", "day", "gate"], "data": rows}},
            id=f"split {number}",
        )
        for number, rows in enumerate(
            (_with(_LISTS, 2, 0, "x"), _with(_LISTS, 1, 1, None), _with(_LISTS, 1, [1, 2]))
        )
    ]
    + [
        pytest.param(
            FLAT, {"dataframe_split": {"columns": names, "data": [[1, 2]]}}, id=f"columns {names}"
        )
        for names in (["hour", "gate"], [["hour"], {}], "hour", {"hour": 1})
    ]
    + [
        pytest.param(FLAT, {"dataframe_split": {"data": [[1, 2]]}}, id="no columns"),
        pytest.param(UNNAMED, {"inputs": [[1, 2], [3, "x"]]}, id="rows"),
        pytest.param(UNNAMED, {"inputs": [[1, 2], [3, 4, 5]]}, id="a long row"),
        pytest.param(UNNAMED, {"inputs": [[1], [3]]}, id="short rows"),
        pytest.param(
            FLAT, {"inputs": {"hour": [1, 2], "day": [1, "x"], "gate": ["a", "b"]}}, id="lists"
        ),
        pytest.param(FLAT, {"inputs": {"hour": [1], "day": [1.5], "gate": ["a"]}}, id="a fraction"),
        pytest.param(FLAT, {"inputs": {"hour": [1], "day": "x", "gate": ["a"]}}, id="no list"),
        pytest.param(FLAT, {"inputs": 1}, id="a number"),
        pytest.param(FLAT, {}, id="no form"),
        pytest.param(FLAT, {"inputs": [], "instances": []}, id="two forms"),
        pytest.param(FLAT, [1], id="no object"),
        pytest.param(MATRIX, {"inputs": [[1, 2], [3, "x"]]}, id="an item"),
        pytest.param(MATRIX, {"inputs": [[1, 2], [3]]}, id="ragged"),
        pytest.param(CUBE, {"inputs": [[[1], [2]], [[3], [256]]]}, id="an item out of range"),
        pytest.param(
            NAMED_TENSORS, {"inputs": {"hour": [1, "x"], "day": [[True]]}}, id="a named tensor"
        ),
    ],
)
def test_mistake_is_told_alike(signature: Signature, payload: Any) -> None:
    """As above, in every other form."""
    _tell_alike(signature, payload)


def _tell_alike(signature: Signature, payload: Any) -> None:
    body = json.dumps(payload).encode()
    found = _outcome(lambda: Reader(signature).read_json(body))
    assert isinstance(found, Refused)
    assert found == _outcome(lambda: decode(payload, signature))


@settings(max_examples=500, deadline=None)
@given(at=st.integers(0, 80), more=st.sampled_from([b"", b"\xff", b"{", b"]", b",", b'"', b"\\"]))
def test_broken_json_is_refused_both_ways(at: int, more: bytes) -> None:
    """Two parsers agree on what is no JSON, and the place is told."""
    whole = json.dumps({"dataframe_records": _ROWS[:1]}).encode()
    body = whole[:at] + more + whole[at + 1 :]
    found = _outcome(lambda: Reader(FLAT).read_json(body))
    known = _outcome(lambda: _the_long_way(body, FLAT))
    assert isinstance(found, Refused) == isinstance(known, Refused)


@pytest.mark.parametrize(
    ("signature", "payload"),
    [
        pytest.param(FLAT, {"dataframe_records": [{"hour": 1, "day": 2, "gate": None}]}, id="rec"),
        pytest.param(
            FLAT,
            {"dataframe_split": {"columns": ["hour", "day", "gate"], "data": [[None, 2, "a"]]}},
            id="split",
        ),
        pytest.param(
            FLAT,
            {"inputs": {"hour": [1], "day": [2], "gate": ["a"]}, "params": {"factor": 2}},
            id="columns",
        ),
        pytest.param(OPTIONAL, {"instances": [{"hour": 1, "late": True}]}, id="optional"),
        pytest.param(NESTED, {"inputs": [{"hour": [1], "gate": "AQI="}]}, id="nested"),
        pytest.param(UNNAMED, {"inputs": [[1.5, 2]]}, id="rows"),
        pytest.param(MATRIX, {"inputs": [[1, 2.5], [None, 4]]}, id="matrix"),
        pytest.param(CUBE, {"instances": [[[1], [2]]]}, id="three dimensions"),
        pytest.param(NAMED_TENSORS, {"inputs": {"hour": [1], "day": [[True]]}}, id="named tensors"),
    ],
)
def test_what_nearly_everybody_sends_goes_the_short_way(
    signature: Signature, payload: dict[str, Any]
) -> None:
    """The usual forms are read in one step, and as the long way would."""
    found = compile_decoder(signature)(json.dumps(payload).encode())
    assert found is not None
    assert _plainly(found) == _plainly(decode(payload, signature))


def test_columns_in_another_order_are_read_by_name() -> None:
    """A data frame's columns count by their names."""
    split = {"columns": ["gate", "day", "hour"], "data": [["a", 2, 1.5]]}
    request = Reader(FLAT).read_json(json.dumps({"dataframe_split": split}).encode())
    assert isinstance(request.data, Columns)
    assert [list(column) for column in request.data.cells] == [[1.5], [2], ["a"]]


def test_thousands_of_columns_are_compiled() -> None:
    """A wide table goes the short way too."""
    names = [f"column {number}" for number in range(3000)]
    signature = Signature(columns=tuple(Column(name, Kind.DOUBLE) for name in names))
    body = json.dumps({"dataframe_records": [dict.fromkeys(names, 1)]}).encode()
    found = compile_decoder(signature)(body)
    assert found is not None
    assert found.data.rows == 1

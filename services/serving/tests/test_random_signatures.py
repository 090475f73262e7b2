"""Random types and payloads near them: this service against MLflow, its short way against its long."""

import json
import math
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import plainly
from rules import Case, Oracle, ask_fairlead, mlflow_oracle

from fairlead_serving.adapters.arrays import Arrays
from fairlead_serving.domain.data import Request
from fairlead_serving.domain.decode import decode
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import read_signature
from fairlead_serving.domain.typed import compile_decoder

_GOOD_TIMES = {"2020-01-02": "2020-01-02T00:00:00", "2020-01-02T03:04:05": "2020-01-02T03:04:05"}

Type = Mapping[str, Any]
Types = st.SearchStrategy[Type]
_SELDOM = 0.2

_GOOD: Mapping[str, list[Any]] = {
    "boolean": [True, False],
    "integer": [0, 1, -3],
    "long": [0, -3, 2**53 + 1],
    "float": [0.5, -1.25, 3.0],
    "double": [0.5, -1.25, 1e300, 3.0, 2],
    "string": ["", "x", "é", "007"],
    "binary": ["", "AQI="],
    "datetime": list(_GOOD_TIMES),
    "any": [1, 0.5, True, "x", [1], {"a": None}],
}
_BAD: Mapping[str, list[Any]] = {
    "boolean": [1, 0.0, 2, "true", "", [True]],
    "integer": [True, 7.0, 1.5, "1", "x", 2**31],
    "long": [True, 7.0, 1.5, "1", "x", 2**63],
    "float": [True, 1, "1.5", "x", 1e39],
    "double": [True, 300, "1.5", "x", [0.5]],
    "string": [True, 1, 1.5, ["x"]],
    "binary": ["x", 1],
    "datetime": ["x", "", 1, True],
    "any": [None],
    "array": [1, "x", {}, {"p": 1}, [[]]],
    "map": [1, "x", [], [{}]],
    "object": [1, "x", [], {}, {"z": 1}],
}
# Times and bytes inside other types are differences of their own, which the page lists.
_INNER = [kind for kind in _GOOD if kind not in {"binary", "datetime"}]


def _types(depth: int) -> Types:
    scalars: Types = st.sampled_from(_INNER).map(lambda kind: {"type": kind})
    if not depth:
        return scalars
    inner = _types(depth - 1)
    properties = st.dictionaries(
        st.sampled_from("pqr"),
        st.tuples(inner, st.booleans()).map(lambda pair: {**pair[0], "required": pair[1]}),
        min_size=1,
    )
    return st.one_of(
        scalars,
        inner.map(lambda items: {"type": "array", "items": items}),
        inner.map(lambda values: {"type": "map", "values": values}),
        properties.map(lambda found: {"type": "object", "properties": found}),
    )


def _good(kind: Type, rng: Random, *, required: bool) -> Any:
    """Give a value of a type."""
    if not required and rng.random() < _SELDOM:
        return None
    match kind["type"]:
        case "array":
            return [_good(kind["items"], rng, required=required) for _ in range(rng.randrange(3))]
        case "map":
            names = rng.choice(["", "u", "uv"])
            return {name: _good(kind["values"], rng, required=required) for name in names}
        case "object":
            return {
                name: _good(item, rng, required=item["required"])
                for name, item in kind["properties"].items()
                if item["required"] or rng.random() > _SELDOM
            }
    return rng.choice(_GOOD[kind["type"]])


def _spoilt(kind: Type, rng: Random, *, required: bool) -> Any:
    """Give a value with one place that is not of the type, or nearly not."""
    value = _good(kind, rng, required=required)
    if not value or rng.random() < _SELDOM:
        return rng.choice([*_BAD[kind["type"]], None])
    match kind["type"]:
        case "array":
            at = rng.randrange(len(value))
            value[at] = _spoilt(kind["items"], rng, required=required)
        case "map":
            value[rng.choice(list(value))] = _spoilt(kind["values"], rng, required=required)
        case "object":
            name = rng.choice(list(value))
            item = kind["properties"][name]
            value[name] = _spoilt(item, rng, required=item["required"])
        case _:
            return rng.choice([*_BAD[kind["type"]], None])
    return value


_SCALARS: Types = st.sampled_from(list(_GOOD)).map(lambda kind: {"type": kind})
_COLUMNS = st.tuples(
    st.integers(0, 2).flatmap(lambda chance: _types(3) if chance else _SCALARS), st.booleans()
).map(lambda pair: {**pair[0], "name": "c", "required": pair[1]})


def _cases(column: Type, rng: Random) -> Iterator[tuple[list[Any], Case]]:
    """Give requests, most of them with one mistake: their column's cells, and the whole."""
    for number in range(12):
        cells = [_good(column, rng, required=column["required"]) for _ in range(number % 2)]
        write = _spoilt if rng.random() > _SELDOM else _good
        cells.append(write(column, rng, required=column["required"]))
        yield cells, _case(column, cells, rng.choice(["dataframe_records", "dataframe_split"]))


def _case(column: Type, cells: list[Any], form: str) -> Case:
    if form == "dataframe_split":
        value: Any = {"columns": ["c", "k"], "data": [[cell, 1] for cell in cells]}
    else:
        value = [{"c": cell, "k": 1} for cell in cells]
    return Case([column, {"type": "long", "name": "k"}], json.dumps({form: value}))


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """MLflow's scoring server."""
    with mlflow_oracle() as started:
        yield started


@settings(max_examples=150)
@given(column=_COLUMNS, rng=st.integers(0, 2**32).map(Random))
def test_this_service_differs_from_mlflow_only_as_the_page_says(
    column: Type, rng: Random, oracle: Oracle
) -> None:
    """It refuses more only where MLflow changes a value, and takes more only what stays as sent."""
    for cells, case in _cases(column, rng):
        theirs, ours = _cells(oracle.ask(case)), _cells(ask_fairlead(case))
        if ours == "refused" and theirs != "refused":
            assert _is_changed(column, cells, theirs), case
        elif theirs == "refused" and ours != "refused":
            assert _is_same(column, cells, ours), case
        elif ours is None and theirs is not None:
            assert cells == [None] * len(cells), case
        elif json.dumps(ours) != json.dumps(theirs):
            assert _is_same(column, cells, ours), case
            assert not _is_same(column, cells, theirs), case


def _cells(answer: Any) -> Any:
    return answer if answer == "refused" else answer["input"].get("c")


def _is_changed(column: Type, sent: list[Any], received: list[Any]) -> bool:
    if column["type"] == "string" and any(type(value) not in {str, type(None)} for value in sent):
        return True  # It is not changed, but it is no text either.
    return not _is_same(column, sent, received)


def _is_same(column: Type, sent: list[Any], received: list[Any] | None) -> bool:
    if received is None:  # The column was left out.
        return sent == [None] * len(sent)
    if column["type"] == "datetime":
        sent = [_GOOD_TIMES.get(value, value) for value in sent]
    if column["type"] == "binary":
        received = [value and value.removeprefix("base64:") for value in received]
    return _is_equal(sent, received)


def _is_equal(sent: Any, received: Any) -> bool:
    """Tell whether values are equal as JSON has them: 2 is 2.0, true is not 1, NaN is null."""
    if isinstance(sent, list) and isinstance(received, list):
        return len(sent) == len(received) and all(map(_is_equal, sent, received))
    if isinstance(sent, dict) and isinstance(received, dict):
        return sent.keys() == received.keys() and all(
            _is_equal(value, received[name]) for name, value in sent.items()
        )
    if sent is None:
        return received is None or (isinstance(received, float) and math.isnan(received))
    return isinstance(sent, bool) is isinstance(received, bool) and bool(sent == received)


@settings(max_examples=150)
@given(column=_COLUMNS, rng=st.integers(0, 2**32).map(Random))
def test_the_short_way_reads_random_types_as_the_long_way_does(column: Type, rng: Random) -> None:
    """What the short way takes or refuses, the long way reads or refuses alike."""
    for _, case in _cases(column, rng):
        short = _short(case)
        if short is not None:
            assert _told(short) == _told(_long(case)), case


def _short(case: Case) -> Request | BadInputError | None:
    try:
        return compile_decoder(read_signature({"inputs": case.inputs}))(case.body.encode())
    except BadInputError as error:
        return error


def _long(case: Case) -> Request | BadInputError:
    try:
        return decode(json.loads(case.body), read_signature({"inputs": case.inputs}))
    except BadInputError as error:
        return error


def _told(outcome: Request | BadInputError) -> str:
    if isinstance(outcome, BadInputError):
        return f"refused: {outcome.field}"  # Of two mistakes in a column each may name another.
    return json.dumps(plainly(Arrays().build(outcome.data)))

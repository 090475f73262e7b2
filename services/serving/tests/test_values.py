"""The rules for single types: what is taken, what is refused, and in which words."""

import contextlib
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.nested import MAX_NESTING
from fairlead_serving.domain.signature import (
    Anything,
    ArrayOf,
    Kind,
    MapOf,
    ObjectOf,
    Property,
    ValueType,
)
from fairlead_serving.domain.values import read_column, read_value

GATE = Property("gate", Kind.LONG, required=True)
PERSON = ObjectOf((Property("age", Kind.LONG, required=True), Property("x", Kind.DOUBLE, False)))  # noqa: FBT003


@pytest.mark.parametrize(
    ("kind", "value", "read"),
    [
        pytest.param(Kind.DOUBLE, 1, 1.0, id="whole number to double"),
        pytest.param(Kind.DOUBLE, None, None, id="missing double"),
        pytest.param(Kind.FLOAT, 2**40, float(2**40), id="long to float"),
        pytest.param(Kind.LONG, 7.0, 7, id="float without a fraction to long"),
        pytest.param(Kind.LONG, 2**63 - 1, 2**63 - 1, id="largest long"),
        pytest.param(Kind.INTEGER, -(2**31), -(2**31), id="smallest integer"),
        pytest.param(Kind.DOUBLE, "1.5", 1.5, id="text that is a number"),
        pytest.param(Kind.LONG, "-7", -7, id="text that is a whole number"),
        pytest.param(Kind.DOUBLE, True, 1.0, id="boolean to double"),
        pytest.param(Kind.INTEGER, False, 0, id="boolean to integer"),
        pytest.param(Kind.BOOLEAN, 1, True, id="one is true"),
        pytest.param(Kind.BOOLEAN, 0.0, False, id="zero is false"),
        pytest.param(Kind.STRING, None, None, id="missing string"),
        pytest.param(Kind.BOOLEAN, False, False, id="boolean"),
        pytest.param(Kind.BINARY, "aGk=\n", b"hi", id="base64 with a line break, as MLflow sends"),
        pytest.param(Kind.DATETIME, "2013-01-02", datetime(2013, 1, 2), id="date"),  # noqa: DTZ001
        pytest.param(
            Kind.DATETIME,
            "2013-01-02T05:00:00+02:00",
            datetime(2013, 1, 2, 3),  # noqa: DTZ001
            id="zoned time to UTC",
        ),
        pytest.param(Kind.DATETIME, None, None, id="missing datetime"),
        pytest.param(ArrayOf(Kind.LONG), [1, 2.0], [1, 2], id="array"),
        pytest.param(MapOf(Kind.DOUBLE), {"a": 1}, {"a": 1.0}, id="map"),
        pytest.param(PERSON, {"age": 3, "x": None}, {"age": 3, "x": None}, id="null property"),
        pytest.param(Anything(), {"a": [None]}, {"a": [None]}, id="anything"),
    ],
)
def test_value_is_taken(kind: ValueType, value: object, read: object) -> None:
    """A value of its type, or one that widens to it, is read."""
    assert list(read_column("f", [value], kind)) == [read]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param(Kind.BOOLEAN, 1, id="number for boolean"),
        pytest.param(Kind.INTEGER, True, id="boolean for integer"),
        pytest.param(Kind.LONG, "1", id="text for long"),
        pytest.param(Kind.FLOAT, "1.5", id="text for float"),
        pytest.param(Kind.DOUBLE, True, id="boolean for double"),
        pytest.param(Kind.DOUBLE, None, id="null for double"),
        pytest.param(Kind.STRING, None, id="null for string"),
    ],
)
def test_nothing_is_converted_inside(kind: Kind, value: object) -> None:
    """What a column would convert is refused in a list, a map and an object."""
    within = ObjectOf((Property("p", kind, required=True),))
    for nested, wrapped in [
        (within, {"p": value}),
        (MapOf(kind), {"p": value}),
        (ArrayOf(within), [{"p": value}]),
    ]:
        with pytest.raises(BadInputError, match="must be"):
            read_column("f", [wrapped], nested)


def test_null_stands_for_what_is_optional() -> None:
    """A nested value of an optional column may be null, at every level down to the next property."""
    kind = ArrayOf(MapOf(Kind.LONG))
    for value in (None, [None], [{"a": None}]):
        assert read_column("f", [value], kind, required=False) == [value]
        with pytest.raises(BadInputError, match="not null"):
            read_column("f", [value], kind)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        pytest.param(Kind.DOUBLE, "1,5", "a number (double), not a string", id="text for number"),
        pytest.param(Kind.DOUBLE, "1e999", "out of the range", id="text beyond 64 bits"),
        pytest.param(Kind.DOUBLE, "nan", "not a string", id="word for a missing number"),
        pytest.param(Kind.LONG, "1.5", "not a string", id="text of a fraction for long"),
        pytest.param(Kind.FLOAT, 1e300, "out of the range", id="beyond 32 bits of float"),
        pytest.param(Kind.LONG, 1.5, "not a number with a fraction", id="fraction for long"),
        pytest.param(Kind.LONG, None, "has to be a double", id="missing long"),
        pytest.param(Kind.LONG, 2**63, "out of the range", id="beyond 64 bits"),
        pytest.param(Kind.INTEGER, 2**31, "out of the range", id="beyond 32 bits"),
        pytest.param(Kind.INTEGER, float("nan"), "not a number", id="NaN for integer"),
        pytest.param(Kind.BOOLEAN, 2, "true or false", id="number for boolean"),
        pytest.param(Kind.BOOLEAN, None, "not null", id="missing boolean"),
        pytest.param(Kind.STRING, 1, "not a whole number", id="number for string"),
        pytest.param(Kind.BINARY, "?", "base64", id="not base64"),
        pytest.param(Kind.DATETIME, "soon", "ISO 8601", id="not a time"),
        pytest.param(Kind.DATETIME, "9999-01-01", "between the years", id="beyond nanoseconds"),
        pytest.param(Kind.DATETIME, 1, "not a whole number", id="number for time"),
        pytest.param(ArrayOf(Kind.LONG), 1, "a list", id="scalar for array"),
        pytest.param(MapOf(Kind.LONG), [], "an object", id="list for map"),
        pytest.param(PERSON, {}, "lacks the property 'age'", id="property missing"),
        pytest.param(PERSON, {"age": "old"}, "'age' that must be", id="property of another type"),
        pytest.param(PERSON, {"age": 1, "y": 2}, "does not know", id="property unknown"),
    ],
)
def test_value_is_refused(kind: ValueType, value: object, words: str) -> None:
    """A value that would have to be changed is refused, naming the field and the types."""
    with pytest.raises(BadInputError) as caught:
        read_column("f", [value], kind)
    assert str(caught.value.field).partition(".")[0] == "f"
    assert caught.value.message.startswith("'f' in row 0 ")
    assert words in caught.value.message


def test_message_names_the_row() -> None:
    """The row of the first wrong value is named."""
    with pytest.raises(BadInputError, match="'f' in row 2 "):
        read_column("f", [1.0, 2.0, "x"], Kind.DOUBLE)


def test_nesting_has_a_limit() -> None:
    """A type deeper than the limit is refused, not recursed into."""
    kind: ValueType = Kind.LONG
    value: object = 1
    for _ in range(MAX_NESTING + 2):
        kind, value = ArrayOf(kind), [value]
    with pytest.raises(BadInputError, match="nested deeper"):
        read_value("f", value, kind, required=True)


@given(
    st.sampled_from(list(Kind)),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none()),
)
def test_any_value_is_read_or_refused(kind: Kind, value: object) -> None:
    """A value is read or refused, whatever it is; reading never raises anything else."""
    with contextlib.suppress(BadInputError):
        once = read_column("f", [value, value], kind)
        assert len(once) == 2


@pytest.mark.parametrize(
    ("kind", "value", "path"),
    [
        (ArrayOf(Kind.LONG), [1, 2, "x"], "f[2]"),
        (ArrayOf(ArrayOf(Kind.LONG)), [[1], [2, "x"]], "f[1][1]"),
        (MapOf(Kind.LONG), {"a key of the caller": "x"}, "f.*"),
        (
            ObjectOf((Property("stops", ArrayOf(ObjectOf((GATE,))), required=True),)),
            {"stops": [{"gate": 1}, {"gate": "x"}]},
            "f.stops[1].gate",
        ),
    ],
    ids=["list", "list of lists", "map", "object"],
)
def test_field_of_a_mistake_is_the_path_to_it(kind: ValueType, value: object, path: str) -> None:
    """So that a program, too, can point at it; a map's keys are what was sent, and not told."""
    with pytest.raises(BadInputError) as caught:
        read_column("f", [value], kind)
    assert caught.value.field == path

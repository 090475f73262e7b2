"""Models of every kind of signature: a payload each, and what such a model answers."""

from typing import Any, NamedTuple

from fairlead_serving.domain.signature import (
    Anything,
    ArrayOf,
    Column,
    Kind,
    MapOf,
    ObjectOf,
    Param,
    Property,
    Signature,
    Tensor,
)


class Case(NamedTuple):
    """A model: its signature, its input example, what it predicts; None is a zero for each row."""

    signature: Signature
    example: Any
    answer: Any = None


_FACTOR = Param("factor", Kind.DOUBLE, 1.0, is_list=False)
_BANDS = Param("bands", Kind.LONG, [1], is_list=True)
_ADDRESS = ObjectOf(
    (Property("street", Kind.STRING, required=True), Property("zip", Kind.LONG, required=False))
)
_NUMBERS = (Column("hour", Kind.DOUBLE), Column("day", Kind.LONG), Column("late", Kind.INTEGER))
_ZEROS = (Tensor(None, "float64", (-1,)),)

CASES = {
    "numbers": Case(
        Signature(columns=_NUMBERS, outputs=_ZEROS),
        {"dataframe_split": {"columns": ["hour", "day", "late"], "data": [[1.5, 2, 0]]}},
    ),
    "mixed": Case(
        Signature(
            columns=(
                Column("carrier", Kind.STRING),
                Column("holiday", Kind.BOOLEAN, required=False),
                Column("when", Kind.DATETIME),
                Column("photo", Kind.BINARY, required=False),
                Column("height", Kind.FLOAT, required=False),
                Column("stops", Kind.INTEGER, required=False),
            ),
            params=(_FACTOR, _BANDS),
            outputs=(Column(None, Kind.STRING),),
        ),
        {
            "dataframe_records": [
                {"carrier": "AA", "when": "2013-01-01T05:00:00", "photo": "AQI=", "other": 1},
                {"carrier": None, "when": "2013-01-02", "photo": "AA==", "height": 1.5},
            ],
            "params": {"factor": 2.0, "bands": [1, 2]},
        },
        ["late", None],
    ),
    "optional": Case(
        Signature(
            columns=(
                Column("hour", Kind.LONG, required=False),
                Column("gate", Kind.STRING, required=False),
            ),
            outputs=(Column("delay", Kind.DOUBLE), Column("late", Kind.BOOLEAN)),
        ),
        {"inputs": {"gate": ["B", "C"]}},
        [{"delay": 1.5, "late": True}, {"delay": None, "late": False}],
    ),
    "one column": Case(
        Signature(columns=(Column("text", Kind.STRING),), outputs=(Column("label", Kind.STRING),)),
        {"inputs": ["a", "b"]},
        ["x", "y"],
    ),
    "nested": Case(
        Signature(
            columns=(
                Column("ids", ArrayOf(Kind.LONG)),
                Column("ragged", ArrayOf(Kind.STRING)),
                Column("address", _ADDRESS),
                Column("prices", MapOf(Kind.DOUBLE), required=False),
                Column("any", Anything()),
                Column("matrix", ArrayOf(ArrayOf(Kind.FLOAT))),
            ),
            outputs=(Column(None, ArrayOf(Kind.DOUBLE)),),
        ),
        {
            "dataframe_records": [
                {
                    "ids": [1, 2],
                    "ragged": ["a"],
                    "address": {"street": "x", "zip": 1},
                    "prices": {"a": 1.5},
                    "any": {"a": [1, None]},
                    "matrix": [[1.5], []],
                },
                {
                    "ids": [3, 4],
                    "ragged": [],
                    "address": {"street": "y"},
                    "prices": {},
                    "any": 1,
                    "matrix": [],
                },
            ]
        },
        [[1.0], []],
    ),
    "no names": Case(
        Signature(
            columns=(Column(None, Kind.DOUBLE), Column(None, Kind.LONG)),
            outputs=(Column(None, Kind.LONG),),
        ),
        {"inputs": [[1.5, 2], [2.5, 3]]},
        [1, 2],
    ),
    "one without a name": Case(
        Signature(columns=(Column(None, Kind.LONG),), outputs=(Column(None, Kind.STRING),)),
        {"inputs": [1, 2]},
        "one answer for all",
    ),
    "tensor": Case(
        Signature(
            tensors=(Tensor(None, "float32", (-1, 2)),),
            outputs=(Tensor(None, "float64", (-1, 2)),),
        ),
        {"inputs": [[1.5, 2], [2.5, 3]]},
        [[0.5, 0.5], [0.1, 0.9]],
    ),
    "image": Case(
        Signature(tensors=(Tensor("image", "uint8", (-1, 2, 2, 1)),), outputs=_ZEROS),
        {"inputs": {"image": [[[[1], [2]], [[3], [255]]]]}},
    ),
    "named tensors": Case(
        Signature(
            tensors=(Tensor("hour", "int8", (-1,)), Tensor("late", "bool", (-1,))),
            outputs=(Tensor("a", "int64", (-1,)), Tensor("b", "str", (-1,))),
        ),
        {"inputs": {"hour": [1, 2], "late": [True, False]}},
        {"a": [1, 2], "b": ["x", "y"]},
    ),
    "fixed": Case(
        Signature(tensors=(Tensor("x", "str", (2, -1)),), outputs=_ZEROS),
        {"inputs": {"x": [["a", "b"], ["c", ""]]}},
    ),
    "no signature": Case(Signature(), {"inputs": [[1, 2.5], [3, 4]]}),
    "no signature, a frame": Case(
        Signature(params=(_FACTOR,)),
        {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [2, "y"]]}},
    ),
}

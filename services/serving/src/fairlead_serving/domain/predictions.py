"""What a report tells of an answer: one prediction of it, the same one in every version."""

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

LONGEST = 100
"""Characters of a text that is reported."""

LARGEST = 1e100
"""Larger numbers are not reported: their differences would not be finite."""

_KEPT = LONGEST - 17


class Unread:
    """Stands for a prediction that could not be read; None is one that a model can make."""


Value = str | int | float | bool | None
UNREAD = Unread()


class Predicted(NamedTuple):
    """One prediction of an answer.

    Attributes:
        rows: How many there were.
        value: One of them, or `UNREAD`.
    """

    rows: int
    value: Value | Unread


def read_predicted(answer: Any, inference_id: str) -> Predicted:
    """Read one prediction of an answer.

    The row depends on the inference id and on the number of rows alone, so that all versions tell
    of the same one. Of several outputs it is the first: the first output of the Open Inference
    Protocol, the first column of a row, the first number of a list.

    Args:
        answer: The decoded JSON of an answer, in either protocol.
        inference_id: The id of the request.
    """
    rows = _rows(answer)
    if not rows:
        return Predicted(0, UNREAD)
    return Predicted(len(rows), _value(rows[_place(inference_id, len(rows))]))


def _rows(answer: Any) -> Sequence[Any]:
    if not isinstance(answer, dict):
        return ()
    predictions = answer.get("predictions")
    if predictions is None:
        return _rows_of_output(answer.get("outputs"))
    if isinstance(predictions, dict):  # One list for each output, by name.
        predictions = next(iter(predictions.values()), None)
    return predictions if isinstance(predictions, list) else [predictions]


def _rows_of_output(outputs: Any) -> Sequence[Any]:
    first = outputs[0] if isinstance(outputs, list) and outputs else {}
    data = first.get("data") if isinstance(first, dict) else None
    if not isinstance(data, list):
        return ()  # Binary, or nothing.
    shape = first.get("shape") or [len(data)]
    width = len(data) // shape[0] if shape[0] else 0
    return data[::width] if width else ()


def _place(inference_id: str, rows: int) -> int:
    digest = blake2b(inference_id.encode(), digest_size=8, person=b"fl-row").digest()
    return int.from_bytes(digest) % rows


def _value(row: Any) -> Value | Unread:
    while isinstance(row, dict | list):
        row = next(iter(row.values() if isinstance(row, dict) else row), UNREAD)
    if isinstance(row, str):
        return _short(row)
    if isinstance(row, int | float):
        return row if math.isfinite(row) and abs(row) <= LARGEST else UNREAD
    return None if row is None else UNREAD


def _short(text: str) -> str:
    """Cut a long text, and keep long texts that differ apart."""
    if len(text) <= LONGEST:
        return text
    digest = blake2b(text.encode(), digest_size=8, person=b"fl-text").hexdigest()
    return f"{text[:_KEPT]}…{digest}"

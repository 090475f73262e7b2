"""What a request is answered with, in MLflow's protocol and in the Open Inference Protocol."""

from typing import Any

import msgspec
import orjson

from fairlead_serving.domain.errors import ModelRaisedError

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class Answer(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        status: The HTTP status code.
        body: The JSON, and what is behind it.
        json_length: How many of its bytes are JSON; None if all are.
    """

    status: int
    body: bytes
    json_length: int | None = None


def answer_predictions(predictions: object) -> Answer:
    """Write predictions.

    Args:
        predictions: What the model gave, as JSON or as arrays; not a number is null.

    Raises:
        ModelRaisedError: JSON has no word for what the model gave.
    """
    return Answer(200, _dump({"predictions": predictions}))


def answer_error(status: int, code: str, message: str, field: str | None = None) -> Answer:
    """Write an error; `field` is what the message is about."""
    return Answer(status, _dump({"error_code": code, "message": message, "field": field}))


def answer_v2_error(status: int, message: str) -> Answer:
    """Write an error in the Open Inference Protocol."""
    return Answer(status, _dump({"error": message}))


def _dump(document: Any) -> bytes:
    try:
        return orjson.dumps(document, option=_OPTIONS)
    except TypeError as error:
        raise ModelRaisedError(type(error).__name__) from error

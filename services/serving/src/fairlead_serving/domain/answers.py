"""What a request is answered with, in MLflow's protocol."""

from typing import Any

import msgspec
import orjson

from fairlead_serving.domain.errors import ModelRaisedError

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class Answer(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        status: The HTTP status code.
        body: The JSON.
    """

    status: int
    body: bytes


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


def _dump(document: Any) -> bytes:
    try:
        return orjson.dumps(document, option=_OPTIONS)
    except TypeError as error:
        raise ModelRaisedError(type(error).__name__) from error

"""What a request is answered with, in MLflow's protocol and in the Open Inference Protocol."""

from typing import Any

import msgspec
import orjson

from fairlead_serving.domain.errors import ModelRaisedError, RequestError

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


def answer_error(error: RequestError) -> Answer:
    """Write an error in MLflow's form, and the field that it is about."""
    document = {"error_code": error.code, "message": error.message, "field": error.field}
    return Answer(error.status, _dump(document))


def answer_v2_error(error: RequestError) -> Answer:
    """Write an error in the Open Inference Protocol."""
    return Answer(error.status, _dump({"error": error.message}))


def _dump(document: Any) -> bytes:
    try:
        return orjson.dumps(document, option=_OPTIONS)
    except TypeError as error:
        raise ModelRaisedError(type(error).__name__) from error

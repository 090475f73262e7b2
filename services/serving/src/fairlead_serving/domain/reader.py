"""Reads the bodies of MLflow's protocol against one signature."""

import re

import orjson

from fairlead_serving.domain.csv import read_csv
from fairlead_serving.domain.data import Request
from fairlead_serving.domain.decode import decode, decode_columns
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import Signature
from fairlead_serving.domain.typed import compile_decoder


class Reader:
    """Reads bodies for one model; its decoder is compiled once.

    Args:
        signature: The model's.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self._decode = compile_decoder(signature)

    def read_json(self, body: bytes) -> Request:
        """Read JSON in any of MLflow's forms.

        Args:
            body: The whole body.

        Returns:
            The checked request.

        Raises:
            BadInputError: It is not JSON, or not of the signature.
        """
        return self._decode(body) or decode(_parse(body), self.signature)

    def read_csv(self, body: bytes) -> Request:
        """Read CSV whose first line names the columns; otherwise as `read_json`."""
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise BadInputError("The body is not in UTF-8.") from error
        return decode_columns(read_csv(text, self.signature), self.signature)


# A string that has no end counts as one, lest the search start again at each quote in it.
_STRING_OR_NAN = re.compile(rb'("(?:[^"\\]++|\\.)*+"?)|NaN')


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(_without_nan(body) if b"NaN" in body else body)
    except orjson.JSONDecodeError as error:
        # Only the position is passed on; the parser's message is about what was sent.
        raise BadInputError(
            f"The body is not valid JSON at line {error.lineno}, column {error.colno}."
        ) from error


def _without_nan(body: bytes) -> bytes:
    """Write null for NaN, as Python's own JSON writer says that a value is missing."""
    return _STRING_OR_NAN.sub(lambda found: found[1] or b"null", body)

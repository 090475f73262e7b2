"""Writes infer requests with MLServer's own codecs, and reads answers with them.

Runs in the environment of the bench's peer MLServer: `mlserver_codecs.py encode` prints the body
of each case; `mlserver_codecs.py decode` reads an answer for each from its input, and prints what
a client of MLServer's gets of it.
"""

import json
import sys
from datetime import datetime

import numpy as np
import pandas as pd
from mlserver.codecs import (
    Base64Codec,
    DatetimeCodec,
    NumpyCodec,
    NumpyRequestCodec,
    PandasCodec,
    StringCodec,
    StringRequestCodec,
)
from mlserver.codecs.base import find_request_codec
from mlserver.codecs.utils import decode_request_input
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, RequestOutput

FRAME = pd.DataFrame(
    {
        "hour": [1.5, np.nan, 3.25],
        "day": np.array([1, 2, 3], dtype=np.int64),
        "late": [True, False, True],
        # Of Python's own strings: the codec does not know pandas' type for them.
        "carrier": pd.Series(["AA", "é", ""], dtype=object),
    }
)
LISTS = pd.DataFrame({"ids": [[1, 2], [3]], "word": [["a", "b"], []]})
MOMENTS = [datetime(2013, 1, 1, 5, 30), datetime(2013, 1, 2)]  # noqa: DTZ001  # MLflow's have none.


def by_input():
    """Say at each input what it is, and nothing of the whole."""
    return InferenceRequest(
        inputs=[
            DatetimeCodec.encode_input("when", MOMENTS, use_bytes=False),
            Base64Codec.encode_input("photo", [b"\x01\x02", b"\xff"], use_bytes=False),
            StringCodec.encode_input("word", ["a", "é"], use_bytes=False),
            NumpyCodec.encode_input("n", np.array([1, 2], dtype=np.int32)),
        ]
    )


def by_output():
    """Say of the output too what it shall be."""
    request = NumpyRequestCodec.encode_request(np.array([[1.5, 2.5]]))
    wanted = Parameters(content_type=NumpyCodec.ContentType)
    request.outputs = [RequestOutput(name="output-1", parameters=wanted)]
    return request


def requests():
    """Make the request of each case."""
    return {
        "frame": PandasCodec.encode_request(FRAME, use_bytes=False),
        "frame, frame back": PandasCodec.encode_request(FRAME, use_bytes=False),
        "frame of lists": PandasCodec.encode_request(LISTS, use_bytes=False),
        "matrix": NumpyRequestCodec.encode_request(np.array([[0.1, 2], [3, 4]], np.float32)),
        "matrix of words": NumpyRequestCodec.encode_request(np.array([["a", "é"], ["", "d"]])),
        "words": StringRequestCodec.encode_request(["a", "é"], use_bytes=False),
        "by input": by_input(),
        "by output": by_output(),
    }


def plain(value):
    """Write what a codec gave as JSON, with its type."""
    if isinstance(value, pd.DataFrame):
        types = {name: str(dtype) for name, dtype in value.dtypes.items()}
        return {"dtypes": types, "records": value.to_dict(orient="records")}
    if isinstance(value, np.ndarray):
        kind = value.dtype.kind if value.dtype.kind in "SU" else str(value.dtype)
        return {"dtype": kind, "shape": list(value.shape), "values": value.tolist()}
    return value


def read(document):
    """Read an answer as a whole, and each of its outputs, by the content types that it names."""
    answer = InferenceResponse.model_validate(document)
    codec = find_request_codec(answer.parameters.content_type)
    outputs = InferenceResponse.model_validate(document).outputs
    return {
        "whole": plain(codec.decode_response(answer)),
        "outputs": {one.name: plain(decode_request_input(one)) for one in outputs},
    }


if sys.argv[1] == "encode":
    found = {name: request.model_dump(mode="json") for name, request in requests().items()}
else:
    found = {name: read(answer) for name, answer in json.load(sys.stdin).items()}
json.dump(found, sys.stdout, indent=1, ensure_ascii=False)

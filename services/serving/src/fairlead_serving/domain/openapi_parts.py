"""What the operations of an OpenAPI document are made of."""

from collections.abc import Mapping
from typing import Any

from fairlead_serving.domain.schemas import Schema, ref

JSON = "application/json"
_RETRY_AFTER: Schema = {
    "Retry-After": {
        "description": "In how many seconds to come back.",
        "schema": {"type": "integer", "minimum": 0},
    }
}


def content(schema: Schema, example: object = None) -> Schema:
    """Describe a body of JSON."""
    media: Schema = {"schema": schema}
    return {JSON: media if example is None else media | {"example": example}}


def answer(words: str, schema: str, **more: Any) -> Schema:
    """Describe an answer of JSON by the name of its schema."""
    return {"description": words, "content": content(ref(schema)), **more}


def refusals(words: Mapping[str, str], schema: str) -> Schema:
    """Describe the errors of an operation; an unavailable model says when to come back."""
    return {
        code: answer(text, schema, **({"headers": _RETRY_AFTER} if code == "503" else {}))
        for code, text in words.items()
    }


def read_of(operation: str, tag: str, summary: str, responses: Schema) -> Schema:
    """Describe a path that is only read."""
    return {
        "get": {
            "operationId": operation,
            "tags": [tag],
            "summary": summary,
            "responses": responses,
        }
    }

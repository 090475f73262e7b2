"""Reads request bodies: JSON of a bounded size, or one clear refusal."""

import json

import orjson
from starlette.requests import Request

BODY_LIMIT = 16 * 1024 * 1024
DECISION_LIMIT = 64 * 1024


class Refused(Exception):  # noqa: N818 - a refusal, not a failure
    """A whole request that cannot be taken."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field


async def read_json(request: Request, limit: int = BODY_LIMIT) -> object:
    """Answer the body's JSON.

    Raises:
        Refused: It is of another type, too large, empty, or not JSON.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, "UNSUPPORTED_MEDIA_TYPE", "the content type must be application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "UNSUPPORTED_MEDIA_TYPE", "the body must not be compressed")
    body = await _read(request, limit)
    if not body.strip():
        raise Refused(400, "BAD_REQUEST", "the body is empty")
    return decode(body)


def decode(body: bytes) -> object:
    """Answer the JSON of a body.

    orjson is several times as fast, but refuses a whole batch for one item with half a surrogate
    pair (a header's stray byte) or a number beyond a float. What it refuses is read again by the
    standard library, so that such an item is named and the rest is taken.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        document: object = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(400, "BAD_REQUEST", f"the body is not JSON{place}") from error
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> Refused:
    return Refused(413, "PAYLOAD_TOO_LARGE", f"the body is larger than {limit:,} bytes")


def read_items(document: object, name: str, limit: int) -> list[object]:
    """Answer the list a batch holds under `name`.

    Raises:
        Refused: There is none, it is empty, or it has more than `limit` items.
    """
    if not isinstance(document, dict):
        raise Refused(422, "INVALID_PARAMETER_VALUE", "the body must be a JSON object")
    if name not in document:
        raise Refused(422, "INVALID_PARAMETER_VALUE", f"{name}: is missing", name)
    items = document[name]
    if not isinstance(items, list):
        raise Refused(422, "INVALID_PARAMETER_VALUE", f"{name}: must be a list", name)
    if not items:
        raise Refused(422, "INVALID_PARAMETER_VALUE", f"{name}: must not be empty", name)
    if len(items) > limit:
        message = f"{name}: must have at most {limit:,} items"
        raise Refused(422, "INVALID_PARAMETER_VALUE", message, name)
    return items

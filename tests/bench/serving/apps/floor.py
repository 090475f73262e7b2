"""The floor: what the web server itself costs, with a body that is decoded and a constant answer."""

from typing import Any

import orjson

ANSWER = orjson.dumps({"predictions": [0.5]})
MANY = orjson.dumps({"predictions": [0.5] * 100})


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer anything."""
    if scope["type"] != "http":
        return
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    answer = ANSWER if len(orjson.loads(body)["inputs"]) == 1 else MANY
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})

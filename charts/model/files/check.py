"""Send a model's own input example through the gateway and check the answer."""

# ruff: noqa: INP001, S310, T201 - A script for a pod: it prints, and asks the URLs it is given.

import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from email.message import Message
from typing import Any

HEADERS = ("x-inference-id", "x-model-version", "x-rollout-arm")
OK = 200


def certificates(verify: str) -> ssl.SSLContext:
    """Take certificates of known authorities alone, or any."""
    context = ssl.create_default_context()
    if verify != "true":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def ask(url: str, context: ssl.SSLContext, body: bytes | None = None) -> tuple[int, Message, str]:
    """Return the answer's status, headers and text; 0 and the reason where there is none."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode(errors="replace")[:300]
    except OSError as error:
        return 0, Message(), str(error)


def read_document(url: str, context: ssl.SSLContext, patience: float) -> Any:
    """Wait until the model's description is there; a model may still be downloading."""
    until = time.monotonic() + patience
    status, _, text = ask(url, context)
    while status != OK and time.monotonic() < until:
        time.sleep(2)
        status, _, text = ask(url, context)
    if status != OK:
        sys.exit(f"no model after {patience:.0f} s: {url} answered {status} {text}")
    return json.loads(text)


def example_of(document: Any) -> Any:
    """Return the input example that the model was logged with."""
    body = document["paths"]["/invocations"]["post"]["requestBody"]
    example = body["content"]["application/json"].get("example")
    if example is None:
        sys.exit("the model was logged without an input example: log one, or set test.payload")
    return example


def rows_of(payload: Any) -> int | None:
    """Return how many rows a payload asks about, or None where only the model knows."""
    rows = payload.get("dataframe_records", payload.get("instances"))
    rows = payload.get("dataframe_split", {}).get("data", rows)
    return len(rows) if isinstance(rows, list) else None


def check(url: str, context: ssl.SSLContext, payload: Any) -> None:
    """Ask for a prediction; stop with what is wrong about the answer."""
    status, headers, text = ask(url, context, json.dumps(payload).encode())
    if status != OK:
        sys.exit(f"{url} answered {status} {text}")
    missing = [name for name in HEADERS if not headers.get(name)]
    if missing:
        sys.exit(f"the answer lacks the headers {', '.join(missing)}: is {url} the gateway?")
    predictions = json.loads(text).get("predictions")
    if predictions is None:
        sys.exit("the answer has no 'predictions'")
    wanted = rows_of(payload)
    if wanted is not None and isinstance(predictions, list) and len(predictions) != wanted:
        sys.exit(f"{wanted} rows were sent and {len(predictions)} predictions came back")
    print(f"version {headers['x-model-version']} ({headers['x-rollout-arm']}) answered {url}")


def main(url: str, verify: str, patience: str, payload: str) -> None:
    """Read the example and send it."""
    context = certificates(verify)
    document = read_document(f"{url}/openapi.json", context, float(patience))
    check(f"{url}/invocations", context, json.loads(payload) or example_of(document))


main(*sys.argv[1:])

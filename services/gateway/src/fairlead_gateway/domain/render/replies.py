"""The answers Envoy gives by itself, as the JSON errors the serving process gives."""

from fairlead_gateway.domain.render.shared import INFERENCE_ID, JSON, OVERRIDE_ARM, safe_regex

READY_PATH = "/-/ready"
"""Where Envoy itself answers 200 while it is ready for requests, and 503 once it drains."""


def render_local_replies() -> JSON:
    """Render the answers Envoy gives by itself, as the JSON errors the serving process gives."""
    model = "%METADATA(ROUTE:fairlead:model)%"
    bad_id = {
        "header_filter": {
            "header": {
                "name": "x-inference-id",
                "string_match": safe_regex(INFERENCE_ID),
                "invert_match": True,
            }
        }
    }
    rule = "x-inference-id must be 1 to 64 of A-Z a-z 0-9 . _ : -"
    ready = {"header_filter": {"header": {"name": ":path", "string_match": {"exact": READY_PATH}}}}
    # Envoy's own words say what is wrong, and never what was sent.
    refused = f"Model {model} does not let this request in: %LOCAL_REPLY_BODY%"
    full = "This gateway is short of memory; try again"
    return {
        "mappers": [
            # Envoy's own word for a request that it gives up within its body for want of memory.
            {**_reply(_status(500), "UNAVAILABLE", full), "status_code": 503},
            _reply(_both(ready, _status(503)), "UNAVAILABLE", "This gateway is being taken away"),
            {"filter": ready, "body_format_override": {"json_format": {"status": "ready"}}},
            _reply(
                _both(_status(400), bad_id),
                "BAD_REQUEST",
                rule,
                {"field": "x-inference-id"},
            ),
            _reply(
                _both(_status(400), _unknown_arm()),
                "BAD_REQUEST",
                f"{OVERRIDE_ARM} must be stable or candidate",
                {"field": OVERRIDE_ARM},
            ),
            _reply(_status(400), "BAD_REQUEST", "The request is not valid HTTP"),
            _reply(_status(401), "UNAUTHENTICATED", refused),
            _reply(_status(403), "FORBIDDEN", refused),
            _reply(
                _status(404),
                "NOT_FOUND",
                "No served model answers at this path; try /models/{name}/invocations",
            ),
            _reply(_status(408), "TIMEOUT", "The request did not arrive in time"),
            _reply(
                _status(413), "PAYLOAD_TOO_LARGE", f"The body is above the limit of model {model}"
            ),
            _reply(
                _status(429),
                "RATE_LIMITED",
                f"Model {model} has had too many requests of this client or unit; "
                "x-ratelimit-reset tells in how many seconds it takes more",
            ),
            _reply(
                _status(431),
                "HEADERS_TOO_LARGE",
                "The request's headers are too large or too many",
            ),
            _reply(
                {"response_flag_filter": {"flags": ["UH", "NC"]}},
                "UNAVAILABLE",
                f"No replica of model {model} is ready; try again",
            ),
            _reply(_status(504), "TIMEOUT", f"Model {model} did not answer in time"),
        ],
        "body_format": _error("UNAVAILABLE", f"Model {model} could not be reached; try again"),
    }


def _unknown_arm() -> JSON:
    return {"header_filter": {"header": {"name": OVERRIDE_ARM, "present_match": True}}}


def _reply(matches: JSON, code: str, message: str, more: JSON | None = None) -> JSON:
    return {"filter": matches, "body_format_override": _error(code, message, more)}


def _error(code: str, message: str, more: JSON | None = None) -> JSON:
    return {"json_format": {"error_code": code, "message": message, **(more or {})}}


def _both(first: JSON, second: JSON) -> JSON:
    return {"and_filter": {"filters": [first, second]}}


def _status(code: int) -> JSON:
    value = {"default_value": code, "runtime_key": f"fairlead.status.{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}

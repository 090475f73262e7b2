"""What the resources have in common: names, and small parts of Envoy's configuration."""

from typing import Any

JSON = dict[str, Any]

TYPE = "type.googleapis.com/envoy."
"""What the name of each type of Envoy's begins with."""

SCOPES = "models"
"""The name of all scopes: a scope is one model's routes, and is found by the model's name."""

ROLLOUTS = "rollouts"
"""The name of the route configuration that the scopes of models in a rollout share."""

PATH_HEADER = "x-fairlead-path"
"""The request header that has the model's name third in the path, whatever the protocol."""

PLAIN_PATH_HEADER = "x-fairlead-plain-path"
"""The request header that has the path without its query."""

LISTENER = "gateway"
"""The name of the one listener, and the prefix of its statistics."""

CERTIFICATE = "gateway"
"""The name of the listener's certificate."""

CLAIM_HEADER = "x-fairlead-claim"
"""The request header that carries a token's claim from the filter to the route."""

CLIENT_HEADER = "x-fairlead-client"
"""The request header that carries the name of the client whose key let the request in."""

OVERRIDE_ARM, OVERRIDE_KEY = "x-override-arm", "x-override-key"
"""The request headers by which a person chooses an arm."""

INFERENCE_ID = "[A-Za-z0-9._:-]{1,64}"
"""What a client may give as an inference id."""

COMPARE_HEADER = "x-fairlead-compare"
"""The request header that marks a request and its copy, `answer` and `shadow`, for comparison."""


def set_header(name: str, value: str) -> JSON:
    """Render a header to set, whatever there was under its name."""
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def expression(regex: str) -> JSON:
    """Render a regular expression."""
    return {"regex": regex}


def safe_regex(regex: str) -> JSON:
    """Render what a whole string must match."""
    return {"safe_regex": {"regex": regex}}


def from_file(path: str) -> JSON:
    """Point Envoy at a file, and keep it from turning ready before the file is right."""
    return {
        "path_config_source": {"path": path},
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
    }

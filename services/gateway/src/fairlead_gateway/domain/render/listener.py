"""The listener: where Envoy listens, and what it does to every request."""

from collections.abc import Collection
from dataclasses import dataclass

from fairlead_gateway.domain.plan import Unit
from fairlead_gateway.domain.render.access import render_access_filters
from fairlead_gateway.domain.render.log import render_access_log
from fairlead_gateway.domain.render.rates import render_rate_filter
from fairlead_gateway.domain.render.replies import READY_PATH, render_local_replies
from fairlead_gateway.domain.render.shared import (
    CERTIFICATE,
    JSON,
    LISTENER,
    PATH_HEADER,
    PLAIN_PATH_HEADER,
    SCOPES,
    TYPE,
    from_file,
    set_header,
)
from fairlead_gateway.domain.render.units import copy_units

_MOST_HEADERS_KB, _MOST_HEADERS = 60, 100  # Envoy's own, and in the documentation.


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """Where Envoy listens and logs.

    Attributes:
        host: The address to listen at.
        port: The port to listen at.
        access_log: The path of the access log.
        certificate: The file that tells where the certificate is; empty to listen without TLS.
    """

    host: str
    port: int
    access_log: str
    certificate: str = ""


def render_listener(settings: ListenerSettings, units: Collection[Unit], routes: JSON) -> JSON:
    """Render the listener.

    Args:
        settings: Where to listen and to log.
        units: The units to find in each request.
        routes: Where the routes come from: `scoped_routes` or `route_config`, as a one-key object.
    """
    manager = {
        "@type": f"{TYPE}extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": LISTENER,
        "server_name": "fairlead",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "request_headers_timeout": "10s",
        "max_request_headers_kb": _MOST_HEADERS_KB,
        "common_http_protocol_options": {"max_headers_count": _MOST_HEADERS},
        "early_header_mutation_extensions": [_early_mutations(units)],
        "access_log": [render_access_log(settings.access_log)],
        "local_reply_config": render_local_replies(),
        "http_filters": _http_filters(),
        **routes,
    }
    address = {"address": settings.host, "port_value": settings.port}
    return {
        "name": LISTENER,
        "address": {"socket_address": address},
        # What is read of a connection before Envoy looks anew whether it has the memory.
        "per_connection_buffer_limit_bytes": 65_536,
        "filter_chains": [
            {
                **_tls(settings),
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ],
            }
        ],
    }


def routes_from(scopes: str, rollouts: str) -> JSON:
    """Point a listener at the files of the routes.

    Args:
        scopes: The file of the scopes, each with its model's routes.
        rollouts: The file of the routes that the scopes of models in a rollout share.
    """
    name = {"name": PATH_HEADER, "element_separator": "/", "index": 3}
    return {
        "scoped_routes": {
            "name": SCOPES,
            "scope_key_builder": {"fragments": [{"header_value_extractor": name}]},
            "rds_config_source": from_file(rollouts),
            "scoped_rds": {"scoped_rds_config_source": from_file(scopes)},
        }
    }


def _tls(settings: ListenerSettings) -> JSON:
    if not settings.certificate:
        return {}
    secret = {"name": CERTIFICATE, "sds_config": from_file(settings.certificate)}
    context = {
        "@type": f"{TYPE}extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificate_sds_secret_configs": [secret],
        },
    }
    return {
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
    }


def render_certificate(folder: str) -> JSON:
    """Render where the certificate is; Envoy reads it anew when the folder's content changes.

    Args:
        folder: A mounted Secret with `tls.crt` and `tls.key`.
    """
    return {
        "name": CERTIFICATE,
        "tls_certificate": {
            "certificate_chain": {"filename": f"{folder}/tls.crt"},
            "private_key": {"filename": f"{folder}/tls.key"},
            "watched_directory": {"path": folder},
        },
    }


def _early_mutations(units: Collection[Unit]) -> JSON:
    """Render what happens to a request's headers before its route is looked for.

    Whatever a client sends under our internal names goes first. An inference id is made unless
    one was given. Then every unit is copied to a header of its own: a hash needs a header, and the
    value that is hashed is then exactly the one that is logged.
    """
    ours = ["x-fairlead-", "x-rollout-", "x-model-version", "x-envoy-"]
    removed = [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ours]
    first = {
        "header": {"key": "x-inference-id", "value": "%REQ(x-inference-id)%"},
        "append_action": "OVERWRITE_IF_EXISTS",  # One id, the first, if several were given.
    }
    made = {
        "header": {"key": "x-inference-id", "value": "%UNIQUE_ID%"},
        "append_action": "ADD_IF_ABSENT",
    }
    copied = [{"append": header} for header in [*copy_units(units), *_align_paths()]]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{TYPE}extensions.http.early_header_mutation.header_mutation.v3"
            ".HeaderMutation",
            "mutations": [*removed, {"append": first}, {"append": made}, *copied],
        },
    }


def _align_paths() -> list[JSON]:
    """Render the headers by which a model is found: its name has one place for both protocols."""
    inference = "request.url_path.startsWith('/v2/')"
    headers = [f"request.headers['{name}']" for name in (PLAIN_PATH_HEADER, PATH_HEADER)]
    return [
        set_header(PLAIN_PATH_HEADER, "%PATH(NQ)%/"),
        set_header(PATH_HEADER, "/v2%PATH(NQ)%/"),
        set_header(PATH_HEADER, f"%CEL({inference} ? {headers[0]} : {headers[1]})%"),
    ]


def _http_filters() -> list[JSON]:
    router = f"{TYPE}extensions.filters.http.router.v3.Router"
    buffer = f"{TYPE}extensions.filters.http.buffer.v3.Buffer"
    return [
        _readiness(),
        *render_access_filters(),
        {
            "name": "envoy.filters.http.header_to_metadata",
            "typed_config": {
                "@type": f"{TYPE}extensions.filters.http.header_to_metadata.v3.Config"
            },
        },
        render_rate_filter(),
        {
            "name": "envoy.filters.http.buffer",
            "disabled": True,  # Each model's routes turn it on with the model's own limit.
            "typed_config": {"@type": buffer, "max_request_bytes": 1024},
        },
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": router, "suppress_envoy_headers": True},
        },
    ]


def _readiness() -> JSON:
    """Answer whether requests may be sent here; such a request is neither logged nor counted."""
    path = {"name": ":path", "string_match": {"exact": READY_PATH}}
    return {
        "name": "envoy.filters.http.health_check",
        "typed_config": {
            "@type": f"{TYPE}extensions.filters.http.health_check.v3.HealthCheck",
            "pass_through_mode": False,
            "headers": [path],
        },
    }

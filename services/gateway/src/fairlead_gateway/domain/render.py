"""From traffic plans and endpoints to Envoy's resources, as plain dictionaries.

A cluster is one version of one model. The candidate's cluster holds the fallback version's
endpoints at priority 1: they take over when none of its own is healthy, and answer retries. The
route decides the arm; the endpoint's metadata tells which version answered.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead_gateway.domain.endpoints import Endpoint, VersionKey
from fairlead_gateway.domain.plan import Arm, TrafficPlan, Unit, UnitKind

JSON = dict[str, Any]

VersionEndpoints = tuple[str, tuple[Endpoint, ...]]
"""A version, and its endpoints."""

ROUTES = "models"
"""The name of the one route configuration."""

LISTENER = "gateway"
"""The name of the one listener, and the prefix of its statistics."""

CERTIFICATE = "gateway"
"""The name of the listener's certificate."""

INFERENCE_ID = "[A-Za-z0-9._:-]{1,64}"
"""What a client may give as an inference id."""

UNIT_HEADER = "x-fairlead-unit"
"""The request header that carries the unit as it was assigned, from the route to the log."""

READY_PATH = "/-/ready"
"""Where Envoy itself answers 200 while it is ready for requests, and 503 once it drains."""

DEFAULT_UNIT = Unit(kind=UnitKind.HEADER, name="x-unit-id")

# Envoy's expressions see bytes. Only text can be hashed, logged and assigned alike.
_TEXT = (
    r"(?:[\x01-\x7f]"
    r"|[\xc2-\xdf][\x80-\xbf]"
    r"|\xe0[\xa0-\xbf][\x80-\xbf]"
    r"|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    r"|\xed[\x80-\x9f][\x80-\xbf]"
    r"|\xf0[\x90-\xbf][\x80-\xbf]{2}"
    r"|[\xf1-\xf3][\x80-\xbf]{3}"
    r"|\xf4[\x80-\x8f][\x80-\xbf]{2})+"
)

_POST = {"name": ":method", "string_match": {"exact": "POST"}}

_COPIED = {UnitKind.HEADER: "REQ", UnitKind.QUERY: "QUERY_PARAM"}
"""The units the listener copies to a header of their own, and Envoy's operator that reads them."""

_IPPROTO_TCP, _TCP_USER_TIMEOUT = 6, 18  # Linux; Python has no name for the second everywhere.
_UNACKNOWLEDGED = 5_000  # Milliseconds that what was sent may go unacknowledged.
_ALL_TRAFFIC = 100_000  # Percent: one healthy endpoint of up to 1,000 keeps its priority in charge.
_SILENCE = 10  # Seconds beyond its timeout in which nothing of a request comes: its client is gone.
_UPSTREAM_IDLE = "30s"  # Below the serving process's own 75 s, so that it never closes first.
_TYPE = "type.googleapis.com/envoy."


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


def cluster_name(model: str, version: str) -> str:
    """Name the cluster of one version; without dots, which would split Envoy's statistics."""
    return f"{model}-v{version}"


def needed_versions(
    plans: Iterable[TrafficPlan], endpoints: Iterable[VersionKey]
) -> set[VersionKey]:
    """Return every version that needs a cluster: named by a plan, or there to be named soon."""
    named = {(plan.model, version) for plan in plans for version in plan.versions}
    return named | set(endpoints)


def units_of(plans: Iterable[TrafficPlan]) -> frozenset[Unit]:
    """Return the units the listener must find; the default one always, as plans come and go."""
    return frozenset(plan.unit for plan in plans if plan.unit.kind in _COPIED) | {DEFAULT_UNIT}


def fallbacks_of(plans: Iterable[TrafficPlan]) -> Mapping[VersionKey, str]:
    """Return which version stands in for which."""
    return {
        (plan.model, arm.version): plan.fallback
        for plan in plans
        for arm in plan.arms
        if plan.fallback is not None and plan.fallback != arm.version
    }


# --- endpoints ------------------------------------------------------------------------------------


def render_endpoints(name: str, priorities: Sequence[VersionEndpoints]) -> JSON:
    """Render the endpoints of one version's cluster: its own, then the fallback's.

    Args:
        name: The cluster.
        priorities: The versions and their endpoints, its own first.
    """
    return {
        "cluster_name": name,
        "endpoints": [
            {
                "priority": priority,
                "lb_endpoints": [
                    _render_endpoint(endpoint, version) for endpoint in endpoints if endpoint.ready
                ],
            }
            for priority, (version, endpoints) in enumerate(priorities)
        ],
        "policy": {"overprovisioning_factor": _ALL_TRAFFIC},
    }


def priorities_of(
    key: VersionKey,
    endpoints: Mapping[VersionKey, tuple[Endpoint, ...]],
    fallback: str | None,
) -> tuple[VersionEndpoints, ...]:
    """Return whose endpoints a version's cluster holds: its own, then the fallback's.

    Args:
        key: The model and the version.
        endpoints: Every version's endpoints.
        fallback: The version that stands in, if any.
    """
    model, version = key
    versions = [version] if fallback is None else [version, fallback]
    return tuple((member, endpoints.get((model, member), ())) for member in versions)


def _render_endpoint(endpoint: Endpoint, version: str) -> JSON:
    socket = {"address": endpoint.address, "port_value": endpoint.port}
    return {
        "endpoint": {"address": {"socket_address": socket}},
        "metadata": {"filter_metadata": {"fairlead": {"version": version}}},
    }


# --- clusters -------------------------------------------------------------------------------------


def render_cluster(name: str, priorities: Sequence[VersionEndpoints]) -> JSON:
    """Render a cluster with its endpoints.

    They are not in files of their own: Envoy takes an inotify instance for each file, of which a
    user has 128 on most machines, and aborts when there are none left.

    Args:
        name: The cluster.
        priorities: The versions and their endpoints, its own first.
    """
    endpoints = render_endpoints(name, priorities)
    return {"name": name, "type": "STATIC", "load_assignment": endpoints, **_cluster_behaviour()}


def _cluster_behaviour() -> JSON:
    unlimited = 1_000_000
    http = f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        # Upstreams are near. One on a lost node swallows what is sent, and each attempt waits so long.
        "connect_timeout": "0.25s",
        # The defaults (3 parallel retries, 1,024 requests) would fail requests of a busy model
        # the moment a replica dies. The serving process limits itself.
        "circuit_breakers": {
            "thresholds": [
                {
                    "priority": "DEFAULT",
                    "max_connections": unlimited,
                    "max_pending_requests": unlimited,
                    "max_requests": unlimited,
                    "max_retries": unlimited,
                }
            ]
        },
        **_dead_peer_detection(),
        "outlier_detection": _outlier_detection(),
        # With every endpoint ejected and nothing to stand in, trying them all beats a 503.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": http,
                "common_http_protocol_options": {"idle_timeout": _UPSTREAM_IDLE},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _dead_peer_detection() -> JSON:
    """Drop a connection whose other end has lost power, so that its requests are sent again.

    Such an end sends no reset: without this a request on a kept connection waits for its own
    timeout. What counts is the other kernel's acknowledgement, so a slow model is left alone, unless
    it reads nothing of a large body for so long.
    """
    lost = {
        "description": "TCP_USER_TIMEOUT",
        "level": _IPPROTO_TCP,
        "name": _TCP_USER_TIMEOUT,
        "int_value": _UNACKNOWLEDGED,
        "state": "STATE_PREBIND",
    }
    probes = {"keepalive_time": 2, "keepalive_interval": 1, "keepalive_probes": 3}
    return {
        "upstream_connection_options": {"tcp_keepalive": probes},
        "upstream_bind_config": {"socket_options": [lost]},
    }


def _outlier_detection() -> JSON:
    """Set an endpoint aside for seconds when it cannot be reached, or is no server at all.

    A model's own 500 never ejects: hiding a candidate's errors behind stable is not our job.
    Even a single endpoint may be ejected: for the candidate stable then stands in, and for stable
    the panic threshold above sends the requests to it all the same.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 5,
        "enforcing_consecutive_local_origin_failure": 100,
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "interval": "0.5s",
        "base_ejection_time": "1s",
        "max_ejection_time": "10s",
        "max_ejection_percent": 100,
    }


# --- routes ---------------------------------------------------------------------------------------


def render_routes(units: Collection[Unit], models: object) -> JSON:
    """Render the one route configuration.

    A request's model is found by the longest prefix of its path, as trying the routes of all models
    one after the other would cost milliseconds with a thousand of them.

    Args:
        units: The units the listener copies into internal headers.
        models: The routes of all models by the prefix of their paths; empty if there are none.
    """
    host: JSON = {"name": ROUTES, "domains": ["*"]}
    if models:
        host["matcher"] = {
            "matcher_tree": {
                "input": {
                    "name": "path",
                    "typed_config": {
                        "@type": f"{_TYPE}type.matcher.v3.HttpRequestHeaderMatchInput",
                        "header_name": ":path",
                    },
                },
                "prefix_match_map": {"map": models},
            },
            "on_no_match": _unknown(),
        }
    else:
        host["routes"] = [_unknown_route()]
    return {
        "name": ROUTES,
        "ignore_port_in_host_matching": True,
        "request_headers_to_remove": sorted(internal_header(unit) for unit in units),
        "virtual_hosts": [host],
    }


def internal_header(unit: Unit) -> str:
    """Name the header that carries a unit from the listener to the route.

    A parameter's name is spelled in hexadecimal, as its case counts and a header's does not.
    """
    name = unit.name if unit.kind is UnitKind.HEADER else unit.name.encode().hex()
    return f"x-fairlead-from-{unit.kind}-{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where a route finds its unit.

    Attributes:
        header: The request header that holds it.
        present: The regular expression that the whole header matches if there is a unit.
        rewrite: What is replaced to get from the header's value to what is hashed.
        unit: The format of the unit itself, for the log.
    """

    header: str
    present: str
    rewrite: JSON
    unit: str


def _source(plan: TrafficPlan) -> _Source:
    if plan.unit.kind is UnitKind.COOKIE:
        pattern = cookie_pattern(plan.unit.name)
        rewrite = {"pattern": _pattern(pattern), "substitution": f"{plan.salt}:\\1"}
        return _Source(
            header="cookie",
            present=pattern,
            rewrite=rewrite,
            unit="%DYNAMIC_METADATA(fairlead:unit)%",
        )
    request = plan.unit.kind is UnitKind.REQUEST
    header = "x-inference-id" if request else internal_header(plan.unit)
    return _Source(
        header=header,
        present=_TEXT,
        rewrite={"pattern": _pattern("^"), "substitution": f"{plan.salt}:"},
        unit=f"%REQ({header})%",
    )


def cookie_pattern(name: str) -> str:
    """Return the expression that finds a cookie's value in the whole cookie header.

    The first cookie of that name with a value counts, without the quotes and the spaces around
    it. A value with a quote inside counts as absent.
    """
    return f'^(?:[^;]*;)*?\\s*{name}\\s*=\\s*"?([^";]*[^"; ])"?\\s*(?:;.*)?$'


def render_model_routes(plan: TrafficPlan) -> JSON:
    """Render one model's routes, by the prefix of their paths."""
    name = plan.model
    invocations = _Paths(
        predictions={"path": f"/models/{name}/invocations"},
        all={"safe_regex": _pattern(f"/models/{name}/(invocations|openapi\\.json|docs)")},
        rewrite={"regex_rewrite": {"pattern": _pattern(f"^/models/{name}/"), "substitution": "/"}},
    )
    inference = _Paths(
        predictions={"safe_regex": _pattern(f"/v2/models/{name}/.+")},
        all={"path_separated_prefix": f"/v2/models/{name}"},
        rewrite={},
    )
    return {
        f"/models/{name}/": _routes(_routes_of(plan, invocations)),
        f"/v2/models/{name}": _routes(_routes_of(plan, inference)),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """Where a model is asked, by one protocol.

    Attributes:
        predictions: What matches a prediction, once the method does.
        all: What matches everything that is known.
        rewrite: How the path becomes the serving process's own.
    """

    predictions: JSON
    all: JSON
    rewrite: JSON


def _routes(routes: Sequence[JSON]) -> JSON:
    typed = {"@type": f"{_TYPE}config.route.v3.RouteList", "routes": routes}
    return {"action": {"name": "routes", "typed_config": typed}}


def _routes_of(plan: TrafficPlan, paths: _Paths) -> list[JSON]:
    """Render bad ids, predictions with a unit and without one, all else.

    Without a rollout there is nothing to split and nothing to report: all goes to stable.
    """
    counted = [] if plan.rollout is None else [_split_route(plan, paths), _unitless(plan, paths)]
    return [_bad_id_route(plan, paths), *counted, _stable_route(plan, paths.all, paths)]


def _split_route(plan: TrafficPlan, paths: _Paths) -> JSON:
    source = _source(plan)
    has_unit = [
        {"name": source.header, "string_match": _regex(pattern)}
        for pattern in dict.fromkeys([source.present, _TEXT])
    ]
    return {
        "match": {**paths.predictions, "headers": [_POST, *has_unit]},
        **_common(plan, counted=True),
        "route": {**_action(plan), **paths.rewrite, **_split(plan)},
    }


def _unitless(plan: TrafficPlan, paths: _Paths) -> JSON:
    match = {**paths.predictions, "headers": [_POST]}
    return _stable_route(plan, match, paths, counted=True)


def _stable_route(plan: TrafficPlan, match: JSON, paths: _Paths, *, counted: bool = False) -> JSON:
    cluster = cluster_name(plan.model, plan.stable.version)
    return {
        "match": match,
        **_common(plan, counted=counted, arm=plan.stable),
        "route": {**_action(plan), **paths.rewrite, "cluster": cluster},
    }


def _bad_id_route(plan: TrafficPlan, paths: _Paths) -> JSON:
    bad = {"name": "x-inference-id", "string_match": _regex(INFERENCE_ID), "invert_match": True}
    return {
        "match": {**paths.all, "headers": [bad]},
        "metadata": {"filter_metadata": {"fairlead": {"model": plan.model}}},
        "response_headers_to_add": [_set("x-inference-id", "%UNIQUE_ID%"), *_rollout_id(plan)],
        "direct_response": {"status": 400},
    }


def _unknown() -> JSON:
    typed = {"@type": f"{_TYPE}config.route.v3.Route", **_unknown_route()}
    return {"action": {"name": "unknown", "typed_config": typed}}


def _unknown_route() -> JSON:
    return {"match": {"prefix": "/"}, "direct_response": {"status": 404}}


def _common(plan: TrafficPlan, *, counted: bool, arm: Arm | None = None) -> JSON:
    """Render what does not depend on the cluster.

    Args:
        plan: The plan.
        counted: Whether the request is a prediction, and so an exposure during a rollout.
        arm: The arm, where the route itself decides it.
    """
    facts: JSON = {"model": plan.model}
    if counted and plan.rollout is not None:
        facts |= {"rollout": plan.rollout, "step": plan.step}
    unit = [_set(UNIT_HEADER, _source(plan).unit)] if counted and arm is None else []
    sided = [] if arm is None else [_set("x-rollout-arm", str(arm.arm))]
    return {
        "metadata": {"filter_metadata": {"fairlead": facts}},
        "request_headers_to_add": [*unit, *_rollout_id(plan), *sided],
        "response_headers_to_add": [
            _set("x-inference-id", "%REQ(x-inference-id)%"),
            _set("x-model-version", "%UPSTREAM_METADATA(fairlead:version)%"),
            *_rollout_id(plan),
            *sided,
        ],
        # A retry and a copy need the whole body again.
        "request_body_buffer_limit": plan.max_body_bytes,
        "typed_per_filter_config": _filters_of(plan),
    }


def _filters_of(plan: TrafficPlan) -> JSON:
    filters = f"{_TYPE}extensions.filters.http"
    limit = {
        "envoy.filters.http.buffer": {
            "@type": f"{filters}.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": plan.max_body_bytes},
        }
    }
    if plan.unit.kind is not UnitKind.COOKIE:
        return limit
    rewrite = {"pattern": _pattern(cookie_pattern(plan.unit.name)), "substitution": "\\1"}
    rule = {
        "header": "cookie",
        "on_header_present": {
            "metadata_namespace": "fairlead",
            "key": "unit",
            "regex_value_rewrite": rewrite,
        },
    }
    unit = {"@type": f"{filters}.header_to_metadata.v3.Config", "request_rules": [rule]}
    return limit | {"envoy.filters.http.header_to_metadata": unit}


def _rollout_id(plan: TrafficPlan) -> list[JSON]:
    return [] if plan.rollout is None else [_set("x-rollout-id", plan.rollout)]


def _action(plan: TrafficPlan) -> JSON:
    timeout = max(plan.timeout, 0.001)
    return {
        "timeout": f"{timeout:.3f}s",
        # The timeout counts from the request's end. Until then, and longer, it is silence that ends it.
        "idle_timeout": f"{timeout + _SILENCE:.3f}s",
        "retry_policy": _retry_policy(plan),
        "request_mirror_policies": [
            {
                "cluster": cluster_name(plan.model, copy.version),
                "runtime_fraction": {
                    "default_value": {"numerator": copy.share, "denominator": "TEN_THOUSAND"}
                },
            }
            for copy in plan.shadow
        ],
    }


def _split(plan: TrafficPlan) -> JSON:
    source = _source(plan)
    return {
        "weighted_clusters": {
            "use_hash_policy": True,
            "clusters": [_weighted(plan, arm) for arm in plan.arms],
        },
        "hash_policy": [
            {"header": {"header_name": source.header, "regex_rewrite": source.rewrite}}
        ],
    }


def _weighted(plan: TrafficPlan, arm: Arm) -> JSON:
    sided = [_set("x-rollout-arm", str(arm.arm))]
    return {
        "name": cluster_name(plan.model, arm.version),
        "weight": arm.weight,
        "request_headers_to_add": sided,
        "response_headers_to_add": sided,
    }


def _retry_policy(plan: TrafficPlan) -> JSON:
    """Render how a request is sent again: to another endpoint, and to the fallback's first."""
    conditions = ["connect-failure", "refused-stream", "retriable-status-codes"]
    conditions.append("reset" if plan.retries.on_reset else "reset-before-request")
    extension = f"{_TYPE}extensions.retry"
    return {
        "retry_on": ",".join(conditions),
        "retriable_status_codes": [503],
        "num_retries": plan.retries.attempts,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.1s"},
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": f"{extension}.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "retry_priority": {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": {
                "@type": f"{extension}.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": 1,
            },
        },
    }


# --- listener -------------------------------------------------------------------------------------


def render_listener(settings: ListenerSettings, units: Collection[Unit], routes: JSON) -> JSON:
    """Render the listener.

    Args:
        settings: Where to listen and to log.
        units: The units to find in each request.
        routes: Where the routes come from: `rds` or `route_config`, as a one-key object.
    """
    manager = {
        "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": LISTENER,
        "server_name": "fairlead",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "request_headers_timeout": "10s",
        "early_header_mutation_extensions": [_early_mutations(units)],
        "access_log": [_access_log(settings.access_log)],
        "local_reply_config": _local_replies(),
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


def routes_from(path: str) -> JSON:
    """Point a listener at the file of the routes."""
    return {"rds": {"route_config_name": ROUTES, "config_source": from_file(path)}}


def _tls(settings: ListenerSettings) -> JSON:
    if not settings.certificate:
        return {}
    secret = {"name": CERTIFICATE, "sds_config": from_file(settings.certificate)}
    context = {
        "@type": f"{_TYPE}extensions.transport_sockets.tls.v3.DownstreamTlsContext",
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
    copied = [{"append": _set(internal_header(unit), _unit_value(unit))} for unit in sorted(units)]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": f"{_TYPE}extensions.http.early_header_mutation.header_mutation.v3"
            ".HeaderMutation",
            "mutations": [*removed, {"append": first}, {"append": made}, *copied],
        },
    }


def _unit_value(unit: Unit) -> str:
    return f"%{_COPIED[unit.kind]}({unit.name})%"


def _access_log(path: str) -> JSON:
    """Render the log the agent reads; one JSON object for each request."""
    fields = {
        "id": "%REQ(x-inference-id)%",
        "model": "%METADATA(ROUTE:fairlead:model)%",
        "rollout": "%METADATA(ROUTE:fairlead:rollout)%",
        "step": "%METADATA(ROUTE:fairlead:step)%",
        "arm": "%REQ(x-rollout-arm)%",
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
        "version": "%UPSTREAM_METADATA(fairlead:version)%",
        "unit": f"%REQ({UNIT_HEADER})%",
        "start": "%START_TIME(%s%3f)%",
        "code": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "duration": "%DURATION%",
    }
    return {
        "name": "envoy.access_loggers.file",
        "filter": {"not_health_check_filter": {}},
        "typed_config": {
            "@type": f"{_TYPE}extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"json_format": fields},
        },
    }


def _http_filters() -> list[JSON]:
    router = f"{_TYPE}extensions.filters.http.router.v3.Router"
    buffer = f"{_TYPE}extensions.filters.http.buffer.v3.Buffer"
    return [
        _readiness(),
        {
            "name": "envoy.filters.http.buffer",
            "disabled": True,  # Each model's routes turn it on with the model's own limit.
            "typed_config": {"@type": buffer, "max_request_bytes": 1024},
        },
        {
            "name": "envoy.filters.http.header_to_metadata",
            "typed_config": {
                "@type": f"{_TYPE}extensions.filters.http.header_to_metadata.v3.Config"
            },
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
            "@type": f"{_TYPE}extensions.filters.http.health_check.v3.HealthCheck",
            "pass_through_mode": False,
            "headers": [path],
        },
    }


def _local_replies() -> JSON:
    """Render the answers Envoy gives by itself, as the JSON errors the serving process gives."""
    model = "%METADATA(ROUTE:fairlead:model)%"
    bad_id = {
        "header_filter": {
            "header": {
                "name": "x-inference-id",
                "string_match": _regex(INFERENCE_ID),
                "invert_match": True,
            }
        }
    }
    rule = "x-inference-id must be 1 to 64 of A-Z a-z 0-9 . _ : -"
    ready = {"header_filter": {"header": {"name": ":path", "string_match": {"exact": READY_PATH}}}}
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
            _reply(_status(400), "BAD_REQUEST", "The request is not valid HTTP"),
            _reply(
                _status(404),
                "NOT_FOUND",
                "No served model answers at this path; try /models/{name}/invocations",
            ),
            _reply(_status(408), "TIMEOUT", "The request did not arrive in time"),
            _reply(
                _status(413), "PAYLOAD_TOO_LARGE", f"The body is above the limit of model {model}"
            ),
            _reply(_status(431), "HEADERS_TOO_LARGE", "The request's headers are too large"),
            _reply(
                {"response_flag_filter": {"flags": ["UH", "NC"]}},
                "UNAVAILABLE",
                f"No replica of model {model} is ready; try again",
            ),
            _reply(_status(504), "TIMEOUT", f"Model {model} did not answer in time"),
        ],
        "body_format": _error("UNAVAILABLE", f"Model {model} could not be reached; try again"),
    }


def _reply(matches: JSON, code: str, message: str, more: JSON | None = None) -> JSON:
    return {"filter": matches, "body_format_override": _error(code, message, more)}


def _error(code: str, message: str, more: JSON | None = None) -> JSON:
    return {"json_format": {"error_code": code, "message": message, **(more or {})}}


def _both(first: JSON, second: JSON) -> JSON:
    return {"and_filter": {"filters": [first, second]}}


def _status(code: int) -> JSON:
    value = {"default_value": code, "runtime_key": f"fairlead.status.{code}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


# --- shared ---------------------------------------------------------------------------------------


def _set(name: str, value: str) -> JSON:
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def _pattern(regex: str) -> JSON:
    return {"regex": regex}


def _regex(regex: str) -> JSON:
    return {"safe_regex": {"regex": regex}}


def from_file(path: str) -> JSON:
    """Point Envoy at a file, and keep it from turning ready before the file is right."""
    return {
        "path_config_source": {"path": path},
        "initial_fetch_timeout": "0s",
        "resource_api_version": "V3",
    }

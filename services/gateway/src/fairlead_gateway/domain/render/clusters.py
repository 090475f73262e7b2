"""The clusters: one for each version of each model."""

from collections.abc import Iterable, Sequence

from fairlead_gateway.domain.endpoints import VersionKey
from fairlead_gateway.domain.plan import TrafficPlan
from fairlead_gateway.domain.render.endpoints import VersionEndpoints, render_endpoints
from fairlead_gateway.domain.render.shared import JSON, TYPE

_IPPROTO_TCP, _TCP_USER_TIMEOUT = 6, 18  # Linux; Python has no name for the second everywhere.
_UNACKNOWLEDGED = 5_000  # Milliseconds that what was sent may go unacknowledged.
_UPSTREAM_IDLE = "30s"  # Below the serving process's own 75 s, so that it never closes first.


def cluster_name(model: str, version: str) -> str:
    """Name the cluster of one version; without dots, which would split Envoy's statistics."""
    return f"{model}-v{version}"


def needed_versions(
    plans: Iterable[TrafficPlan], endpoints: Iterable[VersionKey]
) -> set[VersionKey]:
    """Return every version that needs a cluster: named by a plan, or there to be named soon."""
    named = {(plan.model, version) for plan in plans for version in plan.versions}
    return named | set(endpoints)


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
    http = f"{TYPE}extensions.upstreams.http.v3.HttpProtocolOptions"
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

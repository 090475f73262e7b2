"""The configuration Envoy starts with; everything else comes from files."""

from fairlead_gateway.domain.render import JSON, LISTENER, from_file


def render_bootstrap(*, admin_port: int, listeners: str, clusters: str) -> JSON:
    """Render the bootstrap.

    Args:
        admin_port: The port of Envoy's administration interface, on loopback only.
        listeners: The path of the file of listeners.
        clusters: The path of the file of clusters.
    """
    return {
        "node": {"id": "gateway", "cluster": "fairlead"},
        "admin": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}},
        },
        "dynamic_resources": {
            "lds_config": from_file(listeners),
            "cds_config": from_file(clusters),
        },
        "layered_runtime": _runtime(),
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _statistics()}}},
    }


def render_static(listener: JSON, clusters: list[JSON]) -> JSON:
    """Render a bootstrap with everything inside, to let Envoy check it without starting it."""
    return {
        "node": {"id": "gateway", "cluster": "fairlead"},
        "layered_runtime": _runtime(),
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _runtime() -> JSON:
    """Lift the limit of a regular expression's size: ours are long because of models' names."""
    return {
        "layers": [
            {"name": "fairlead", "static_layer": {"re2.max_program_size.error_level": 10_000}}
        ]
    }


def _statistics() -> list[JSON]:
    """List what Envoy counts: a thousand models' full statistics would be 31 MB a scrape."""
    prefixes = ["cluster_manager.", "listener_manager.", f"http.{LISTENER}.", "server."]
    suffixes = [
        ".membership_healthy",
        ".membership_total",
        ".update_rejected",
        ".upstream_cx_connect_fail",
        ".upstream_rq_retry",
        ".upstream_rq_timeout",
        ".upstream_rq_total",
        ".outlier_detection.ejections_active",
    ]
    return [{"prefix": prefix} for prefix in prefixes] + [{"suffix": end} for end in suffixes]

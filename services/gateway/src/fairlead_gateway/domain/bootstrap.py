"""The configuration Envoy starts with; everything else comes from files."""

from fairlead_gateway.domain.render.shared import JSON, LISTENER, from_file

_TYPE = "type.googleapis.com/envoy."
_HEAP = "envoy.resource_monitors.fixed_heap"
_HEAP_SHARE = 0.9  # What the allocator and the kernel need beside the heap is in the rest.


def render_bootstrap(
    *, admin_port: int, listeners: str, clusters: str, memory_limit: int | None = None
) -> JSON:
    """Render the bootstrap.

    Args:
        admin_port: The port of Envoy's administration interface, on loopback only.
        listeners: The path of the file of listeners.
        clusters: The path of the file of clusters.
        memory_limit: The bytes at which the process would be ended; None where nobody does so.
    """
    overload = {} if memory_limit is None else {"overload_manager": _overload(memory_limit)}
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
        **overload,
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


def _overload(memory_limit: int) -> JSON:
    """Shed load while the heap is nearly full: every body is held whole, some of 1 GiB.

    New requests are refused first, with a 503. The bodies of those accepted before come all the
    same: when even they do not fit, whatever comes on an HTTP/1.1 connection is answered so, too,
    and of HTTP/2 streams the largest are reset.
    """
    config = f"{_TYPE}config.overload.v3"
    shrink = {"@type": f"{config}.ShrinkHeapConfig", "timer_interval": "1s"}
    return {
        "refresh_interval": "0.05s",  # A fast network fills a tenth of 512Mi in this time.
        "resource_monitors": [
            {
                "name": _HEAP,
                "typed_config": {
                    "@type": f"{_TYPE}extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": int(memory_limit * _HEAP_SHARE),
                },
            }
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
        "actions": [
            {**_above("envoy.overload_actions.shrink_heap", 0.8), "typed_config": shrink},
            _above("envoy.overload_actions.disable_http_keepalive", 0.8),
            _above("envoy.overload_actions.stop_accepting_requests", 0.8),
            _between("envoy.overload_actions.reset_high_memory_stream", 0.9, 1.0),
        ],
        "loadshed_points": [_above("envoy.load_shed_points.http1_server_abort_dispatch", 0.9)],
    }


def _above(name: str, pressure: float) -> JSON:
    return {"name": name, "triggers": [{"name": _HEAP, "threshold": {"value": pressure}}]}


def _between(name: str, low: float, high: float) -> JSON:
    scaled = {"scaling_threshold": low, "saturation_threshold": high}
    return {"name": name, "triggers": [{"name": _HEAP, "scaled": scaled}]}


def _statistics() -> list[JSON]:
    """List what Envoy counts: a thousand models' full statistics would be 31 MB a scrape."""
    prefixes = [
        "cluster_manager.",
        "listener_manager.",
        f"http.{LISTENER}.",
        "overload.",
        "server.",
    ]
    suffixes = [
        ".membership_healthy",
        ".membership_total",
        ".upstream_cx_connect_fail",
        ".upstream_rq_retry",
        ".upstream_rq_timeout",
        ".upstream_rq_total",
        ".outlier_detection.ejections_active",
    ]
    return [{"prefix": prefix} for prefix in prefixes] + [{"suffix": end} for end in suffixes]

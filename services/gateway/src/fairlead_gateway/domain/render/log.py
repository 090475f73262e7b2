"""The access log, which the agent reads: one JSON object for each request."""

from fairlead_gateway.domain.render.shared import JSON, TYPE
from fairlead_gateway.domain.render.units import UNIT_HEADER


def render_access_log(path: str) -> JSON:
    """Render the log the agent reads; one JSON object for each request."""
    fields = {
        "id": "%REQ(x-inference-id)%",
        "model": "%METADATA(ROUTE:fairlead:model)%",
        "rollout": "%METADATA(ROUTE:fairlead:rollout)%",
        "step": "%METADATA(ROUTE:fairlead:step)%",
        "override": "%METADATA(ROUTE:fairlead:override)%",
        "outside": "%METADATA(ROUTE:fairlead:outside)%",
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
            "@type": f"{TYPE}extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"json_format": fields},
        },
    }

"""The endpoints of one version's cluster: its own, then the fallback's."""

from collections.abc import Iterable, Mapping, Sequence

from fairlead_gateway.domain.endpoints import Endpoint, VersionKey
from fairlead_gateway.domain.plan import TrafficPlan
from fairlead_gateway.domain.render.shared import JSON

VersionEndpoints = tuple[str, tuple[Endpoint, ...]]
"""A version, and its endpoints."""

_ALL_TRAFFIC = 100_000  # Percent: one healthy endpoint of up to 1,000 keeps its priority in charge.


def fallbacks_of(plans: Iterable[TrafficPlan]) -> Mapping[VersionKey, str]:
    """Return which version stands in for which."""
    return {
        (plan.model, arm.version): plan.fallback
        for whole in plans
        for plan in whole.trials
        for arm in plan.arms
        if plan.fallback is not None and plan.fallback != arm.version
    }


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

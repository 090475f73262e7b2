"""Where the versions of a model answer."""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fairlead_gateway.domain.documents import PlanError


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Endpoint:
    """One process that serves one model version.

    Attributes:
        address: An IP address.
        port: A TCP port.
        ready: Whether it may get traffic.
    """

    address: str
    port: int
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One model version's processes.

    Attributes:
        model: The served model's name.
        version: The model version.
        endpoints: Its processes.
    """

    model: str
    version: str
    endpoints: tuple[Endpoint, ...]


VersionKey = tuple[str, str]
"""A model's name and a version."""


def parse_workload(document: object) -> Workload:
    """Read a workload's status document; keys not needed here are ignored.

    Raises:
        PlanError: The document breaks a rule; the error names the field.
    """
    if not isinstance(document, dict):
        raise PlanError("workload", "must be an object")
    endpoints = document.get("endpoints") or []
    if not isinstance(endpoints, list):
        raise PlanError("endpoints", "must be a list")
    for field in ("model", "version"):
        if not isinstance(document.get(field), str):
            raise PlanError(field, "must be a string")
    return Workload(
        model=document["model"],
        version=document["version"],
        endpoints=tuple(parse_endpoint(index, item) for index, item in enumerate(endpoints)),
    )


def endpoints_by_version(
    workloads: Iterable[Workload],
) -> Mapping[VersionKey, tuple[Endpoint, ...]]:
    """Collect every version's endpoints, in a fixed order, from all of its workloads.

    One named twice is ready if it is so once: for a moment it may stand in an old list, too.
    """
    found: dict[VersionKey, dict[tuple[str, int], Endpoint]] = {}
    for workload in workloads:
        known = found.setdefault((workload.model, workload.version), {})
        for endpoint in workload.endpoints:
            place = (endpoint.address, endpoint.port)
            known[place] = max(endpoint, known.get(place, endpoint))
    return {key: tuple(sorted(known.values())) for key, known in sorted(found.items())}


def parse_endpoint(index: int, value: object) -> Endpoint:
    """Read one endpoint.

    Args:
        index: Its place in the list, for the error.
        value: The decoded JSON.

    Raises:
        PlanError: It breaks a rule; the error names the field.
    """
    field = f"endpoints[{index}]"
    if not isinstance(value, dict):
        raise PlanError(field, "must be an object")
    address, port, ready = value.get("address"), value.get("port"), value.get("ready")
    if not isinstance(address, str) or not _is_ip(address):
        raise PlanError(f"{field}.address", "must be an IP address")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:  # noqa: PLR2004
        raise PlanError(f"{field}.port", "must be from 1 to 65535")
    if not isinstance(ready, bool):
        raise PlanError(f"{field}.ready", "must be true or false")
    return Endpoint(address=address, port=port, ready=ready)


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True

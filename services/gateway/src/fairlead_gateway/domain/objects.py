"""What the gateway reads in Kubernetes: ServedModels and EndpointSlices, as their JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairlead_gateway.domain.documents import PlanError
from fairlead_gateway.domain.endpoints import Endpoint, Workload, parse_endpoint
from fairlead_gateway.domain.plan import (
    TrafficPlan,
    check_model,
    check_version,
    parse_plan,
)

MODEL_LABEL = "fairlead.dev/model"
VERSION_LABEL = "fairlead.dev/version"

_PORT = "http"
_LOST = "status.traffic is missing; the plan followed last stays, if there was one"

ObjectKey = tuple[str, str]
"""An object's namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a ServedModel says of the traffic.

    Attributes:
        key: Its namespace and name; the name is the one in the path.
        created: When it was made, as text that sorts by time.
        uid: Its identity.
        plan: The plan; None if there is none that can be read.
        problem: Why not; empty if there is one.
    """

    key: ObjectKey
    created: str
    uid: str
    plan: TrafficPlan | None
    problem: str

    def after(self, before: "ServedModel | None") -> "ServedModel":
        """Keep the plan read before in place of one that is lost or cannot be read.

        Args:
            before: What the object of this name said before, if there was one.
        """
        if self.plan is not None or before is None:
            return self
        return replace(self, plan=before.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What an EndpointSlice says: some of a version's endpoints.

    Attributes:
        key: Its namespace and name.
        workload: The model, the version and the endpoints; None if it cannot be read.
        problem: Why not; empty if it can.
    """

    key: ObjectKey
    workload: Workload | None
    problem: str

    @property
    def owner(self) -> ObjectKey | None:
        """The namespace and name of the ServedModel it belongs to."""
        return None if self.workload is None else (self.key[0], self.workload.model)

    def after(self, before: "Slice | None") -> "Slice":
        """Keep the endpoints read before in place of some that cannot be read.

        Args:
            before: What the object of this name said before, if there was one.
        """
        if self.workload is not None or before is None:
            return self
        return replace(self, workload=before.workload)


def key_of(document: Mapping[str, Any]) -> ObjectKey:
    """Return an object's namespace and name."""
    metadata = document["metadata"]
    return metadata["namespace"], metadata["name"]


def parse_served_model(document: Mapping[str, Any]) -> ServedModel:
    """Read a ServedModel; a plan that is lost or wrong becomes a problem.

    Args:
        document: The object, as the API server gives it.
    """
    metadata = document["metadata"]
    plan, problem = _plan_of(document)
    return ServedModel(
        key=key_of(document),
        created=metadata.get("creationTimestamp") or "",
        uid=metadata.get("uid") or "",
        plan=plan,
        problem=problem,
    )


def _plan_of(document: Mapping[str, Any]) -> tuple[TrafficPlan | None, str]:
    status = document.get("status")
    traffic = status.get("traffic") if isinstance(status, dict) else None
    name = document["metadata"]["name"]
    try:
        check_model(name, "metadata.name")
        if traffic is None:
            return None, _LOST
        plan = parse_plan(traffic)
    except PlanError as error:
        return None, str(error)
    if plan.model != name:
        return None, f"status.traffic.model: must be {name}, the name of the ServedModel"
    return plan, ""


def counting(models: Iterable[ServedModel]) -> ServedModel | None:
    """Return which of the ServedModels with one name counts: the oldest, then the smallest uid."""
    return min(models, key=lambda model: (model.created, model.uid), default=None)


def parse_slice(document: Mapping[str, Any]) -> Slice:
    """Read an EndpointSlice; what is wrong with it becomes a problem.

    Args:
        document: The object, as the API server gives it.
    """
    key = key_of(document)
    try:
        return Slice(key=key, workload=_workload_of(document), problem="")
    except PlanError as error:
        return Slice(key=key, workload=None, problem=str(error))


def _workload_of(document: Mapping[str, Any]) -> Workload:
    labels = document["metadata"].get("labels") or {}
    model, version = labels.get(MODEL_LABEL, ""), labels.get(VERSION_LABEL, "")
    check_model(model, f"label {MODEL_LABEL}")
    check_version(version, f"label {VERSION_LABEL}")
    return Workload(model=model, version=version, endpoints=_endpoints_of(document))


def _endpoints_of(document: Mapping[str, Any]) -> tuple[Endpoint, ...]:
    """Read the endpoints; none where no port has our name, as a Service without pods has none."""
    ports = [port for port in document.get("ports") or () if port.get("name") == _PORT]
    if not ports:
        return ()
    return tuple(
        _endpoint_of(index, item, ports[0].get("port"))
        for index, item in enumerate(document.get("endpoints") or ())
    )


def _endpoint_of(index: int, item: Mapping[str, Any], port: object) -> Endpoint:
    """Read one endpoint. Its addresses are interchangeable; a missing condition means ready."""
    conditions = item.get("conditions") or {}
    ready = conditions.get("ready") is not False and conditions.get("terminating") is not True
    address = next(iter(item.get("addresses") or ()), None)
    return parse_endpoint(index, {"address": address, "port": port, "ready": ready})

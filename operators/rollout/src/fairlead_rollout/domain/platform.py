"""The settings of an installation in a cluster, as the chart writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead_rollout.domain.errors import InvalidSettingsError

JSON = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """What every version's pods have in common.

    Attributes:
        image: The serving image of ServedModels that name none.
        image_pull_secrets: Names of Secrets in the model's namespace.
        mlflow_url: Where pods fetch versions from.
        experiments_url: Where pods report predictions that are compared with a shadow's.
        credentials_secret: A Secret in the model's namespace with `username` and `password`;
            empty where MLflow asks for none.
        resources: Requests and limits of ServedModels that name none.
        has_network_policy: Whether each version gets a NetworkPolicy.
        ingress_from: NetworkPolicyPeers that may send requests.
        egress: NetworkPolicyEgressRules: DNS, MLflow and the experiments service.
    """

    image: str
    image_pull_policy: str
    image_pull_secrets: Sequence[str]
    mlflow_url: str
    experiments_url: str
    credentials_secret: str
    resources: JSON
    has_network_policy: bool
    ingress_from: Sequence[JSON]
    egress: Sequence[JSON]


@dataclass(frozen=True, kw_only=True)
class PlatformSettings:
    """The settings of one controller.

    Attributes:
        namespaces: Where ServedModels are looked after.
        lease_namespace: Where the Lease is by which one replica of several leads.
        gateway_service: The headless Service of the gateway's agents.
    """

    namespaces: tuple[str, ...]
    lease_namespace: str
    lease: str
    mlflow_url: str
    experiments_url: str
    gateway_namespace: str
    gateway_service: str
    serving: ServingSettings


def parse_settings(document: Any) -> PlatformSettings:
    """Read the settings.

    Raises:
        InvalidSettingsError: A setting is missing or of the wrong kind; the message names it.
    """
    read = _Reader(document, "")
    identity, gateway = read.part("identity"), read.part("gateway")
    experiments_url = read.part("experiments").value("url", str)
    namespaces = read.names("namespaces")
    if not namespaces:
        raise InvalidSettingsError("namespaces: needs at least one namespace")
    return PlatformSettings(
        namespaces=namespaces,
        lease_namespace=identity.value("namespace", str),
        lease=identity.value("lease", str),
        mlflow_url=read.part("mlflow").value("url", str),
        experiments_url=experiments_url,
        gateway_namespace=gateway.value("namespace", str),
        gateway_service=gateway.value("service", str),
        serving=_serving(read.part("serving"), experiments_url),
    )


def _serving(read: "_Reader", experiments_url: str) -> ServingSettings:
    policy = read.part("networkPolicy")
    return ServingSettings(
        image=read.value("image", str),
        image_pull_policy=read.value("imagePullPolicy", str),
        image_pull_secrets=read.names("imagePullSecrets"),
        mlflow_url=read.value("mlflowUrl", str),
        experiments_url=experiments_url,
        credentials_secret=read.value("credentialsSecret", str),
        resources=read.value("resources", dict),
        has_network_policy=policy.value("enabled", bool),
        ingress_from=tuple(policy.value("ingressFrom", list)),
        egress=tuple(policy.value("egress", list)),
    )


@dataclass(frozen=True)
class _Reader:
    document: Any
    path: str

    def value(self, name: str, kind: type) -> Any:
        field = f"{self.path}{name}"
        if not isinstance(self.document, dict) or name not in self.document:
            raise InvalidSettingsError(f"{field}: is missing; it must be a {kind.__name__}")
        return _of_kind(field, self.document[name], kind)

    def names(self, name: str) -> tuple[str, ...]:
        names = self.value(name, list)
        return tuple(
            _of_kind(f"{self.path}{name}[{index}]", item, str) for index, item in enumerate(names)
        )

    def part(self, name: str) -> "_Reader":
        return _Reader(self.value(name, dict), f"{self.path}{name}.")


def _of_kind(field: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        found = type(value).__name__
        raise InvalidSettingsError(f"{field}: must be a {kind.__name__}, is a {found}")
    return value

"""From a ServedModel to the Kubernetes objects of one version, as plain documents. Pure."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead_rollout.domain.names import workload_name
from fairlead_rollout.domain.platform import ServingSettings
from fairlead_rollout.domain.spec import ServedModelSpec

Document = dict[str, Any]

PORT = 8080
CONTAINER = "server"
MODELS = "/models"
TERMINATION_LOG = "/dev/termination-log"
USER = 65532  # "nonroot" of the distroless images, and of ours
DRAIN_SECONDS = 5  # from SIGTERM until no request comes any more: the gateways have heard of it
EXPERIMENTS_VARIABLE = "FAIRLEAD_EXPERIMENTS_URL"  # an option would stop older serving images
MODEL_LABEL = "fairlead.dev/model"
VERSION_LABEL = "fairlead.dev/version"
MANAGED_BY = "app.kubernetes.io/managed-by"
DIGEST = "fairlead.dev/digest"
REGISTERED_MODEL = "fairlead.dev/registered-model"
_KEYS = ("mountPath", "name", "containerPort", "key")  # by which items of a list are told apart


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The ServedModel that the objects belong to, and go with."""

    namespace: str
    name: str
    uid: str


def version_labels(name: str, version: str) -> Mapping[str, str]:
    """Return the labels by which the objects of one version are found."""
    return {MANAGED_BY: "fairlead", MODEL_LABEL: name, VERSION_LABEL: version}


def build_manifests(
    owner: Owner, spec: ServedModelSpec, version: str, replicas: int, settings: ServingSettings
) -> tuple[Document, ...]:
    """Build all objects of one version, the Deployment last: it carries the digest of them all.

    Args:
        owner: The ServedModel.
        spec: What was asked for.
        version: The model version.
        replicas: Pods; with autoscaling the fewest.
        settings: What all versions have in common.
    """
    make = _Maker(owner=owner, spec=spec, version=version, settings=settings)
    deployment = make.deployment(replicas)
    others = [make.service(), make.disruption_budget()]
    if settings.has_network_policy:
        others.append(make.network_policy())
    if spec.autoscaling is not None:
        others.append(make.autoscaler(replicas, spec.autoscaling.max_replicas))
    digest = _digest([*others, deployment])
    deployment["metadata"]["annotations"][DIGEST] = digest
    return (*others, deployment)


def _digest(documents: Sequence[Document]) -> str:
    text = json.dumps(documents, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class _Maker:
    owner: Owner
    spec: ServedModelSpec
    version: str
    settings: ServingSettings

    @property
    def name(self) -> str:
        return workload_name(self.owner.name, self.spec.model, self.version)

    @property
    def selector(self) -> Document:
        return {
            "app.kubernetes.io/name": "fairlead-serving",
            "app.kubernetes.io/instance": self.owner.name,
            "app.kubernetes.io/component": "server",
            VERSION_LABEL: self.version,
        }

    def _object(self, api_version: str, kind: str, spec: Document) -> Document:
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": self.name,
                "namespace": self.owner.namespace,
                "labels": self._labels(),
                "annotations": {REGISTERED_MODEL: self.spec.model},
                "ownerReferences": [self._owner_reference()],
            },
            "spec": spec,
        }

    def _labels(self) -> Document:
        return {
            **self.selector,
            **version_labels(self.owner.name, self.version),
            "app.kubernetes.io/part-of": "fairlead",
            "app.kubernetes.io/version": self.version,
        }

    def _owner_reference(self) -> Document:
        return {
            "apiVersion": "fairlead.dev/v1alpha1",
            "kind": "ServedModel",
            "name": self.owner.name,
            "uid": self.owner.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def service(self) -> Document:
        """Build the headless Service: its EndpointSlices tell the gateways where the pods are."""
        ports = [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}]
        spec = {"clusterIP": "None", "selector": self.selector, "ports": ports}
        return self._object("v1", "Service", spec)

    def disruption_budget(self) -> Document:
        selector = {"matchLabels": self.selector}
        spec = {
            "maxUnavailable": 1,
            "selector": selector,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a broken candidate blocks no drain
        }
        return self._object("policy/v1", "PodDisruptionBudget", spec)

    def network_policy(self) -> Document:
        port = {"port": PORT, "protocol": "TCP"}
        sources = list(self.settings.ingress_from)
        spec = {
            "podSelector": {"matchLabels": self.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": sources, "ports": [port]}] if sources else [],
            "egress": list(self.settings.egress),
        }
        return self._object("networking.k8s.io/v1", "NetworkPolicy", spec)

    def autoscaler(self, fewest: int, most: int) -> Document:
        assert self.spec.autoscaling is not None
        target = {"type": "Utilization", "averageUtilization": self.spec.autoscaling.cpu_percent}
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name},
            "minReplicas": min(fewest, most),
            "maxReplicas": most,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }
        return self._object("autoscaling/v2", "HorizontalPodAutoscaler", spec)

    def deployment(self, replicas: int) -> Document:
        template = merge(self._pod_template(), self.spec.template)
        metadata = template.setdefault("metadata", {})
        metadata["labels"] = {**metadata.get("labels", {}), **self._labels()}
        spec = {
            "replicas": replicas,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": self.selector},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
            },
            "template": template,
        }
        return self._object("apps/v1", "Deployment", spec)

    def _pod_template(self) -> Document:
        grace = math.ceil(self.spec.timeout.total_seconds()) + 2 * DRAIN_SECONDS
        secrets = [{"name": name} for name in self.settings.image_pull_secrets]
        return {
            "metadata": {"labels": self._labels()},
            "spec": {
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": grace,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": USER,
                    "runAsGroup": USER,
                    "fsGroup": USER,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "topologySpreadConstraints": [self._spread()],
                "volumes": [
                    {"name": "models", "emptyDir": {}},
                    {"name": "tmp", "emptyDir": {}},
                ],
                "containers": [self._container()],
                **({"imagePullSecrets": secrets} if secrets else {}),
            },
        }

    def _spread(self) -> Document:
        return {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": self.selector},
            "matchLabelKeys": ["pod-template-hash"],
        }

    def _container(self) -> Document:
        resources = self.spec.resources or self.settings.resources
        return {
            "name": CONTAINER,
            "image": self.spec.image or self.settings.image,
            "imagePullPolicy": self.settings.image_pull_policy,
            "args": [_literal(a) for a in (*self._arguments(), "--threads", threads(resources))],
            "env": self._environment(),
            "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
            "resources": dict(resources),
            "startupProbe": _probe("/livez", period=1, failures=60),
            "livenessProbe": _probe("/livez", period=10, failures=6),
            "readinessProbe": _probe("/readyz", period=1, failures=3),
            "terminationMessagePath": TERMINATION_LOG,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "models", "mountPath": MODELS},
                {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 -- a volume of the pod's own
            ],
        }

    def _arguments(self) -> Sequence[str]:
        return (
            *("--model", f"models:/{self.spec.model}/{self.version}"),
            *("--name", self.owner.name),
            *("--host", "0.0.0.0", "--port", str(PORT)),  # noqa: S104 -- the pod's own address
            *("--cache", MODELS),
            *("--drain-seconds", str(DRAIN_SECONDS)),
            *("--termination-log", TERMINATION_LOG),
            *("--max-body-bytes", str(self.spec.max_body_bytes)),
            *environment_option(self.spec.environment),
        )

    def _environment(self) -> Sequence[Document]:
        secret = self.settings.credentials_secret
        account = [
            {
                "name": f"MLFLOW_TRACKING_{key.upper()}",
                "valueFrom": {"secretKeyRef": {"name": secret, "key": key, "optional": True}},
            }
            for key in ("username", "password")
            if secret
        ]
        return [
            {"name": "MLFLOW_TRACKING_URI", "value": self.settings.mlflow_url},
            {"name": EXPERIMENTS_VARIABLE, "value": self.settings.experiments_url},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108 -- as above
            *account,
        ]


def _literal(argument: object) -> str:
    """Keep Kubernetes from putting a variable in the place of its name."""
    return str(argument).replace("$", "$$")


def _probe(path: str, *, period: int, failures: int) -> Document:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def environment_option(environment: str) -> Sequence[str]:
    """Return the option of `fairlead-serving` for `spec.server.environment`; its default is ours.

    >>> environment_option("resolve")
    ('--environment', 'resolve')
    >>> environment_option("image")
    ()
    """
    return () if environment == "image" else ("--environment", environment)


def threads(resources: Mapping[str, Any]) -> int:
    """Return how many threads a prediction may use: the processors of the limit, else the request.

    >>> threads({"requests": {"cpu": "100m"}, "limits": {"cpu": "1500m"}})
    2
    """
    for part in ("limits", "requests"):
        cpu = (resources.get(part) or {}).get("cpu")
        if cpu is not None and re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)m?", str(cpu)):
            text = str(cpu)
            cores = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
            return max(1, math.ceil(cores))
    return 1


def merge(base: Any, over: Any) -> Any:
    """Lay a person's part of a document over ours.

    Objects are merged key by key. Lists of objects with a name (containers, variables, volumes),
    a mount path, a port or a key are merged item by item; any other list is replaced.

    >>> merge({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "B", "value": "2"}]})
    {'env': [{'name': 'A', 'value': '1'}, {'name': 'B', 'value': '2'}]}
    """
    if isinstance(base, dict) and isinstance(over, Mapping):
        shared = {key: merge(base[key], value) for key, value in over.items() if key in base}
        return {**base, **over, **shared}
    if isinstance(base, list) and isinstance(over, list) and (key := _merge_key(base, over)):
        return _merge_items(base, over, key)
    return over


def _merge_key(base: list[Any], over: list[Any]) -> str | None:
    items = [*base, *over]
    return next(
        (k for k in _KEYS if all(isinstance(i, Mapping) and _is_plain(i.get(k)) for i in items)),
        None,
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int)


def _merge_items(base: list[Any], over: list[Any], key: str) -> list[Any]:
    theirs = {item[key]: item for item in over}
    ours = {item[key] for item in base}
    merged = [merge(item, theirs[item[key]]) if item[key] in theirs else item for item in base]
    return [*merged, *(item for item in over if item[key] not in ours)]

"""The objects in `k8s/` that no chart makes, samples and edge examples, and the values beside them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fairlead_rollout.adapters.schema import read_spec

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
SAMPLES = sorted((K8S / "samples").glob("*.yaml"))
# Charts, namespaces and values as `make kind-up` installs them.
INSTALLED = {"mlflow": "mlflow", "fairlead": "fairlead", "model": "flight-delay"}

Render = Callable[..., list[dict[str, Any]]]
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=[path.stem for path in SAMPLES])


def documents(path: Path) -> list[dict[str, Any]]:
    """A file's objects."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def platform(render: Render) -> list[dict[str, Any]]:
    """The chart fairlead under the name that the examples use."""
    return render("fairlead", {"fullnameOverride": "fairlead"})


def closed(schema: Any) -> Any:
    """A schema of the CRD with unknown fields refused, as the API server does it."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if (
        isinstance(inner.get("properties"), dict)
        and "x-kubernetes-preserve-unknown-fields" not in inner
    ):
        inner.setdefault("additionalProperties", False)
    return inner


@each_sample
def test_a_sample_fits_the_crd(sample: Path) -> None:
    """The API server takes each sample: no unknown field, no wrong value."""
    crd = yaml.safe_load((ROOT / "charts/fairlead/files/crd.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for field in ("apiVersion", "kind", "metadata"):  # Every object's; a CRD need not name them.
        schema["properties"].setdefault(field, {})
    for document in documents(sample):
        # OpenAPI 3.0, which CRDs are written in, took its bounds from draft 4.
        jsonschema.Draft4Validator(closed(schema)).validate(document)


@each_sample
def test_a_sample_is_a_rollout_the_controller_runs(sample: Path) -> None:
    """What a schema cannot say holds too: steps rise, an objective has its last step."""
    for document in documents(sample):
        assert read_spec(document)


def test_the_samples_show_each_way_to_use_it() -> None:
    """There is one for the stage, the alias, the shadow, the objective, the autoscaling."""
    assert {path.stem for path in SAMPLES} == {
        "stage",
        "alias",
        "shadow",
        "objective",
        "autoscaling",
    }
    said = {path.stem: documents(path)[0]["spec"] for path in SAMPLES}
    assert said["alias"]["registry"]["production"].keys() == {"alias"}
    assert "shadow" in said["shadow"]["registry"]
    assert "objective" in said["objective"]["rollout"]
    assert "autoscaling" in said["autoscaling"]["server"]


def test_the_edge_reaches_the_gateway(render: Render) -> None:
    """Ingress and HTTPRoute name the gateway's Service and a port it has."""
    service = next(
        d
        for d in platform(render)
        if d["kind"] == "Service" and d["metadata"]["name"] == "fairlead-gateway"
    )
    ports = {(port["name"], port["port"]) for port in service["spec"]["ports"]}
    (ingress,) = documents(K8S / "edge/ingress.yaml")
    for path in ingress["spec"]["rules"][0]["http"]["paths"]:
        backend = path["backend"]["service"]
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"]["name"] in {name for name, _ in ports}
    route = documents(K8S / "edge/gateway-api.yaml")[1]
    for rule in route["spec"]["rules"]:
        (backend,) = rule["backendRefs"]
        assert backend["name"] == service["metadata"]["name"]
        assert backend["port"] in {number for _, number in ports}


def test_the_edge_passes_all_paths_that_predictions_have() -> None:
    """Both protocols' paths go through, by either edge."""
    (ingress,) = documents(K8S / "edge/ingress.yaml")
    route = documents(K8S / "edge/gateway-api.yaml")[1]
    paths = {"/models", "/v2/models"}
    assert {p["path"] for p in ingress["spec"]["rules"][0]["http"]["paths"]} == paths
    assert {m["path"]["value"] for m in route["spec"]["rules"][0]["matches"]} == paths


def test_certificates_are_where_they_are_looked_for(render: Render) -> None:
    """cert-manager writes the Secrets that the edge and the gateway's TLS name."""
    edge, inside = documents(K8S / "edge/cert-manager.yaml")
    gateway, _ = documents(K8S / "edge/gateway-api.yaml")
    (ingress,) = documents(K8S / "edge/ingress.yaml")
    assert gateway["spec"]["listeners"][0]["tls"]["certificateRefs"] == [
        {"name": edge["spec"]["secretName"]}
    ]
    assert ingress["spec"]["tls"][0]["secretName"] == edge["spec"]["secretName"]
    secret = inside["spec"]["secretName"]
    values = {"fullnameOverride": "fairlead", "gateway": {"tls": {"secretName": secret}}}
    pods = next(
        d
        for d in render("fairlead", values)
        if d["kind"] == "Deployment" and d["metadata"]["name"] == "fairlead-gateway"
    )["spec"]["template"]["spec"]
    assert secret in [volume.get("secret", {}).get("secretName") for volume in pods["volumes"]]
    assert "fairlead-gateway.fairlead.svc" in inside["spec"]["dnsNames"]


@pytest.mark.parametrize("path", ["namespaces.yaml", "edge/ingress.yaml"])
def test_objects_fit_kubernetes(path: str, validate: Callable[[dict[str, Any]], None]) -> None:
    """Kubernetes' own kinds fit their schemas, unknown fields included."""
    for document in documents(K8S / path):
        validate(document)


def test_each_account_is_copied_to_where_it_is_used(render: Render) -> None:
    """The Secrets that platform, models and training name are those that the MLflow chart copies."""
    values = {chart: documents(K8S / f"values/{file}.yaml")[0] for chart, file in INSTALLED.items()}
    accounts = values["mlflow"]["auth"]["accounts"]
    copies = {name: account["copies"][0] for name, account in accounts.items()}
    assert copies["controller"] == {
        "namespace": "fairlead",
        "name": values["fairlead"]["mlflow"]["credentials"]["existingSecret"],
    }
    namespace = values["fairlead"]["watchNamespaces"][0]
    assert copies["training"] == {
        "namespace": namespace,
        "name": values["model"]["training"]["mlflow"]["existingSecret"],
    }
    settings = next(
        d
        for d in render("fairlead", values["fairlead"])
        if d["kind"] == "ConfigMap" and "controller.json" in d["data"]
    )["data"]["controller.json"]
    assert copies["reader"]["namespace"] == namespace
    assert f'"credentialsSecret": "{copies["reader"]["name"]}"' in settings
    assert set(values["mlflow"]["networkPolicy"]["namespaces"]) == {"fairlead", namespace}

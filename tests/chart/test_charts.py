"""What holds for every chart, in every scenario of its `ci` folder."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CHARTS = Path(__file__).parents[2] / "charts"
NAMES = sorted(path.parent.name for path in CHARTS.glob("*/Chart.yaml"))
SCENARIOS = [
    pytest.param(name, yaml.safe_load(path.read_text()) or {}, id=f"{name}-{path.stem}")
    for name in NAMES
    for path in sorted((CHARTS / name / "ci").glob("*-values.yaml"))
]
STANDARD = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
}
IDENTITY = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
}
DIGEST = "sha256:" + "0123456789abcdef" * 4

each_chart = pytest.mark.parametrize("chart", NAMES)
each_scenario = pytest.mark.parametrize(("chart", "values"), SCENARIOS)


def schema_of(chart: str) -> dict[str, Any]:
    """The schema that Helm checks the chart's values against."""
    schema: dict[str, Any] = json.loads((CHARTS / chart / "values.schema.json").read_text())
    return schema


def objects(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every object that refuses unknown keys."""
    if schema.get("additionalProperties") is False:
        yield path
    for key, child in schema.get("properties", {}).items():
        yield from objects(child, (*path, key))


def leaves(
    schema: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The path and schema of every value that has a default as a whole."""
    for key, child in schema.get("properties", {}).items():
        if "properties" in child and "default" not in child:
            yield from leaves(child, (*path, key))
        else:
            yield (*path, key), child


def images(chart: str) -> dict[tuple[str, ...], str]:
    """The path and the repository of every image value."""
    found = {}
    for path, schema in leaves(schema_of(chart)):
        if path[-1] == "repository":
            found[path[:-1]] = schema["default"]
    return found


def put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Values with one more at the path; what was given stays as it is."""
    if not path:
        return value if isinstance(value, dict) else values
    head, rest = path[0], path[1:]
    inner = values.get(head)
    inner = inner if isinstance(inner, dict) else {}
    return {**values, head: put(inner, rest, value) if rest else value}


def labels_match(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a pod selector of labels selects the labels."""
    assert set(selector) <= {"matchLabels"}, "the test reads matchLabels only"
    return selector.get("matchLabels", {}).items() <= labels.items()


@each_chart
def test_every_chart_has_scenarios(chart: str) -> None:
    """A chart without a ci scenario would pass every test here unseen."""
    assert list((CHARTS / chart / "ci").glob("*-values.yaml"))


@each_chart
def test_generated_files_are_fresh(chart: str) -> None:
    """The defaults, the JSON schema, the README's table and the helpers are as their sources make them."""
    command = [sys.executable, str(CHARTS / "generate.py"), "--check", chart]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@each_scenario
def test_a_scenario_lints(helm: Any, chart: str, values: dict[str, Any], tmp_path: Path) -> None:
    """`helm lint --strict` finds nothing."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))

    helm.run("lint", "--strict", str(CHARTS / chart), "--values", str(file))


@each_scenario
def test_a_scenario_makes_valid_objects(
    render: Callable[..., Any], validate: Callable[..., None], chart: str, values: dict[str, Any]
) -> None:
    """Every object fits the Kubernetes schema, with no unknown field, and has a name of its own."""
    documents = render(chart, values)

    for document in documents:
        validate(document)
    names = [
        (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        for document in documents
    ]
    assert len(names) == len(set(names))


@each_scenario
def test_notes_render(helm: Any, chart: str, values: dict[str, Any], tmp_path: Path) -> None:
    """What is printed after an install tells how to look at it, and no value is missing in it."""
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    printed = helm.run(
        "install", "demo", str(CHARTS / chart), "--dry-run=client", "--values", str(file)
    )

    notes = printed.partition("NOTES:")[2]
    assert "kubectl" in notes
    assert "<no value>" not in notes
    assert "<nil>" not in notes


@each_scenario
def test_every_object_has_the_standard_labels(
    render: Callable[..., Any], pods: Callable[..., Any], chart: str, values: dict[str, Any]
) -> None:
    """An object or pod is found by the labels that Kubernetes recommends."""
    documents = render(chart, values)

    for document in documents:
        labels = document["metadata"].get("labels", {})
        assert STANDARD | {"helm.sh/chart"} <= set(labels), document["metadata"]["name"]
    for name, pod in pods(documents):
        assert set(pod["metadata"]["labels"]) >= STANDARD, name


@each_scenario
def test_selectors_never_change(
    render: Callable[..., Any], chart: str, values: dict[str, Any]
) -> None:
    """Selectors use name, instance and component only: a Deployment's cannot be changed later."""
    for document in render(chart, values):
        spec = document.get("spec", {})
        selector = spec.get("selector")
        if document["kind"] == "Service":
            assert set(selector) == IDENTITY, document["metadata"]["name"]
        elif document["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            assert set(selector) == {"matchLabels"}, document["metadata"]["name"]
            assert set(selector["matchLabels"]) == IDENTITY, document["metadata"]["name"]


@each_scenario
def test_every_selector_meets_a_pod(
    render: Callable[..., Any], pods: Callable[..., Any], chart: str, values: dict[str, Any]
) -> None:
    """A Service, PodDisruptionBudget or NetworkPolicy that selects no pod is a slip of the pen."""
    documents = render(chart, values)
    labels = [pod["metadata"]["labels"] for _, pod in pods(documents)]

    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            selector = {"matchLabels": spec["selector"]}
        elif document["kind"] in {"PodDisruptionBudget", "NetworkPolicy"}:
            selector = spec.get("selector") or spec["podSelector"]
        else:
            continue
        assert any(labels_match(selector, each) for each in labels), document["metadata"]["name"]


@each_scenario
def test_containers_are_restricted(
    render: Callable[..., Any],
    pods: Callable[..., Any],
    containers: Callable[..., Any],
    chart: str,
    values: dict[str, Any],
) -> None:
    """Non-root, read-only root, default seccomp, no capability, no way to gain more."""
    for name, pod in pods(render(chart, values)):
        outer = pod["spec"].get("securityContext", {})
        for container in containers(pod):
            where = f"{name}/{container['name']}"
            context = {**outer, **container.get("securityContext", {})}
            assert context.get("runAsNonRoot") is True, where
            assert context.get("runAsUser", 65532) > 0, where
            assert context.get("readOnlyRootFilesystem") is True, where
            assert context.get("allowPrivilegeEscalation") is False, where
            assert context.get("seccompProfile") == {"type": "RuntimeDefault"}, where
            assert context.get("capabilities") == {"drop": ["ALL"]}, where
        for volume in pod["spec"].get("volumes", []):
            assert "hostPath" not in volume, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"]), name


@each_scenario
def test_containers_say_what_they_need(
    render: Callable[..., Any],
    pods: Callable[..., Any],
    containers: Callable[..., Any],
    chart: str,
    values: dict[str, Any],
) -> None:
    """Requests for CPU and memory, a limit for memory. No limit for CPU: it throttles for nothing."""
    for name, pod in pods(render(chart, values)):
        for container in containers(pod):
            resources = container.get("resources", {})
            assert {"cpu", "memory"} <= set(resources.get("requests", {})), (
                name,
                container["name"],
            )
            assert "memory" in resources.get("limits", {}), (name, container["name"])


@each_scenario
def test_only_pods_that_use_the_api_get_a_token(
    render: Callable[..., Any], pods: Callable[..., Any], chart: str, values: dict[str, Any]
) -> None:
    """A service account's token is mounted only where a role is bound to the account."""
    documents = render(chart, values)
    bound = {
        subject["name"]
        for document in documents
        if document["kind"] in {"RoleBinding", "ClusterRoleBinding"}
        for subject in document["subjects"]
    }

    for name, pod in pods(documents):
        if pod["spec"].get("serviceAccountName") in bound:
            continue
        assert pod["spec"].get("automountServiceAccountToken") is False, name


@each_scenario
def test_roles_name_what_they_allow(
    render: Callable[..., Any], chart: str, values: dict[str, Any]
) -> None:
    """No wildcard in a role; one for the whole cluster names each object, and only lets look."""
    for document in render(chart, values):
        if document["kind"] not in {"Role", "ClusterRole"}:
            continue
        for rule in document["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], rule
            if document["kind"] == "ClusterRole":
                assert rule["resourceNames"], rule
                assert rule["verbs"] == ["get"], rule
                assert "secrets" not in rule["resources"], rule


@each_scenario
def test_every_pod_is_behind_a_network_policy(
    render: Callable[..., Any], pods: Callable[..., Any], chart: str, values: dict[str, Any]
) -> None:
    """What no policy names is refused, both ways; unless the policies are switched off as a whole."""
    documents = render(chart, values)
    policies = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    if values.get("networkPolicy", {}).get("enabled") is False:
        assert not policies
        return

    for name, pod in pods(documents):
        labels = pod["metadata"]["labels"]
        mine = [spec for spec in policies if labels_match(spec["podSelector"], labels)]
        assert {kind for spec in mine for kind in spec["policyTypes"]} == {"Ingress", "Egress"}, (
            name
        )


@each_chart
def test_every_image_can_come_from_a_mirror(helm: Any, chart: str) -> None:
    """`global.imageRegistry` goes before the registry of every image, and pull secrets reach every pod."""
    texts = [
        helm.text(chart, put(scenario.values[1], ("global", "imageRegistry"), "mirror.example"))
        for scenario in SCENARIOS
        if scenario.values[0] == chart
    ]

    for path, repository in images(chart).items():
        found = [text for text in texts if f"mirror.example/{repository}" in text]
        assert found, f"no scenario shows the image of {'.'.join(path)}"
        assert not [text for text in texts if f"docker.io/{repository}" in text], path


@each_scenario
def test_pull_secrets_reach_every_pod(
    render: Callable[..., Any], pods: Callable[..., Any], chart: str, values: dict[str, Any]
) -> None:
    """`global.imagePullSecrets` is in every pod."""
    documents = render(chart, put(values, ("global", "imagePullSecrets"), ["mirror-login"]))

    for name, pod in pods(documents):
        assert pod["spec"].get("imagePullSecrets") == [{"name": "mirror-login"}], name


@each_chart
def test_the_digest_wins(helm: Any, chart: str) -> None:
    """An image with a digest is named by it, not by its tag."""
    for path, repository in images(chart).items():
        texts = [
            helm.text(chart, put(scenario.values[1], (*path, "digest"), DIGEST))
            for scenario in SCENARIOS
            if scenario.values[0] == chart
        ]
        assert any(f"{repository}@{DIGEST}" in text for text in texts), path


@each_chart
def test_unknown_keys_are_named(helm: Any, chart: str) -> None:
    """A key nobody knows is refused, at every level, and the message names it and where it stands."""
    values: dict[str, Any] = {}
    for path in objects(schema_of(chart)):
        values = put(values, (*path, "noSuchKey"), 1)
    complaint = helm.refusal(chart, values)

    for path in objects(schema_of(chart)):
        where = f"'/{'/'.join(path)}'" if path else "''"
        expected = f"at {where}: additional properties 'noSuchKey' not allowed"
        assert expected in complaint


@each_chart
def test_values_of_the_wrong_type_are_named(helm: Any, chart: str) -> None:
    """A value of the wrong type is refused, and the message names its key."""
    values: dict[str, Any] = {}
    for path, schema in leaves(schema_of(chart)):
        values = put(values, path, "text" if schema.get("type") in ("object", "array") else [1])
    complaint = helm.refusal(chart, values)

    for path, _ in leaves(schema_of(chart)):
        assert f"at '/{'/'.join(path)}'" in complaint


def others(schema: dict[str, Any]) -> Iterator[Any]:
    """Values that a value could have instead of its default."""
    text = ["changed", "7Gi", "7m", "changed-1", DIGEST, "https://changed.example.com", "7s", "7"]
    text += ["s3://changed", "postgresql+psycopg2://a@changed/b", "0 0 * * *", "http://changed"]
    lists: list[Any] = [
        ["changed"],
        [7],
        ["192.0.2.7/32"],
        [{"name": "changed", "mountPath": "/changed"}],
    ]
    lists += [[{"name": "changed", "namespace": "changed"}], [{"podSelector": {}}]]
    example = schema.get("example")
    whole = next(iter(example.values())) if isinstance(example, dict) else example
    bounds = (schema.get("minimum"), schema.get("maximum"))
    candidates = [
        example,
        whole,
        *bounds,
        *schema.get("enum", ()),
        True,
        False,
        7,
        77,
        *text,
        *lists,
    ]
    candidates += [{"changed": "7m"}, {"changed": 7}]
    validator = jsonschema.Draft7Validator(schema)
    for value in candidates:
        if value != schema.get("default") and validator.is_valid(value):
            yield value


def rendered(helm: Any, chart: str, values: dict[str, Any]) -> str:
    """A chart's text without what is made anew at each rendering, or why it is refused."""
    try:
        text = helm.text(chart, values)
    except Exception as refused:  # noqa: BLE001 - a value that is refused by a template is used.
        return str(refused)
    return re.sub(r"(?m)^  \w+: [A-Za-z0-9+/]{27,}=*$", "", text)  # 20 random letters or more


@each_chart
def test_every_value_matters(helm: Any, chart: str) -> None:
    """A value that changes nothing in any scenario is left over, or its template misspells it."""
    scenarios = [scenario.values[1] for scenario in SCENARIOS if scenario.values[0] == chart]
    before = [rendered(helm, chart, values) for values in scenarios]

    idle = []
    for path, schema in leaves(schema_of(chart)):
        changes = (
            rendered(helm, chart, put(values, path, value)) != plain
            for value in others(schema)
            for values, plain in zip(scenarios, before, strict=True)
        )
        if not any(changes):
            idle.append(".".join(path))
    assert idle == []

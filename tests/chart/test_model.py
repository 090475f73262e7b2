"""The chart model: values become a ServedModel, `helm test` asks it, a Job trains it."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead_rollout.adapters.schema import complete_manifest, read_spec, served_model_schema
from fairlead_serving.domain.openapi import Subject, build_openapi
from fairlead_serving.domain.signature import Column, Kind, Signature
from fairlead_training.entrypoints import cli as training_cli

CHART = Path(__file__).parents[2] / "charts" / "model"
SCENARIOS = sorted(
    path.name.removesuffix("-values.yaml") for path in CHART.glob("ci/*-values.yaml")
)
HEADERS = {"x-inference-id": "i", "x-model-version": "3", "x-rollout-arm": "stable"}

Object = dict[str, Any]
Render = Callable[..., list[Object]]


def scenario(name: str) -> Object:
    """The values of a ci scenario."""
    values: Object = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    return values


def of_kind(documents: list[Object], kind: str) -> Object:
    """The one object of that kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def served_model(render: Render, values: Object) -> Object:
    """The ServedModel as the chart writes it, without what only Kubernetes knows."""
    document = of_kind(render("model", values), "ServedModel")
    return {**document, "metadata": {"name": document["metadata"]["name"]}}


# --- the ServedModel --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_values_make_a_valid_served_model(render: Render, name: str) -> None:
    """The ServedModel's own schema and reader take what the chart makes."""
    assert read_spec(served_model(render, scenario(name)))


def test_the_models_name_is_enough(render: Render) -> None:
    """With nothing but `model` the ServedModel is the one that the CRD's own defaults make."""
    made = complete_manifest(served_model(render, {"model": "flight-delay"}))
    least = complete_manifest({**made, "spec": {"model": "flight-delay"}})

    assert made == least
    assert made["metadata"]["name"] == "demo"


def test_every_value_reaches_the_served_model(render: Render) -> None:
    """What is given is there, word for word, and nothing is made of what is not."""
    values = scenario("full")
    spec = served_model(render, values)["spec"]

    assert spec == {
        key: values[key] for key in ("model", "registry", "traffic", "rollout", "server")
    }


def test_a_stage_gives_way_to_an_alias(render: Render) -> None:
    """An alias replaces the default stage instead of standing beside it."""
    values = {"model": "m", "registry": {"production": {"alias": "champion"}}}
    completed = complete_manifest(served_model(render, values))

    assert completed["spec"]["registry"]["production"] == {"alias": "champion"}


def test_guardrails_can_be_switched_off(render: Render) -> None:
    """`null` takes the one that is on by default away; no guardrails are an empty object."""
    spec = served_model(render, {"model": "m", "rollout": {"guardrails": {"errors": None}}})["spec"]

    assert spec["rollout"]["guardrails"] == {}


def test_each_request_can_be_a_unit(render: Render) -> None:
    """`request: {}` is a choice, not an empty value to leave out."""
    spec = served_model(render, {"model": "m", "traffic": {"unit": {"request": {}}}})["spec"]

    assert spec["traffic"]["unit"] == {"request": {}}


def test_zero_is_a_value(render: Render) -> None:
    """A number of nought and `false` are kept."""
    values = {
        "model": "m",
        "traffic": {"retryOnReset": False},
        "rollout": {"minimumRequests": 0, "guardrails": {"errors": {"margin": 0}}},
        "server": {"keep": {"versions": 0}},
    }
    spec = served_model(render, values)["spec"]

    assert spec["traffic"]["retryOnReset"] is False
    assert spec["rollout"]["minimumRequests"] == 0
    assert spec["rollout"]["guardrails"]["errors"]["margin"] == 0
    assert spec["server"]["keep"]["versions"] == 0


# What the chart says in its own way: its texts and lists may be empty, its unions too, and it has no references.
_WORDS = ("description", "example", "$ref", "title", "x-")
_CHOICES = ("minProperties", "required", "dependentRequired", "minLength", "minItems")


def fields(schema: Object, root: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every field below a schema, by its dotted name, references put in."""
    for key, child in schema.get("properties", {}).items():
        whole = resolved(child, root)
        yield f"{path}{key}", whole
        yield from fields(whole, root, f"{path}{key}.")
        yield from fields(resolved(whole.get("items", {}), root), root, f"{path}{key}[].")


def resolved(schema: Object, root: Object) -> Object:
    """A schema with its reference put in."""
    ref = schema.get("$ref", "").removeprefix("#/$defs/")
    return {**root["$defs"][ref], **schema} if ref else schema


def limits(schema: Object) -> Object:
    """What a field may hold, without words, structure and choices."""
    left = {
        key: value
        for key, value in schema.items()
        if not key.startswith(_WORDS) and key not in {*_CHOICES, "properties", "items", "default"}
    }
    if both := left.pop("not", None):  # Of an object that may be empty in the chart, for "none".
        left["oneOf"] = [{"required": [name]} for name in both["required"]]
    if "const" in left or "enum" in left or left.get("type") == "object":
        left.pop("type", None)
        left.pop("additionalProperties", None)
    return left


def test_the_values_are_the_served_models_own_words() -> None:
    """Each field of the spec is a value of that name with the same limits, and no other is."""
    root = served_model_schema()
    chart = json.loads((CHART / "values.schema.json").read_text())
    spec = dict(fields(root["properties"]["spec"], root))
    parts = {
        key: chart["properties"][key]
        for key in ("model", "registry", "traffic", "rollout", "server")
    }
    values = dict(fields({"properties": parts}, chart))

    assert set(values) == set(spec)
    for name, schema in spec.items():
        assert limits(values[name]) == limits(schema), name


def test_the_defaults_shown_are_the_served_models() -> None:
    """A default in values.yaml is the CRD's; what is left empty is left to it."""
    root = served_model_schema()
    spec = dict(fields(root["properties"]["spec"], root))
    chart = json.loads((CHART / "values.schema.json").read_text())
    parts = {key: chart["properties"][key] for key in ("registry", "traffic", "rollout", "server")}

    for name, schema in fields({"properties": parts}, chart):
        if schema.get("default") in (None, {}, [], ""):
            continue
        assert schema["default"] == spec[name]["default"], name


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "/model"),
        ({"model": "models:/m/1"}, "/model"),
        ({"model": "m", "name": "Flight_Delay"}, "/name"),
        ({"model": "m", "registry": {"production": {"stage": "Archived"}}}, "production/stage"),
        (
            {"model": "m", "registry": {"production": {"stage": "Staging", "alias": "a"}}},
            "/registry/production",
        ),
        ({"model": "m", "traffic": {"timeout": "5"}}, "/traffic/timeout"),
        ({"model": "m", "rollout": {"steps": []}}, "/rollout/steps"),
        ({"model": "m", "rollout": {"steps": [{"weight": 10}]}}, "/rollout/steps/0"),
        ({"model": "m", "rollout": {"objective": {"outcome": "x"}}}, "/rollout/objective"),
        ({"model": "m", "rollout": {"guardrails": {"latency": {"margin": 1}}}}, "slowerThan"),
        ({"model": "m", "server": {"replicas": 0}}, "/server/replicas"),
        ({"model": "m", "server": {"autoscaling": {"cpuPercent": 50}}}, "maxReplicas"),
        ({"model": "m", "training": {"name": "Flights"}}, "/training/name"),
    ],
)
def test_a_wrong_value_is_named(helm: Any, values: Object, key: str) -> None:
    """Rendering stops, and the message names the key."""
    assert key in helm.refusal("model", values)


def test_a_release_whose_name_does_not_fit_is_refused(helm: Any) -> None:
    """The release's name is the model's name in the path; the message says what to set."""
    values = json.dumps({"model": "m"})
    with pytest.raises(Exception, match=r"name: 'flight\.delay' cannot be") as refused:
        helm.run("template", "flight.delay", str(CHART), "--values", "-", stdin=values)

    assert "set another" in str(refused.value)


# --- what `helm test` asks --------------------------------------------------------------------------


class Gateway(BaseHTTPRequestHandler):
    """Answers as a gateway with one model would."""

    document: Object | None
    status: int
    headers_out: dict[str, str]
    rows: int | None
    asked: list[Object]

    def do_GET(self) -> None:
        """Give the model's description."""
        if self.path != "/models/m/openapi.json" or self.document is None:
            self._answer(404, {"message": "no such model"})
        else:
            self._answer(200, self.document)

    def do_POST(self) -> None:
        """Predict."""
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(asked)
        given = asked.get("dataframe_records") or asked["dataframe_split"]["data"]
        rows = len(given) if self.rows is None else self.rows
        self._answer(self.status, {"predictions": [0.5] * rows})

    def _answer(self, status: int, content: Object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**self.headers_out, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


EXAMPLE = {"dataframe_split": {"columns": ["hour"], "data": [[17], [18]]}}


def description(example: object) -> Object:
    """A model's description, as its serving process writes it."""
    column = Column(name="hour", type=Kind.LONG, required=True)
    signature = Signature(columns=(column,), tensors=(), params=(), outputs=())
    subject = Subject(
        name="m",
        version="3",
        signature=signature,
        example=example,
        max_body_bytes=10_000_000,
        max_rows=1_000,
    )
    return build_openapi(subject)


@pytest.fixture
def gateway() -> Iterator[tuple[str, type[Gateway]]]:
    """A gateway's URL, and what it is to do."""
    start = {
        "document": description(EXAMPLE),
        "status": 200,
        "headers_out": dict(HEADERS),
        "rows": None,
        "asked": [],
    }
    handler = type("Handler", (Gateway,), start)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/models/m", handler
        server.shutdown()
        thread.join()


def ask(url: str, payload: Object | None = None) -> tuple[int, str]:
    """Run what the test's pod runs; return its exit code and all that it prints."""
    command = [
        sys.executable,
        str(CHART / "files" / "check.py"),
        url,
        "true",
        "0",
        json.dumps(payload or {}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_test_sends_the_models_own_example(gateway: tuple[str, type[Gateway]]) -> None:
    """What the model was logged with is what it is asked; the answer's version and arm are told."""
    url, handler = gateway
    code, text = ask(url)

    # The description has it row by row, however the model was logged.
    assert (code, handler.asked) == (0, [{"dataframe_records": [{"hour": 17}, {"hour": 18}]}])
    assert "version 3 (stable) answered" in text


def test_a_payload_stands_in_for_the_example(gateway: tuple[str, type[Gateway]]) -> None:
    """A model without an example is asked what the values say."""
    url, handler = gateway
    handler.document = description(None)
    payload = {"dataframe_split": {"data": [[1]]}}

    assert ask(url, payload)[0] == 0
    assert handler.asked == [payload]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"document": None}, "no model after 0 s"),
        ({"document": description(None)}, "test.payload"),
        ({"status": 500}, "answered 500"),
        (
            {"headers_out": {"x-inference-id": "i"}},
            "lacks the headers x-model-version, x-rollout-arm",
        ),
        ({"rows": 1}, "2 rows were sent and 1 predictions came back"),
    ],
)
def test_the_test_says_what_is_wrong(
    gateway: tuple[str, type[Gateway]], fault: Object, message: str
) -> None:
    """A failed test names what it met, in one line."""
    url, handler = gateway
    for name, value in fault.items():
        setattr(handler, name, value)
    code, text = ask(url)

    assert code == 1
    assert message in text
    assert "Traceback" not in text


def test_the_tests_pod_asks_by_the_gateway(render: Render) -> None:
    """The pod runs that script with the gateway's URL, the model's name and the payload."""
    pod = of_kind(render("model", scenario("full")), "Pod")
    (container,) = pod["spec"]["containers"]
    script, url, verify, patience, payload = container["args"]

    assert script.strip() == (CHART / "files" / "check.py").read_text().strip()
    assert (url, verify) == ("https://models.example.com/models/flights", "true")
    assert patience == "300"
    assert json.loads(payload) == {"inputs": {"hour": [17]}}


def policy_of(documents: list[Object], component: str) -> Object:
    """The NetworkPolicy of a component."""
    (found,) = [
        document
        for document in documents
        if document["kind"] == "NetworkPolicy"
        and document["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    spec: Object = found["spec"]
    return spec


def test_the_test_reaches_the_gateway_alone(render: Render) -> None:
    """Besides DNS the pod may talk to the gateway's pods; nobody may talk to it."""
    policy = policy_of(render("model", {"model": "m"}), "test")
    _dns, gateway = policy["egress"]

    assert policy["ingress"] == []
    assert gateway["to"][0]["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "fairlead",
        "app.kubernetes.io/component": "gateway",
    }
    assert [entry["port"] for entry in gateway["ports"]] == [8080, 8443]


# --- training ---------------------------------------------------------------------------------------

TRAINING = {"model": "flight-delay", "training": {"enabled": True}}


def training_of(render: Render, values: Object) -> tuple[Object, Object]:
    """The CronJob's spec, and its one container."""
    cron = of_kind(render("model", values), "CronJob")["spec"]
    (container,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return cron, container


def test_training_is_off_unless_asked(render: Render) -> None:
    """A model that is only served has no CronJob."""
    assert "CronJob" not in {d["kind"] for d in render("model", {"model": "m"})}


def test_training_waits_to_be_started(render: Render) -> None:
    """The CronJob rests; a job made from it trains all recipes and registers them under `model`."""
    cron, container = training_of(render, TRAINING)
    options = training_cli._parser().parse_args(container["args"])

    assert of_kind(render("model", TRAINING), "CronJob")["metadata"]["name"] == "flights"
    assert (cron["suspend"], cron["concurrencyPolicy"]) == (True, "Forbid")
    assert (options.model, options.command.__name__) == ("flight-delay", "train_all")
    assert str(options.data) in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_training_has_an_account_of_its_own(render: Render) -> None:
    """MLflow's URL is plain, the account comes from the Secret that the values name."""
    values = {
        **TRAINING,
        "training": {"enabled": True, "mlflow": {"existingSecret": "trainer"}},
    }
    env = {entry["name"]: entry for entry in training_of(render, values)[1]["env"]}

    assert env["MLFLOW_TRACKING_URI"]["value"] == "http://mlflow.mlflow.svc:5000"
    for name, key in (
        ("MLFLOW_TRACKING_USERNAME", "username"),
        ("MLFLOW_TRACKING_PASSWORD", "password"),
    ):
        assert env[name]["valueFrom"]["secretKeyRef"] == {"name": "trainer", "key": key}
    assert "MLFLOW_TRACKING_PASSWORD" not in json.dumps(training_of(render, TRAINING)[1])


def test_training_reaches_mlflow_alone(render: Render) -> None:
    """Besides DNS the job may talk to MLflow, at its URL's port; nobody may talk to it."""
    policy = policy_of(render("model", TRAINING), "training")
    _dns, mlflow = policy["egress"]

    assert policy["ingress"] == []
    assert mlflow["to"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "mlflow"
    assert mlflow["ports"] == [{"protocol": "TCP", "port": 5000}]


def test_an_account_in_a_url_is_refused_and_not_repeated(helm: Any) -> None:
    """The message says where the account belongs, and does not print it."""
    training = {"enabled": True, "mlflow": {"url": "http://me:hunter2@mlflow:5000"}}
    complaint = helm.refusal("model", {"model": "m", "training": training})

    assert "training.mlflow.existingSecret" in complaint
    assert "hunter2" not in complaint

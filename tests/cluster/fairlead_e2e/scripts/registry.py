"""Does one thing at MLflow by its REST API, as a person or a training job would. Runs in a pod."""

import base64
import http.client
import json
import pathlib
import socket
import sys
import tempfile
from urllib.parse import urlencode, urlsplit

import cloudpickle
import yaml

API = "/api/2.0/mlflow"
FILES = "/api/2.0/mlflow-artifacts/artifacts"

# What a version does is in its pickle, by value: a class without a module.
ESTIMATOR = """
import time

class Estimator:
    '''Answers its own number for every row, or as chances of 0 and of 1.'''

    def __init__(
        self,
        number,
        load_seconds=0.0,
        fails=False,
        raises=False,
        mebibytes=0,
        spin=0.0,
        chances=False,
    ):
        self.number, self.load_seconds, self.fails = number, load_seconds, fails
        self.raises, self.mebibytes, self.spin = raises, mebibytes, spin
        self.chances = chances

    def __setstate__(self, state):
        time.sleep(state['load_seconds'])
        if state['fails']:
            raise RuntimeError('this version was saved by mistake')
        self.ballast = b'x' * (state['mebibytes'] * 2**20)
        self.__dict__.update(state)

    def predict(self, rows):
        end = time.thread_time() + self.spin
        while time.thread_time() < end:
            pass
        if self.raises:
            raise ValueError('this version cannot predict')
        if self.chances:
            return [[1.0 - self.number, float(self.number)]] * len(rows)
        return [float(self.number)] * len(rows)
"""
MLMODEL = {
    "flavors": {
        "python_function": {
            "loader_module": "mlflow.sklearn",
            "model_path": "model.pkl",
            "predict_fn": "predict",
            "env": {"virtualenv": "python_env.yaml"},
        },
        "sklearn": {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"},
    },
    "signature": {
        "inputs": '[{"type": "double", "name": "x", "required": true}]',
        "outputs": '[{"type": "double", "required": true}]',
    },
}


def main():
    """Read what to do from the arguments, print the answer as JSON."""
    url, account, verb, given = sys.argv[1:]
    mlflow = Mlflow(url, pathlib.Path("/accounts") / account)
    sys.stdout.write(json.dumps(VERBS[verb](mlflow, **json.loads(given))))


def address_of(name):
    """Look a name up; a busy cluster's DNS may need more than one try."""
    for _ in range(5):
        try:
            return socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0]
        except socket.gaierror as error:
            reason = error
    sys.exit(f"{name}: {reason}")


class Mlflow:
    """MLflow's REST API, by one account."""

    def __init__(self, url, account):
        name, password = ((account / part).read_text() for part in ("username", "password"))
        token = base64.b64encode(f"{name}:{password}".encode()).decode()
        self.headers = {"authorization": f"Basic {token}", "host": urlsplit(url).netloc}
        self.where = urlsplit(url)

    def ask(self, method, path, body=None, *, may_fail=False):
        """Send a request; returns the answer, or ends the script where it is refused."""
        address = address_of(self.where.hostname)
        connection = http.client.HTTPConnection(address, self.where.port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = self.headers | ({"content-type": "application/json"} if method == "POST" else {})
        connection.request(method, path, body=data, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status >= 400 and not may_fail:
            sys.exit(f"{method} {path}: {answer.status} {text}")
        return json.loads(text or "{}")


def register(mlflow, model, number, requirements="scikit-learn", columns=None, **behaviour):
    """Log a model with this behaviour in a run, and register it; its column is x unless told."""
    run = mlflow.ask("POST", f"{API}/runs/create", {"experiment_id": "0"})["run"]["info"]
    root = run["artifact_uri"].removeprefix("mlflow-artifacts:").lstrip("/")
    with tempfile.TemporaryDirectory() as folder:
        for path in write_model(pathlib.Path(folder), number, requirements, columns, behaviour):
            mlflow.ask("PUT", f"{FILES}/{root}/model/{path.name}", path.read_bytes())
    mlflow.ask("POST", f"{API}/registered-models/create", {"name": model}, may_fail=True)
    version = {"name": model, "source": f"{run['artifact_uri']}/model", "run_id": run["run_id"]}
    created = mlflow.ask("POST", f"{API}/model-versions/create", version)
    return created["model_version"]["version"]


def write_model(folder, number, requirements, columns, behaviour):
    """Write a model folder as MLflow does."""
    scope = {"__name__": "__main__"}
    exec(ESTIMATOR, scope)  # noqa: S102 -- our own text; a class without a module is pickled by value
    (folder / "model.pkl").write_bytes(cloudpickle.dumps(scope["Estimator"](number, **behaviour)))
    (folder / "requirements.txt").write_text(f"{requirements}\n")
    inputs = [
        {"type": type_, "name": name, "required": False} for name, type_ in (columns or {}).items()
    ]
    own = {"signature": {"inputs": json.dumps(inputs)}} if columns else {}
    (folder / "MLmodel").write_text(yaml.safe_dump(MLMODEL | own))
    return sorted(folder.iterdir())


def stage(mlflow, model, version, stage="Production"):
    """Move a version to a stage, and the one before out of it."""
    body = {"name": model, "version": version, "stage": stage, "archive_existing_versions": True}
    return mlflow.ask("POST", f"{API}/model-versions/transition-stage", body)


def alias(mlflow, model, version, alias):
    """Set an alias to a version."""
    body = {"name": model, "alias": alias, "version": version}
    return mlflow.ask("POST", f"{API}/registered-models/alias", body)


def tags(mlflow, model, version):
    """Return a version's tags."""
    query = urlencode({"name": model, "version": version})
    found = mlflow.ask("GET", f"{API}/model-versions/get?{query}")["model_version"]
    return {tag["key"]: tag["value"] for tag in found.get("tags", [])}


def ping(mlflow):
    """Look at the registry; fails where it cannot be looked at."""
    return mlflow.ask("GET", f"{API}/registered-models/search?max_results=1")


VERBS = {"register": register, "stage": stage, "alias": alias, "tags": tags, "ping": ping}

if __name__ == "__main__":
    main()

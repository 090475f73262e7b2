"""Log a run, an artifact and a model version as the training account, and read them as the reader.

Leaves nothing behind that MLflow shows; the garbage collection removes the rest.
"""

# ruff: noqa: INP001, T201 - a script by itself, whose output is the pod's log.

import os
import sys
import tempfile
import uuid
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

SECRETS = Path("/run/secrets/mlflow")


def sign_in(account):
    """Go on as an account; without passwords, as anybody."""
    if (folder := SECRETS / account).exists():
        os.environ["MLFLOW_TRACKING_USERNAME"] = (folder / "username").read_text()
        os.environ["MLFLOW_TRACKING_PASSWORD"] = (folder / "password").read_text()


def write(name):
    """Log what is to be read; return the run's and the experiment's ids."""
    experiment = mlflow.set_experiment(name)
    with mlflow.start_run() as run:
        mlflow.log_metric("answer", 42)
        mlflow.log_text("hello", "model/greeting.txt")
    client = MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    return run.info.run_id, experiment.experiment_id


def read(name, run):
    """Read it back; fail where anything differs."""
    client = MlflowClient()
    version = client.get_model_version(name, "1")
    assert version.run_id == run
    assert client.get_run(run).data.metrics == {"answer": 42}
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(f"models:/{name}/1", dst_path=folder)
        assert (Path(path) / "greeting.txt").read_text() == "hello"


def is_refused(change, *arguments):
    """Whether the account may not change what it reads."""
    try:
        change(*arguments)
    except MlflowException as error:
        return "Permission denied" in str(error) or "PERMISSION_DENIED" in str(error)
    return False


def main():
    """Write as one account, read as the other, tidy up."""
    name = f"helm-test-{uuid.uuid4().hex[:8]}"
    sign_in("training")
    run, experiment = write(name)
    sign_in("reader")
    read(name, run)
    if SECRETS.exists() and not is_refused(MlflowClient().delete_registered_model, name):
        sys.exit("the reader's account may delete models: see auth.accounts.reader")
    sign_in("training")
    MlflowClient().delete_registered_model(name)
    MlflowClient().delete_experiment(experiment)
    print("a run, an artifact and a model version were logged and read back")


main()

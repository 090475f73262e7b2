"""Runs, models and their registration, in MLflow."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from fairlead_training.app.ports import Registered
from fairlead_training.domain.digest import folder_digest
from fairlead_training.domain.features import COLUMNS, LABEL, column_type

DIGEST_TAG: Final = "fairlead.digest"
REQUIREMENTS: Final = ("scikit-learn", "pandas", "numpy", "cloudpickle")
EXAMPLE_ROWS: Final = 3
_DIGEST_CHARACTERS: Final = 36  # As many as MLflow keeps of a data set's digest.


class MlflowTracking:
    """One experiment at one tracking server.

    Args:
        uri: The tracking URI.
        experiment: The experiment's name; made if need be.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        mlflow.set_tracking_uri(uri)
        self._client = mlflow.MlflowClient(uri)
        self._experiment = experiment

    @contextmanager
    def open(self, name: str, tags: Mapping[str, str]) -> Iterator[MlflowRun]:
        """Start a run, or go on with the one `mlflow run` has started for this process."""
        started = "MLFLOW_RUN_ID" in os.environ
        experiment = None if started else self._experiment_id()
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags=dict(tags)) as run:
            yield MlflowRun(self._client, run.info.run_id)

    @contextmanager
    def reopen(self, run_id: str) -> Iterator[MlflowRun]:
        """Open a finished run again."""
        with mlflow.start_run(run_id=run_id):
            yield MlflowRun(self._client, run_id, self._model_id(run_id))

    def finished(self, tags: Mapping[str, str]) -> str | None:
        """Return the newest finished run with these tags."""
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is None:
            return None
        wanted = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
        runs = self._client.search_runs(
            [experiment.experiment_id],
            " and ".join(["attributes.status = 'FINISHED'", *wanted]),
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        return runs[0].info.run_id if runs else None

    def tags(self, run_id: str) -> Mapping[str, str]:
        """Return a run's tags."""
        tags: Mapping[str, str] = self._client.get_run(run_id).data.tags
        return tags

    def metrics(self, run_id: str) -> Mapping[str, float]:
        """Return a run's metrics."""
        metrics: Mapping[str, float] = self._client.get_run(run_id).data.metrics
        return metrics

    def load(self, run_id: str) -> Any:
        """Return the pipeline a run logged."""
        return mlflow.sklearn.load_model(f"models:/{self._model_id(run_id)}")

    def register(self, run_id: str, name: str, description: str) -> Registered:
        """Register the run's model; a run that is registered under the name stays as it is."""
        for version in self._client.search_model_versions(f"run_id = '{run_id}'"):
            if version.name == name and DIGEST_TAG in version.tags:
                return Registered(version=str(version.version), digest=version.tags[DIGEST_TAG])
        self._make_registered_model(name)
        model_id = self._model_id(run_id)
        digest = artifact_digest(f"models:/{model_id}")
        version = self._client.create_model_version(
            name=name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            description=description,
            tags={DIGEST_TAG: digest},
        )
        return Registered(version=str(version.version), digest=digest)

    def _make_registered_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self._experiment))

    def _model_id(self, run_id: str) -> str:
        outputs = self._client.get_run(run_id).outputs
        if outputs is None or not outputs.model_outputs:
            raise ValueError(f"Run {run_id} has logged no model.")
        return str(outputs.model_outputs[-1].model_id)


class MlflowRun:
    """One run, while it is open.

    Args:
        client: The tracking server's client.
        run_id: The run's id.
        model_id: The run's model, once it is logged; metrics are linked to it.
    """

    def __init__(self, client: Any, run_id: str, model_id: str | None = None) -> None:
        self._client = client
        self._run_id = run_id
        self._model_id = model_id

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._run_id

    def log(
        self,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        by_month: Mapping[str, Mapping[int, float]] | None = None,
    ) -> None:
        """Log everything in one request."""
        points = [(key, value, 0) for key, value in (metrics or {}).items()]
        for key, months in (by_month or {}).items():
            points += [(key, value, month) for month, value in months.items()]
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id,
            metrics=[Metric(k, v, now, step, model_id=self._model_id) for k, v, step in points],
            params=[Param(key, str(value)) for key, value in (params or {}).items()],
        )

    def log_data(
        self, rows: pd.DataFrame, *, name: str, digest: str, location: str, context: str
    ) -> None:
        """Log the data set; MLflow's own reader of a data frame takes a second for its schema."""
        schema = Schema([ColSpec(column_type(column), column) for column in (*COLUMNS, LABEL)])
        profile = {"num_rows": len(rows), "months": sorted(set(rows["month"].tolist()))}
        data = Dataset(
            name=name,
            digest=digest[:_DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": location}),
            schema=json.dumps({"mlflow_colspec": schema.to_dict()}),
            profile=json.dumps(profile),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(self._run_id, [DatasetInput(data, tags)])

    def log_model(self, pipeline: Any, rows: pd.DataFrame) -> None:
        """Log the model, with the first of the rows as its input example.

        Signature and requirements are given: to infer them takes seconds, and they are known.
        """
        logged = mlflow.sklearn.log_model(
            pipeline,
            name="model",
            serialization_format="cloudpickle",
            pyfunc_predict_fn="predict_proba",
            signature=signature(),
            input_example=rows[list(COLUMNS)].head(EXAMPLE_ROWS).reset_index(drop=True),
            pip_requirements=[f"{name}=={metadata.version(name)}" for name in REQUIREMENTS],
        )
        self._model_id = logged.model_id

    def log_folder(self, folder: Path, name: str) -> None:
        """Log the folder's files as artifacts."""
        self._client.log_artifacts(self._run_id, str(folder), name)


def signature() -> ModelSignature:
    """Return what every version takes and gives: the probabilities, on time and late."""
    inputs = Schema([ColSpec(column_type(column), column) for column in COLUMNS])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype("float64"), (-1, 2))]))


def artifact_digest(uri: str) -> str:
    """Return the digest of a model's folder as a server would download it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        return folder_digest(
            {
                path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in root.rglob("*")
                if path.is_file()
            }
        )

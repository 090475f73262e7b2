"""The five versions, trained for real."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from fairlead_training.app.ports import Manifest
from fairlead_training.app.train import Workshop, evaluate
from fairlead_training.app.train_all import Result, register, train_all
from fairlead_training.domain.digest import folder_digest
from fairlead_training.domain.features import COLUMNS, LABEL
from fairlead_training.domain.recipes import HUBS, recipe_named
from fairlead_training.domain.scores import scores
from fairlead_training.domain.views import held_out_rows, training_rows

pytestmark = [
    # MLflow 3.17 maps its tables with a loader that SQLAlchemy 2.1 deprecates.
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
    ),
    # MLflow 3.17 compares a frame's columns with a range, which pandas 3 deprecates.
    pytest.mark.filterwarnings("ignore:Operation with range is deprecated:DeprecationWarning"),
    # MLflow 3.17 warns about the type hints of its own classes when it is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

LOADS_ANYWHERE = ["first", "weather", "celsius", "hubs"]

LOAD_ALONE = """
import json, pathlib, sys
for name in ("fairlead_training", "mlflow"):
    sys.modules[name] = None  # As if it were not installed.
import cloudpickle, pandas
for folder in map(pathlib.Path, sys.argv[1:]):
    with (folder / "model.pkl").open("rb") as file:
        model = cloudpickle.load(file)
    example = json.loads((folder / "input_example.json").read_text())
    rows = pandas.DataFrame(example["data"], columns=example["columns"])
    print(json.dumps(model.predict_proba(rows).tolist()))
"""


@pytest.fixture(scope="session")
def folders(
    model_name: str, trained: dict[str, Result], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Download each registered version, as a server would."""
    return {
        name: Path(
            mlflow.artifacts.download_artifacts(
                f"models:/{model_name}/{result.registered.version}",
                dst_path=str(tmp_path_factory.mktemp(name)),
            )
        )
        for name, result in trained.items()
    }


def load_alone(*folders: Path) -> subprocess.CompletedProcess[str]:
    """Load the pickles and predict their examples in a process without this package and MLflow."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", LOAD_ALONE, *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folders[0],
        env=environment,
    )


def test_versions_are_numbered_in_order(trained: dict[str, Result]) -> None:
    """Five versions, 1 to 5, each trained here."""
    assert [result.registered.version for result in trained.values()] == list("12345")
    assert not any(result.cached for result in trained.values())


@pytest.mark.parametrize(
    ("name", "auc", "brier"),
    [("first", 0.624, 0.170), ("weather", 0.713, 0.157), ("celsius", 0.713, 0.157)],
)
def test_figures_as_their_trainers_saw_them(
    trained: dict[str, Result], name: str, auc: float, brier: float
) -> None:
    """The mistake in celsius does not show in its own figures."""
    assert trained[name].auc == pytest.approx(auc, abs=0.006)
    assert trained[name].brier == pytest.approx(brier, abs=0.003)


@pytest.mark.parametrize(
    ("name", "auc", "brier", "failed"),
    [("weather", 0.715, 0.156, 0.0), ("celsius", 0.687, 0.183, 0.0), ("hubs", 0.715, 0.148, 0.288)],
)
def test_figures_as_clients_see_them(  # noqa: PLR0917 - As PLR0913.
    trained: dict[str, Result],
    flights: pd.DataFrame,
    shop: Workshop,
    name: str,
    auc: float,
    brier: float,
    failed: float,
) -> None:
    """On what clients send, celsius is worse than the first version and hubs fails."""
    run_id = trained[name].run_id
    figures = evaluate(run_id, flights, shop, as_served=True)
    assert figures["served_auc"] == pytest.approx(auc, abs=0.01)
    assert figures["served_brier"] == pytest.approx(brier, abs=0.006)
    assert figures["served_failed_share"] == pytest.approx(failed, abs=0.005)
    logged = shop.tracking.metrics(run_id)
    assert logged["served_brier"] == figures["served_brier"]


def test_evaluating_again_finds_the_same_figures(
    trained: dict[str, Result], flights: pd.DataFrame, shop: Workshop
) -> None:
    """The model that was logged is the one that was judged; a notebook model still loads here."""
    again = evaluate(trained["notebook"].run_id, flights, shop, as_served=False)
    assert again["heldout_brier"] == pytest.approx(trained["notebook"].brier, abs=1e-12)
    assert "calibration_notebook" not in sys.modules


def test_versions_load_without_this_package_and_mlflow(folders: dict[str, Path]) -> None:
    """The pickles are self-contained and answer their own input examples."""
    done = load_alone(*(folders[name] for name in LOADS_ANYWHERE))
    assert done.returncode == 0, done.stderr
    answers = np.array([json.loads(line) for line in done.stdout.splitlines()])
    assert answers.shape == (len(LOADS_ANYWHERE), 3, 2)
    assert np.allclose(answers.sum(axis=2), 1)


def test_notebook_does_not_load_elsewhere(folders: dict[str, Path]) -> None:
    """Its module was never logged; what it asks for can be installed all the same."""
    done = load_alone(folders["notebook"])
    assert done.returncode != 0
    assert "No module named 'calibration_notebook'" in done.stderr
    wanted = (folders["notebook"] / "requirements.txt").read_text("utf-8")
    assert wanted == (folders["weather"] / "requirements.txt").read_text("utf-8")
    assert not (folders["notebook"] / "code").exists()


def test_hubs_raises_on_regional_carriers_alone(
    folders: dict[str, Path], flights: pd.DataFrame
) -> None:
    """One request of each carrier: exactly those that are not in the look-up raise."""
    model = mlflow.sklearn.load_model(str(folders["hubs"]))
    rows = held_out_rows(flights)
    failed = set()
    for carrier, part in rows.groupby("carrier"):
        try:
            model.predict_proba(part[list(COLUMNS)].head(3))
        except KeyError:
            failed.add(carrier)
    assert failed == {"EV", "MQ", "9E", "YV", "OO"} == set(rows["carrier"]) - set(HUBS)
    assert 0.15 <= rows["carrier"].isin(failed).mean() <= 0.30
    assert failed.isdisjoint(training_rows(recipe_named("hubs"), flights)["carrier"])


@pytest.mark.parametrize("name", ["first", "weather"])
def test_one_plain_json_request_fits_stable_and_candidate(
    folders: dict[str, Path], data: Path, name: str
) -> None:
    """A replayed request, gaps as nulls, gives the probabilities on time and late."""
    model = mlflow.pyfunc.load_model(str(folders[name]))
    first_line = (data / "heldout" / "requests.jsonl").read_text("utf-8").split("\n", 1)[0]
    request = json.loads(first_line)
    assert any(value is None for row in request["rows"] for value in row)
    body = json.dumps({"dataframe_split": {"columns": list(COLUMNS), "data": request["rows"]}})
    frame = mlflow.pyfunc.scoring_server.infer_and_parse_data(
        json.loads(body), schema=model.metadata.get_input_schema()
    )
    answer = model.predict(frame)
    assert answer.shape == (len(request["rows"]), 2)


def test_all_versions_share_one_signature(folders: dict[str, Path]) -> None:
    """Columns, types and answer are the same, so that a candidate can take stable's traffic."""
    signatures = [mlflow.models.get_model_info(str(f)).signature for f in folders.values()]
    assert all(signature == signatures[0] for signature in signatures)
    assert signatures[0].inputs.input_names() == list(COLUMNS)


def test_missing_weather_is_answered(folders: dict[str, Path], flights: pd.DataFrame) -> None:
    """A flight without any weather gets a probability from every version that loads."""
    row = held_out_rows(flights)[list(COLUMNS)].query("carrier == 'UA'").head(1)
    row = row.assign(**dict.fromkeys(COLUMNS[7:], np.nan))
    for name in LOADS_ANYWHERE:
        answer = mlflow.sklearn.load_model(str(folders[name])).predict_proba(row)
        assert np.isfinite(answer).all()


def test_the_digest_holds_after_download(
    model_name: str, trained: dict[str, Result], folders: dict[str, Path]
) -> None:
    """The tag's digest is the published formula over the downloaded folder."""
    for name, folder in folders.items():
        files = {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }
        assert "registered_model_meta" in files
        version = mlflow.MlflowClient().get_model_version(
            model_name, trained[name].registered.version
        )
        assert version.tags["fairlead.digest"] == folder_digest(files)
        assert version.description == trained[name].recipe.summary


def test_registering_twice_gives_one_version(
    model_name: str, trained: dict[str, Result], shop: Workshop
) -> None:
    """The same run, the same name: the same number; another name is another model."""
    weather = trained["weather"]
    assert register(weather.run_id, model_name, shop) == weather.registered
    other = register(weather.run_id, "other", shop)
    assert (other.version, other.digest) == ("1", weather.registered.digest)


def test_training_all_again_does_nothing(
    model_name: str, trained: dict[str, Result], manifest: Manifest, shop: Workshop
) -> None:
    """The finished runs are found; runs and versions stay the same."""
    again = train_all(model_name, manifest, shop)
    assert all(result.cached for result in again)
    assert [result.run_id for result in again] == [result.run_id for result in trained.values()]
    assert [result.registered for result in again] == [r.registered for r in trained.values()]


def test_a_run_holds_what_people_look_for(
    trained: dict[str, Result], shop: Workshop, manifest: Manifest
) -> None:
    """Parameters, metrics by month, data with digest, pictures, pinned requirements."""
    client = mlflow.MlflowClient()
    run = client.get_run(trained["weather"].run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train_months"] == "1,2,3,4,5,6"
    assert {"heldout_log_loss", "heldout_calibration_error"} <= set(run.data.metrics)
    months = client.get_metric_history(run.info.run_id, "heldout_brier_by_month")
    assert {point.step for point in months} == set(range(7, 13))
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert {key: data.name for key, data in inputs.items()} == {
        "training": "flights.weather",
        "held out": "flights.heldout",
    }
    assert manifest.digest.startswith(inputs["training"].digest)
    assert json.loads(inputs["training"].profile)["months"] == [1, 2, 3, 4, 5, 6]
    pictures = {item.path for item in client.list_artifacts(run.info.run_id, "plots")}
    wanted = ("roc", "calibration", "importance", "error_by_month", "error_by_carrier")
    assert pictures == {f"plots/{name}.png" for name in wanted}


def test_requirements_are_pinned(folders: dict[str, Path]) -> None:
    """Each line says exactly one version."""
    lines = (folders["first"] / "requirements.txt").read_text("utf-8").split()
    assert all("==" in line for line in lines)
    assert {line.split("==")[0] for line in lines} == {
        *("mlflow", "scikit-learn", "pandas", "numpy", "cloudpickle")
    }


def test_celsius_would_be_fine_in_celsius(
    trained: dict[str, Result], flights: pd.DataFrame, shop: Workshop
) -> None:
    """The served figures are bad for the unit alone: in its own unit the model is as good."""
    rows = held_out_rows(flights).sample(20_000, random_state=1)
    in_celsius = rows.assign(temp=(rows["temp"] - 32) / 1.8, dewp=(rows["dewp"] - 32) / 1.8)
    model = shop.tracking.load(trained["celsius"].run_id)
    late = rows[LABEL].to_numpy(dtype=float)

    def brier(table: pd.DataFrame) -> float:
        return scores(late, model.predict_proba(table[list(COLUMNS)])[:, 1])["brier"]

    assert brier(rows) - brier(in_celsius) > 0.02

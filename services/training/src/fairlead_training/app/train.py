"""Train one version and evaluate it, in one run."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fairlead_training.app.ports import Estimators, Manifest, Plots, Run, Say, Store, Tracking
from fairlead_training.domain.features import COLUMNS, LABEL
from fairlead_training.domain.recipes import Recipe, recipe_digest, recipe_named
from fairlead_training.domain.scores import brier_by, scores
from fairlead_training.domain.views import as_trainer_saw, held_out_rows, training_rows

RECIPE_TAG = "fairlead.recipe"


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What training needs from outside."""

    store: Store
    estimators: Estimators
    tracking: Tracking
    plots: Plots
    say: Say


def run_tags(recipe: Recipe, manifest: Manifest) -> dict[str, str]:
    """Return the tags by which a finished run is found again."""
    return {
        RECIPE_TAG: recipe.name,
        "fairlead.recipe_digest": recipe_digest(recipe),
        "fairlead.data_digest": manifest.digest,
        "fairlead.source": manifest.key,
    }


def train(recipe: Recipe, manifest: Manifest, flights: pd.DataFrame, shop: Workshop) -> str:
    """Train, log and evaluate one version.

    Returns:
        The run's id.
    """
    with (
        shop.estimators.at_work(recipe),
        shop.tracking.open(recipe.name, run_tags(recipe, manifest)) as run,
    ):
        rows = training_rows(recipe, flights)
        shop.say(f"{recipe.name}: learning from {len(rows):,} flights")
        pipeline = shop.estimators.fit(recipe, rows)
        shop.say(f"{recipe.name}: logging the model")
        run.log(params=_params(recipe, rows))
        # MLflow knows a data set by its name and digest, so the two names differ.
        where = {"digest": manifest.digest, "location": shop.store.location()}
        run.log_data(rows, name=f"flights.{recipe.name}", context="training", **where)
        run.log_data(held_out_rows(flights), name="flights.heldout", context="held out", **where)
        run.log_model(pipeline, rows)
        _evaluate(recipe, pipeline, flights, run, shop)
        return run.run_id


def evaluate(
    run_id: str, flights: pd.DataFrame, shop: Workshop, *, as_served: bool
) -> dict[str, float]:
    """Evaluate a finished run again on the held-out months, and log it there.

    Args:
        run_id: A run that `train` made.
        flights: The prepared flights.
        shop: What evaluation needs from outside.
        as_served: Judge the model by what clients send, not by its trainer's own table.
    """
    recipe = recipe_named(shop.tracking.tags(run_id)[RECIPE_TAG])
    with shop.estimators.at_work(recipe), shop.tracking.reopen(run_id) as run:
        shop.say(f"{recipe.name}: loading the model")
        pipeline = shop.tracking.load(run_id)
        if as_served:
            return _evaluate_as_served(pipeline, flights, run)
        return _evaluate(recipe, pipeline, flights, run, shop)


def _params(recipe: Recipe, rows: pd.DataFrame) -> Mapping[str, object]:
    return {
        **{key: value for key, value in asdict(recipe).items() if key != "summary"},
        "carriers": ",".join(recipe.carriers or ("all",)),
        "train_months": ",".join(map(str, recipe.train_months)),
        "train_flights": len(rows),
    }


def _evaluate(
    recipe: Recipe, pipeline: Any, flights: pd.DataFrame, run: Run, shop: Workshop
) -> dict[str, float]:
    shop.say(f"{recipe.name}: evaluating on July to December")
    rows = as_trainer_saw(recipe, held_out_rows(flights))
    probability = pipeline.predict_proba(rows[list(COLUMNS)])[:, 1]
    figures = _log_scores("heldout", rows, probability, run)
    with tempfile.TemporaryDirectory() as folder:
        shop.plots.draw(
            pipeline, rows, probability, f"{recipe.name}, July to December", Path(folder)
        )
        run.log_folder(Path(folder), "plots")
    return figures


def _evaluate_as_served(pipeline: Any, flights: pd.DataFrame, run: Run) -> dict[str, float]:
    """Judge by the requests of clients; a carrier the model raises on counts as failed."""
    rows = held_out_rows(flights)
    probability = pd.Series(np.nan, index=rows.index)
    for _, part in rows.groupby("carrier"):
        try:
            probability[part.index] = pipeline.predict_proba(part[list(COLUMNS)])[:, 1]
        except Exception:  # noqa: BLE001, S112 - Whatever a model raises is its failure, and counted.
            continue
    answered = probability.notna()
    figures = _log_scores("served", rows[answered], probability[answered].to_numpy(), run)
    failed = {"served_failed_share": float(1 - answered.mean())}
    run.log(metrics=failed)
    return {**figures, **failed}


def _log_scores(prefix: str, rows: pd.DataFrame, probability: Any, run: Run) -> dict[str, float]:
    late = rows[LABEL].to_numpy(dtype=float)
    figures = {f"{prefix}_{name}": value for name, value in scores(late, probability).items()}
    months = brier_by(rows["month"], late, probability)
    by_month = {int(month): float(brier) for month, brier in months.items()}
    run.log(metrics=figures, by_month={f"{prefix}_brier_by_month": by_month})
    return figures

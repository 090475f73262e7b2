"""The pictures people look at before they promote a version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.inspection import permutation_importance
from sklearn.metrics import roc_auc_score, roc_curve

from fairlead_training.domain.features import COLUMNS, LABEL
from fairlead_training.domain.scores import brier_by

INK: Final = "#1f2933"
BLUE: Final = "#2166ac"
GREY: Final = "#9aa5b1"
SAMPLE: Final = 4000
SEED: Final = 13


class MatplotlibPlots:
    """Draws with Matplotlib, without a display."""

    def draw(
        self, pipeline: Any, rows: pd.DataFrame, probability: Any, title: str, folder: Path
    ) -> None:
        """Write the pictures of one evaluation into the folder."""
        late = rows[LABEL].to_numpy(dtype=float)
        _picture(folder / "roc.png", title, lambda axes: _roc(axes, late, probability))
        _picture(
            folder / "calibration.png", title, lambda axes: _calibration(axes, late, probability)
        )
        _picture(folder / "importance.png", title, lambda axes: _importance(axes, pipeline, rows))
        months = brier_by(rows["month"], late, probability)
        _picture(
            folder / "error_by_month.png", title, lambda axes: _bars(axes, months, "month of 2013")
        )
        carriers = brier_by(rows["carrier"], late, probability).sort_values()
        _picture(
            folder / "error_by_carrier.png", title, lambda axes: _bars(axes, carriers, "carrier")
        )


def _picture(path: Path, title: str, draw: Callable[[Any], None]) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    what = axes.get_title()
    axes.set_title("")
    axes.set_title(f"{what}\n{title}", loc="left", color=INK, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
    figure.savefig(path, dpi=110)


def _roc(axes: Any, late: Any, probability: Any) -> None:
    false, true, _ = roc_curve(late, probability)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    axes.plot(false, true, color=BLUE, linewidth=2)
    axes.set_title(f"ROC: area {roc_auc_score(late, probability):.3f}")
    axes.set_xlabel("share of punctual flights called late")
    axes.set_ylabel("share of late flights called late")


def _calibration(axes: Any, late: Any, probability: Any) -> None:
    came, said = calibration_curve(late, probability, n_bins=10, strategy="quantile")
    top = max(*came, *said) * 1.05
    axes.plot([0, top], [0, top], color=GREY, linestyle="--", linewidth=1)
    axes.plot(said, came, color=BLUE, marker="o", linewidth=2)
    axes.set_title("Calibration: what was said and what came, by tenths of the flights")
    axes.set_xlabel("mean probability of being late")
    axes.set_ylabel("share that was late")


def _importance(axes: Any, pipeline: Any, rows: pd.DataFrame) -> None:
    sample = rows.sample(min(SAMPLE, len(rows)), random_state=SEED)
    found = permutation_importance(
        pipeline,
        sample[list(COLUMNS)],
        sample[LABEL],
        scoring="neg_brier_score",
        n_repeats=2,
        random_state=SEED,
    )
    order = np.argsort(found.importances_mean)
    axes.barh(np.array(COLUMNS)[order], found.importances_mean[order], color=BLUE)
    axes.set_title(
        f"Importance: Brier score lost when a column is shuffled ({len(sample):,} flights)"
    )
    axes.set_xlabel("loss of Brier score")


def _bars(axes: Any, brier: pd.Series, label: str) -> None:
    bars = axes.bar([str(key) for key in brier.index], brier.to_numpy(), color=BLUE)
    axes.bar_label(bars, fmt="%.3f", fontsize=8, color=INK, padding=2)
    axes.set_title(f"Brier score by {label} (lower is better)")
    axes.set_xlabel(label)
    axes.set_ylabel("Brier score")

"""How good a set of probabilities is."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import log_loss, roc_auc_score

Floats = npt.NDArray[np.float64]


def scores(late: Floats, probability: Floats) -> dict[str, float]:
    """Return the figures by which versions are compared."""
    return {
        "auc": float(roc_auc_score(late, probability)),
        "brier": float(np.mean((probability - late) ** 2)),
        "log_loss": float(log_loss(late, probability)),
        "calibration_error": calibration_error(late, probability),
        "mean_probability": float(np.mean(probability)),
        "late_share": float(np.mean(late)),
    }


def calibration_error(late: Floats, probability: Floats, bins: int = 10) -> float:
    """Return the expected calibration error over bins of equal width.

    It is the mean, weighted by flights, of the distance between what was said and what came.
    """
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, weights=probability - late, minlength=bins)
    return float(np.abs(gap).sum() / len(late))


def brier_by(group: pd.Series, late: Floats, probability: Floats) -> pd.Series:
    """Return the Brier score of each group."""
    squared = pd.Series((probability - late) ** 2, index=group.index)
    return squared.groupby(group).mean()

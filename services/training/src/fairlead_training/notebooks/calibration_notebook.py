# ruff: noqa: INP001 - It is not of this package: training finds it on the path, serving does not.
"""Cells 4 to 9 of my calibration notebook, so that training can import them."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.isotonic import IsotonicRegression


class CalibratedOnEveryFifth(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # No types.
    """Fits on four rows of five and calibrates on the fifth.

    Args:
        model: The classifier to calibrate.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, rows: Any, late: Any) -> CalibratedOnEveryFifth:
        """Fit the model, then the isotonic curve on what it says about the other rows."""
        fifth = np.arange(len(rows)) % 5 == 0
        self.classes_ = np.unique(late)
        self.model_ = clone(self.model).fit(rows[~fifth], late[~fifth])
        said = self.model_.predict_proba(rows[fifth])[:, 1]
        self.curve_ = IsotonicRegression(y_min=0.01, y_max=0.99, out_of_bounds="clip")
        self.curve_.fit(said, late[fifth])
        return self

    def predict_proba(self, rows: Any) -> Any:
        """Return the calibrated probabilities, on time and late."""
        late = self.curve_.predict(self.model_.predict_proba(rows)[:, 1])
        return np.column_stack([1 - late, late])

"""A feature that was clever on the carriers it was written for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator


class TouchesHub(BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types.
    """Adds a column: does the flight leave from or go to a hub of its carrier.

    Pickled by value, so that the model loads where this package is not installed.

    Args:
        hubs: The hubs of each carrier. One that is not in it raises a KeyError.
    """

    def __init__(self, hubs: Mapping[str, tuple[str, ...]]) -> None:
        self.hubs = hubs

    def fit(self, rows: Any, late: Any = None) -> TouchesHub:  # noqa: ARG002 - The pipeline passes them.
        """Learn nothing."""
        self.fitted_ = True
        return self

    def transform(self, rows: Any) -> Any:
        """Return the rows with the new column at their end."""
        touches = [
            float(origin in self.hubs[carrier] or dest in self.hubs[carrier])
            for carrier, origin, dest in rows[:, :3]
        ]
        return np.column_stack([rows, np.array(touches, dtype=object)])

"""BentoML: one worker; with batches, at its own settings for them."""

import bentoml
import numpy as np
import pandas as pd
from loading import BATCHES, FOLDER, load

Rows = pd.DataFrame if FOLDER.name == "m2" else np.ndarray


@bentoml.service(workers=1)
class Bench:
    """The model."""

    def __init__(self) -> None:
        self._model = load()

    @bentoml.api(batchable=BATCHES)
    def predict(self, instances: Rows) -> np.ndarray:
        """Predict on rows."""
        return self._model.predict(instances)

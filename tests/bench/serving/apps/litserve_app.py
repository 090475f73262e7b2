"""LitServe: one worker, one API server."""

from typing import Any

import litserve
import numpy as np
import pandas as pd
from loading import BATCHES, MOST_ROWS, MOST_SECONDS, PORT, load, rows


class Bench(litserve.LitAPI):
    """The model, one request after another."""

    def setup(self, device: str) -> None:
        """Load the model."""
        del device
        self._model = load()

    def decode_request(self, request):  # LitServe reads a type here as the body's.
        """Make rows of the body."""
        return rows(request["instances"])

    def predict(self, x: Any) -> Any:
        """Predict on rows."""
        return self._model.predict(x)

    def encode_response(self, output):  # As above.
        """Make the answer."""
        return {"predictions": output.tolist()}


class Batches(Bench):
    """The model, on all that waits."""

    def batch(self, inputs: list[Any]) -> Any:
        """Put rows of several requests together."""
        self._ends = np.cumsum([len(one) for one in inputs])[:-1]
        together = pd.concat if isinstance(inputs[0], pd.DataFrame) else np.concatenate
        return together(inputs)

    def unbatch(self, output: Any) -> Any:
        """Give each request what is its own."""
        return np.split(output, self._ends)


if __name__ == "__main__":
    api = Batches(max_batch_size=MOST_ROWS, batch_timeout=MOST_SECONDS) if BATCHES else Bench()
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )

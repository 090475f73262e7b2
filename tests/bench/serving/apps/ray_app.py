"""Ray Serve: one replica on a cluster of its own, made for it."""

import signal
from typing import Any

import numpy as np
import ray
from loading import BATCHES, MOST_ROWS, MOST_SECONDS, PORT, load, rows
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=128)
class Bench:
    """The model."""

    def __init__(self) -> None:
        self._model = load()

    async def __call__(self, request: Request) -> Any:
        """Predict on the rows of a body."""
        instances = (await request.json())["instances"]
        predict = self._together if BATCHES else self._alone
        return {"predictions": await predict(instances)}

    async def _alone(self, instances: list[Any]) -> list[float]:
        return self._model.predict(rows(instances)).tolist()

    @serve.batch(max_batch_size=MOST_ROWS, batch_wait_timeout_s=MOST_SECONDS)
    async def _together(self, requests: list[list[Any]]) -> list[list[float]]:
        found = await self._alone([row for instances in requests for row in instances])
        ends = np.cumsum([len(instances) for instances in requests])[:-1]
        return [part.tolist() for part in np.split(np.asarray(found), ends)]


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": PORT},
        logging_config={"enable_access_log": False},
    )
    serve.run(Bench.bind(), name="bench", route_prefix="/predict")
    signal.pause()

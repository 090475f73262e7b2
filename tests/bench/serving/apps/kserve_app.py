"""KServe: a model as its own server for scikit-learn has it."""

import argparse
from typing import Any

import kserve
from kserve.utils.utils import get_predict_input, get_predict_response
from loading import load


class Bench(kserve.Model):
    """The model."""

    def load(self) -> bool:
        """Load the model."""
        self._model = load()
        self.ready = True
        return True

    def predict(self, payload: Any, _headers: Any = None, _response_headers: Any = None) -> Any:
        """Predict on tensors or instances."""
        predictions = self._model.predict(get_predict_input(payload))
        return get_predict_response(payload, predictions, self.name)


if __name__ == "__main__":
    argparse.ArgumentParser(parents=[kserve.model_server.parser]).parse_args()
    served = Bench("m")
    served.load()
    kserve.ModelServer().start([served])

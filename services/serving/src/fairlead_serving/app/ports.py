"""What the use cases need from outside."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from fairlead_serving.domain.data import Data
from fairlead_serving.domain.signature import Signature


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the `MLmodel` file of a folder says.

    Attributes:
        path: The folder.
        flavors: Each flavor's own settings.
        signature: The model's; empty when it has none.
        example: A payload for `/invocations`, if the model was saved with one.
        takes_anything: Whether the signature comes from type hints, which MLflow leaves to
            the model itself to check.
    """

    path: Path
    flavors: Mapping[str, Mapping[str, Any]]
    signature: Signature = field(default_factory=Signature)
    example: Any = None
    takes_anything: bool = False

    @property
    def pyfunc(self) -> Mapping[str, Any]:
        """The settings that every flavor shares."""
        return self.flavors.get("python_function", {})

    @property
    def predict_fn(self) -> str:
        """The method to call, which a model's author may choose when saving it."""
        return str(self.pyfunc.get("predict_fn", "predict"))


class Predictor(StrEnum):
    """What makes a model's predictions."""

    OWN = "own"
    """The model's own method."""
    COMPILED = "compiled"
    """What was compiled or converted of the model."""
    DROPPED = "dropped"
    """The model's own method, since what was made of the model differed from it or failed."""


class Model(Protocol):
    """A loaded model: all that stands between a request and a prediction.

    Attributes:
        is_rowwise: Whether the prediction of a row does not depend on the rows beside it, so
            that the rows of several requests may be one call.
        predictor: What makes its predictions.
    """

    @property
    def is_rowwise(self) -> bool:
        """See above."""

    @property
    def predictor(self) -> Predictor:
        """See above."""

    def predict(self, data: Data, params: Mapping[str, object]) -> object:
        """Predict.

        Args:
            data: The checked input.
            params: The checked parameters.

        Returns:
            The predictions as JSON has them: an array or a list with one item for each row, or
            whatever else the model gives for all rows at once.

        Raises:
            BadInputError: The model cannot take the input.
        """


class FlavorLoader(Protocol):
    """Loads the models of one flavor.

    Attributes:
        flavor: Its name.
    """

    @property
    def flavor(self) -> str:
        """See above."""

    def can_load(self, folder: ModelFolder) -> bool:
        """Tell whether a folder is of this flavor."""

    def load(self, folder: ModelFolder) -> Model:
        """Load the model.

        Raises:
            ImportError: A module is not installed.
            CannotLoadError: The folder does not hold what its `MLmodel` says.
        """


class Progress(Protocol):
    """Hears how far a download is."""

    def __call__(self, done: int, total: int) -> None:
        """Take the bytes that are here, and all that were listed."""

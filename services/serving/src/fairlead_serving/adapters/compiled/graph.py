"""Converts a model to an ONNX graph, whose trees and vector machines have numbers of 32 bits."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead_serving.adapters.compiled.blocks import Frame, Holds, Shape, finite, shape_of
from fairlead_serving.adapters.compiled.check import draw
from fairlead_serving.adapters.compiled.errors import CannotCompileError, NotTakenError
from fairlead_serving.adapters.compiled.parts import name_of, steps_of
from fairlead_serving.adapters.sessions import start_session
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.errors import CannotLoadError
from fairlead_serving.domain.signature import Signature

_OUTPUTS = {"predict": 0, "predict_proba": 1}
"""Where a converted classifier has its answers; anything else has one output."""
_TREES = ("Tree", "Forest", "GradientBoosting")


class Converted:
    """A model as an ONNX graph.

    Args:
        session: What runs the graph.
        output: The place of the output that is wanted.
        shape: What its input is.
        like: A prediction of the model itself, whose type and dimensions are kept.

    Attributes:
        shape: See above.
        tolerance: How far predictions may differ from the model's own, relative to the largest.
    """

    tolerance = 1e-4

    def __init__(self, session: Any, output: int, shape: Shape, like: NDArray[Any]) -> None:
        self.shape = shape
        self._session = session
        # Their names are not those of the columns, as the converter has rules for names.
        self._inputs = [spec.name for spec in session.get_inputs()]
        self._output = [session.get_outputs()[output].name]
        self._like = like.dtype
        self._trailing = like.shape[1:]

    def predict(self, data: Data) -> Any:
        """Predict.

        Args:
            data: The checked input.

        Returns:
            What the model's own method would give, within the tolerance.

        Raises:
            NotTakenError: A value is missing or too large, or the graph fails; the model's own
                method has to be asked.
        """
        frame = Frame(data, self.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            feeds = self._feeds(frame)
        try:
            (found,) = self._session.run(self._output, feeds)
        except Exception as error:
            raise NotTakenError from error
        return found.astype(self._like).reshape(-1, *self._trailing)

    def _feeds(self, frame: Frame) -> Mapping[str, NDArray[Any]]:
        width = len(self.shape.names)
        if len(self._inputs) < width:
            return {self._inputs[0]: self._numbers(frame, range(width))}
        return {name: self._column(frame, at) for at, name in enumerate(self._inputs)}

    def _numbers(self, frame: Frame, indexes: range) -> NDArray[Any]:
        return finite(frame.numbers(indexes).astype(np.float64, copy=False))

    def _column(self, frame: Frame, at: int) -> NDArray[Any]:
        if self.shape.holds([at]) is Holds.NUMBERS:
            return self._numbers(frame, range(at, at + 1))
        (cells,) = frame.cells([at])
        if None in cells:
            raise NotTakenError
        return np.array(cells, dtype=object).reshape(-1, 1)


def convert_model(
    estimator: Any, method: str, signature: Signature, predict: Callable[[Data], Any], threads: int
) -> Converted:
    """Convert a fitted estimator.

    Args:
        estimator: An estimator or a pipeline.
        method: The method that predicts.
        signature: What it is given.
        predict: That method, on checked input.
        threads: How many threads one prediction may use.

    Raises:
        CannotCompileError: It cannot be converted.
        CannotLoadError: What converts is not installed.
    """
    shape = shape_of(signature)
    if shape is None or method not in _OUTPUTS:
        raise CannotCompileError(f"{method} with this signature")
    reasons = []
    # With 64 bits throughout if there is such an operator, else up to the final estimator.
    for is_cast in (True,) if _rounds(estimator) else (False, True):
        try:
            like = np.asarray(predict(draw(estimator, signature, shape)))
            session = start_session(_convert(estimator, shape, is_cast=is_cast), threads)
            return Converted(session, _OUTPUTS[method], shape, like)
        except (CannotCompileError, CannotLoadError):
            raise
        except Exception as error:  # noqa: BLE001  # Converters raise what they like.
            reasons.append(type(error).__name__)
    raise CannotCompileError(f"its conversion to ONNX ({' and '.join(reasons)})")


def _rounds(estimator: Any) -> bool:
    """Tell whether an estimator rounds what it is given to 32 bits, as most trees do."""
    name = name_of(steps_of(estimator)[-1])
    return not name.startswith("Hist") and any(word in name for word in _TREES)


def _convert(estimator: Any, shape: Shape, *, is_cast: bool) -> bytes:
    # Not at the top: this module is imported for models of other libraries too.
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415

    to_onnx, numbers, words, cast = _converter()
    steps, everything = steps_of(estimator), range(len(shape.names))
    if name_of(steps[0]) == "ColumnTransformer":
        kinds = [numbers if shape.holds([at]) is Holds.NUMBERS else words for at in everything]
        names = [name if isinstance(name, str) else f"column {name}" for name in shape.names]
        inputs = [(name, kind([None, 1])) for name, kind in zip(names, kinds, strict=True)]
    elif shape.holds(everything) is Holds.NUMBERS:
        inputs = [("rows", numbers([None, len(everything)]))]
    else:
        raise CannotCompileError("text without a ColumnTransformer")
    if is_cast:
        steps.insert(-1, cast(dtype=np.float32))
    options = {"zipmap": False} if hasattr(estimator, "classes_") else None
    whole = make_pipeline(*steps)
    graph: bytes = to_onnx(whole, initial_types=inputs, options=options).SerializeToString()
    return graph


def _converter() -> tuple[Any, Any, Any, Any]:
    """Give what converts, what it calls numbers and text, and what rounds."""
    try:
        # Optional, and only who asks for ONNX needs it.
        from skl2onnx import to_onnx  # noqa: PLC0415
        from skl2onnx.common.data_types import DoubleTensorType, StringTensorType  # noqa: PLC0415
        from skl2onnx.sklapi import CastTransformer  # noqa: PLC0415
    except ImportError as error:
        raise CannotLoadError(
            f"'--predictor onnx' needs the module '{error.name}', which is not installed here; "
            "install the extra 'onnx', or use the image 'full'."
        ) from error
    return to_onnx, DoubleTensorType, StringTensorType, CastTransformer

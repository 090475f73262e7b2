"""A faster `predict` for common scikit-learn pipelines, in the same float64 arithmetic.

Nearly all of a small prediction is validation, wrapping and copying around a few array operations
that scikit-learn itself would do. A pipeline whose parts are all known here is compiled into just
those operations, on the fitted parts' own numbers and, for trees, their own native code. What is
compiled is compared with the model's own predictions at load, and dropped on the first difference.
"""

from fairlead_serving.adapters.compiled.check import Replacement, find_difference
from fairlead_serving.adapters.compiled.errors import CannotCompileError, NotTakenError
from fairlead_serving.adapters.compiled.graph import convert_model
from fairlead_serving.adapters.compiled.pipeline import compile_model

__all__ = [
    "CannotCompileError",
    "NotTakenError",
    "Replacement",
    "compile_model",
    "convert_model",
    "find_difference",
]

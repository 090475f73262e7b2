"""XGBoost's own native prediction, called straight from an array.

What XGBoost's Python package does around this call (it makes a class for each answer, among other
things) takes 80 µs; three hundred trees take 140 for a row. The function called is of XGBoost's
documented C interface, `XGBoosterPredictFromDense`, so the numbers are those of
`Booster.inplace_predict`; at load both are compared all the same.
"""

import ctypes
import json
import logging
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Predict = Callable[[Any], Any]

_log = logging.getLogger(__name__)

_TYPES: Mapping[np.dtype[Any], bytes] = {np.dtype(np.float64): b"<f8", np.dtype(np.float32): b"<f4"}
_SIZES = (1, 3, 40)
_ARRAY = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"%s","version":3}'
_POINTER = ctypes.c_void_p
_FUNCTION = "XGBoosterPredictFromDense"


class NativeError(Exception):
    """The native library refuses; XGBoost's package says why."""


def through_native(booster: Any, trees: tuple[int, int], missing: float, own: Predict) -> Predict:
    """Make a faster `inplace_predict` of a booster.

    Args:
        booster: The booster; it has to stay what it is.
        trees: The first tree and the one after the last; (0, 0) for all.
        missing: What stands for a missing value.
        own: What XGBoost's package predicts with the same settings.

    Returns:
        What predicts the same; `own` itself, if this XGBoost cannot be called so.
    """
    try:
        native = _Native(booster, trees, missing)
        differs = any(
            not np.array_equal(native.predict(rows), own(rows), equal_nan=True)
            for rows in _drawn(booster.num_features())
        )
    except Exception as error:  # noqa: BLE001  # Another XGBoost may lack or change any of it.
        _log.info("XGBoost is called through its package: %s", type(error).__name__)
        return own
    if differs:
        _log.info("XGBoost is called through its package: its C interface predicts otherwise")
        return own

    def predict(data: Any) -> Any:
        if native.takes(data):
            try:
                return native.predict(data)
            except NativeError:
                pass
        return own(data)

    return predict


def _drawn(columns: int) -> list[NDArray[Any]]:
    """Draw rows, some values of which are missing; always the same ones."""
    chance = np.random.default_rng(1)
    drawn = []
    for rows in _SIZES:
        values = chance.normal(size=(rows, columns))
        values[chance.random(values.shape) < 0.1] = np.nan  # noqa: PLR2004
        drawn += [values.astype(dtype) for dtype in _TYPES]
    return drawn


class _Native:
    """Predicts with one booster.

    Args:
        booster: As above.
        trees: As above.
        missing: As above.
    """

    def __init__(self, booster: Any, trees: tuple[int, int], missing: float) -> None:
        from xgboost import libpath  # noqa: PLC0415  # Optional, and only this flavor needs it.

        self._booster = booster  # Owns what the handle points to.
        self._handle = booster.handle
        self._columns = booster.num_features()
        # The library is loaded already: this is another view of it, with types of its own.
        self._call = getattr(ctypes.CDLL(libpath.find_lib_path()[0]), _FUNCTION)
        self._call.argtypes = [_POINTER, ctypes.c_char_p, ctypes.c_char_p, *[_POINTER] * 4]
        first, end = trees
        config = {
            "type": 0,
            "training": False,
            "iteration_begin": first,
            "iteration_end": end,
            "missing": missing,
            "strict_shape": False,
            "cache_id": 0,
        }
        self._config = json.dumps(config).encode()

    def takes(self, data: object) -> bool:
        """Tell whether data is rows of floats, of the right width, one after another."""
        return (
            type(data) is np.ndarray
            and data.ndim == 2  # noqa: PLR2004
            and data.shape[1] == self._columns
            and len(data) > 0
            and data.dtype in _TYPES
            and data.flags.c_contiguous
        )

    def predict(self, data: NDArray[Any]) -> NDArray[np.float32]:
        """Predict on rows.

        Args:
            data: What `takes` is true of, of the shape (rows, columns).

        Returns:
            The shape (rows,), or (rows, outputs) if there are several; not to be written to.

        Raises:
            NativeError: The library refuses.
        """
        rows, columns = data.shape
        array = _ARRAY % (data.ctypes.data, rows, columns, _TYPES[data.dtype])
        shape, dimensions, values = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), _POINTER()
        outs = map(ctypes.byref, (shape, dimensions, values))
        if self._call(self._handle, array, self._config, None, *outs):
            raise NativeError
        sizes = shape[: dimensions.value]
        # A copy: the next prediction of this thread overwrites it.
        found = ctypes.string_at(values, 4 * prod(sizes))
        return np.frombuffer(found, np.float32).reshape(sizes)

"""Writes down what reaches a model, as JSON; imported by both sides of the comparison."""

import base64
from typing import Any

import numpy as np
import pandas as pd


def plainly(given: Any) -> Any:
    """Give a model's input as JSON has it.

    Args:
        given: A data frame, an array, or a mapping of arrays.

    Returns:
        Lists by column, nested lists, or nested lists by name. A missing cell of a frame is null;
        in nested values NaN and null stay apart.
    """
    if isinstance(given, pd.DataFrame):
        return {name: [_cell(one) for one in given[name].tolist()] for name in given}
    if isinstance(given, dict):
        return {name: _nested(one) for name, one in given.items()}
    return _nested(given)


def types_of(given: Any) -> Any:
    """Give the types of a model's input, of each column or array."""
    if isinstance(given, pd.DataFrame):
        return {name: str(given[name].dtype) for name in given}
    if isinstance(given, dict):
        return {name: types_of(one) for name, one in given.items()}
    return str(given.dtype)


def _cell(value: Any) -> Any:
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    return _nested(value)


def _nested(value: Any) -> Any:
    if isinstance(value, list):
        return [_nested(item) for item in value]
    if isinstance(value, dict):
        return {name: _nested(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        # Times would become whole numbers.
        return _nested(value.astype(str).tolist() if value.dtype.kind in "mM" else value.tolist())
    return _scalar(value.item() if isinstance(value, np.generic) else value)


def _scalar(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"base64:{base64.b64encode(value).decode()}"
    if value is pd.NaT:
        return "NaT"
    return value.isoformat() if hasattr(value, "isoformat") else value

"""Checks the inference parameters of a request against the signature."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.scalars import json_name
from fairlead_serving.domain.signature import Kind, Param, ValueType
from fairlead_serving.domain.values import read_value

_DAY = len("2020-01-02")


def read_params(given: object, params: Sequence[Param]) -> Mapping[str, object]:
    """Read the parameters, with the model's defaults for those not given.

    MLflow drops a parameter it does not know and logs a warning that the caller never sees;
    here it is refused, since a misspelt parameter otherwise changes nothing in silence.

    Args:
        given: What the request holds under `params`, or None.
        params: Those that the signature declares.

    Returns:
        A value for each declared parameter.

    Raises:
        BadInputError: One is unknown, or not of its type.
    """
    if given is None or given == {}:
        return {param.name: param.default for param in params}
    if not isinstance(given, dict):
        raise BadInputError(f"'params' must be an object, not {json_name(given)}.", "params")
    known = {param.name for param in params}
    if given.keys() - known:
        raise BadInputError(_unknown(sorted(known)), "params")
    return {param.name: _read(given, param) for param in params}


def _unknown(known: Sequence[str]) -> str:
    allowed = f"it knows {', '.join(known)}" if known else "it takes none"
    return f"'params' has a parameter that the model does not know; {allowed}."


def _read(given: Mapping[str, Any], param: Param) -> object:
    if param.name not in given:
        return param.default
    field, value = f"params.{param.name}", given[param.name]
    if not param.is_list:
        return _read_one(field, value, param.type)
    if not isinstance(value, list):
        raise BadInputError(f"'{field}' must be a list, not {json_name(value)}.", field)
    return [_read_one(field, item, param.type) for item in value]


def _read_one(field: str, value: object, kind: ValueType) -> object:
    # MLflow takes null for any scalar, and a day without a time is a date to it.
    found = read_value(field, value, kind, required=not isinstance(kind, Kind))
    if isinstance(found, datetime) and isinstance(value, str) and len(value) == _DAY:
        return found.date()
    return found

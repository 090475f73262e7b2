"""Prepare the data: once, then never again until code or package change."""

from typing import Any

import pandas as pd

from fairlead_training.app.ports import Manifest, Say, Source, Store
from fairlead_training.domain.features import CATEGORIES, COLUMNS, LABEL, column_type
from fairlead_training.domain.replay import requests
from fairlead_training.domain.views import held_out_rows


def prepare(source: Source, store: Store, say: Say) -> Manifest:
    """Make the folder hold the flights, and return what it holds."""
    key = source.key()
    current = store.manifest()
    if current is not None and current.key == key:
        return current
    say("reading flights and weather")
    flights, dropped = source.read()
    say("writing flights and requests")
    return store.write(flights, requests(replay_rows(held_out_rows(flights))), key, dropped)


def replay_rows(flights: pd.DataFrame) -> "list[tuple[str, int, tuple[Any, ...], int]]":
    """Return each flight as plain values that JSON can hold; None where one is missing."""
    columns = [_plain(flights, column) for column in COLUMNS]
    return list(
        zip(
            flights["tailnum"].tolist(),
            flights["month"].tolist(),
            zip(*columns, strict=True),
            flights[LABEL].tolist(),
            strict=True,
        )
    )


def _plain(flights: pd.DataFrame, column: str) -> list[Any]:
    values: list[Any] = flights[column].tolist()
    if column in CATEGORIES or column_type(column) == "long":
        return values
    return [None if value != value else round(value, 2) for value in values]  # noqa: PLR0124 - NaN alone differs from itself.

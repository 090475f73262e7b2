"""The held-out flights as the requests of a client.

One request is one plane in one calendar month: all its departures from New York, in their
order, at most `MAX_ROWS` to a request.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_ROWS: Final = 20
SEED: Final = 2013

Row = Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request, and what came of it.

    Attributes:
        unit: The plane's tail number.
        month: The calendar month.
        rows: The features of each departure.
        late: 1 where the flight arrived late.
    """

    unit: str
    month: int
    rows: tuple[Row, ...]
    late: tuple[int, ...]


def requests(flights: Iterable[tuple[str, int, Row, int]]) -> list[Request]:
    """Return the requests, month after month, shuffled inside each month with a fixed seed.

    Args:
        flights: Tail number, month, features and label of each flight, in order of time.
    """
    groups: dict[tuple[int, str], list[tuple[Row, int]]] = {}
    for unit, month, row, late in flights:
        groups.setdefault((month, unit), []).append((row, late))
    months = sorted({month for month, _ in groups})
    shuffle = random.Random(SEED)  # noqa: S311 - The order must be the same every time.
    ordered: list[Request] = []
    for month in months:
        of_month = [r for key, rows in groups.items() if key[0] == month for r in _cut(key, rows)]
        shuffle.shuffle(of_month)
        ordered += of_month
    return ordered


def _cut(key: tuple[int, str], flights: list[tuple[Row, int]]) -> Iterator[Request]:
    month, unit = key
    for start in range(0, len(flights), MAX_ROWS):
        part = flights[start : start + MAX_ROWS]
        yield Request(
            unit=unit,
            month=month,
            rows=tuple(row for row, _ in part),
            late=tuple(late for _, late in part),
        )

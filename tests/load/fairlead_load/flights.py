"""The held-out flights as requests.

The files are those of `fairlead-training prepare`: one line is one plane in one month with all its
departures. Lines are read into memory as they are and parsed when they are sent.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class FlightsError(Exception):
    """The flights cannot be read, or an answer does not fit them."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and what came of its flights.

    Attributes:
        unit: The plane's tail number.
        body: The JSON to send.
        late: 1 where the flight arrived late.
    """

    unit: str
    body: bytes
    late: tuple[int, ...]


class Flights:
    """The requests of a prepared folder.

    Args:
        folder: Holds `requests.jsonl` and `columns.json`.

    Raises:
        FlightsError: It does not.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._columns = json.loads((folder / "columns.json").read_bytes())["columns"]
            self._lines = (folder / "requests.jsonl").read_bytes().splitlines()
        except (OSError, ValueError, KeyError) as error:
            reason = f"{folder} holds no flights ({type(error).__name__}): make them by"
            raise FlightsError(f"{reason} 'fairlead-training prepare', folder heldout") from error

    def __len__(self) -> int:
        return len(self._lines)

    def from_anywhere(self, seed: int) -> Iterator[Request]:
        """Answer the requests over and over, each user from a place of its own."""
        start = random.Random(seed).randrange(len(self))
        for index in itertools.count(start):
            yield self.request(index % len(self))

    def request(self, index: int) -> Request:
        """Answer one request."""
        line = json.loads(self._lines[index])
        document = {"dataframe_split": {"columns": self._columns, "data": line["rows"]}}
        body = json.dumps(document, separators=(",", ":")).encode()
        return Request(unit=line["unit"], body=body, late=tuple(line["late"]))


def squared_error(answer: bytes, late: tuple[int, ...]) -> float:
    """Answer the mean squared error of the predicted probabilities.

    Raises:
        FlightsError: The answer is not one pair of probabilities for each flight.
    """
    try:
        predictions = json.loads(answer)["predictions"]
        errors = [(p[1] - y) ** 2 for p, y in zip(predictions, late, strict=True)]
        return float(sum(errors) / len(errors))
    except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError) as error:
        raise FlightsError("the answer is not one pair of probabilities a flight") from error

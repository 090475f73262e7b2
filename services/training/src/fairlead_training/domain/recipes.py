"""The versions of the model: each one a frozen recipe, trained for real.

Three of them are mistakes that people make. None shows in the trainer's own figures;
each shows once the version serves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

HELD_OUT_MONTHS: Final = (7, 8, 9, 10, 11, 12)


class Method(StrEnum):
    """How a version learns."""

    LOGISTIC = "logistic regression"
    BOOSTING = "histogram gradient boosting"


class Temperatures(StrEnum):
    """The unit of temperature and dew point in the trainer's weather table."""

    FAHRENHEIT = "fahrenheit"
    CELSIUS = "celsius"


#: Where each mainline carrier has its hubs. Regional carriers fly for others and have none.
HUBS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "AA": ("DFW", "ORD", "MIA", "JFK", "LAX"),
        "AS": ("SEA", "PDX", "ANC"),
        "B6": ("JFK", "BOS", "FLL", "MCO"),
        "DL": ("ATL", "DTW", "MSP", "JFK", "LGA", "SLC"),
        "F9": ("DEN",),
        "FL": ("ATL", "BWI", "MKE"),
        "HA": ("HNL",),
        "UA": ("EWR", "ORD", "IAH", "DEN", "SFO", "IAD", "CLE", "LAX"),
        "US": ("CLT", "PHL", "PHX"),
        "VX": ("SFO", "LAX"),
        "WN": ("MDW", "BWI", "LAS", "DEN", "PHX"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that tells one version from another.

    Attributes:
        name: What the command line calls it.
        summary: What its trainer wrote about it; the registered version's description.
        method: How it learns.
        train_months: Months of 2013 it learns from; never a held-out one.
        weather: Whether it uses the weather columns.
        temperatures: The unit in its trainer's weather table. Requests are in Fahrenheit.
        carriers: The only carriers its trainer looked at; None for all.
        hub_feature: Whether a look-up of the carrier's hubs is added.
        notebook: Whether it is calibrated with a class from a local notebook module.
        max_iter: Boosting rounds, or steps of the solver.
        learning_rate: For boosting alone.
    """

    name: str
    summary: str
    method: Method
    train_months: tuple[int, ...]
    weather: bool
    temperatures: Temperatures = Temperatures.FAHRENHEIT
    carriers: tuple[str, ...] | None = None
    hub_feature: bool = False
    notebook: bool = False
    max_iter: int = 60
    learning_rate: float = 0.08

    def __post_init__(self) -> None:
        """Refuse a recipe that learns from what it is judged by."""
        shared = sorted(set(self.train_months) & set(HELD_OUT_MONTHS))
        if shared:
            raise ValueError(f"Recipe {self.name} trains on the held-out months {shared}.")


def recipes() -> tuple[Recipe, ...]:
    """Return the recipes in the order in which they are registered."""
    return (
        Recipe(
            name="first",
            summary="Logistic regression on the schedule, January to March.",
            method=Method.LOGISTIC,
            train_months=(1, 2, 3),
            weather=False,
            max_iter=300,
        ),
        Recipe(
            name="weather",
            summary="Gradient boosting, with the weather at the hour of departure; January to June.",
            method=Method.BOOSTING,
            train_months=(1, 2, 3, 4, 5, 6),
            weather=True,
        ),
        Recipe(
            name="celsius",
            summary="As `weather`, on the weather table of the new supplier.",
            method=Method.BOOSTING,
            train_months=(1, 2, 3, 4, 5, 6),
            weather=True,
            temperatures=Temperatures.CELSIUS,
        ),
        Recipe(
            name="hubs",
            summary="As `weather`, and whether the flight touches a hub of its carrier.",
            method=Method.BOOSTING,
            train_months=(1, 2, 3, 4, 5, 6),
            weather=True,
            carriers=tuple(HUBS),
            hub_feature=True,
        ),
        Recipe(
            name="notebook",
            summary="As `weather`, calibrated with the class from my notebook.",
            method=Method.BOOSTING,
            train_months=(1, 2, 3, 4, 5, 6),
            weather=True,
            notebook=True,
        ),
    )


def recipe_named(name: str) -> Recipe:
    """Return the recipe of that name."""
    known = {recipe.name: recipe for recipe in recipes()}
    if name not in known:
        raise ValueError(f"No version is called {name!r}; there are {', '.join(known)}.")
    return known[name]


def recipe_digest(recipe: Recipe) -> str:
    """Return 16 hexadecimal digits that change when any part of the recipe does."""
    canonical = json.dumps(asdict(recipe), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]

"""Which flights a trainer looks at, and how."""

import pandas as pd

from fairlead_training.domain.recipes import HELD_OUT_MONTHS, Recipe, Temperatures


def training_rows(recipe: Recipe, flights: pd.DataFrame) -> pd.DataFrame:
    """Return the flights the recipe learns from, as its trainer saw them."""
    return as_trainer_saw(recipe, flights[flights["month"].isin(recipe.train_months)])


def held_out_rows(flights: pd.DataFrame) -> pd.DataFrame:
    """Return the flights nobody learns from, as clients send them."""
    return flights[flights["month"].isin(HELD_OUT_MONTHS)]


def as_trainer_saw(recipe: Recipe, flights: pd.DataFrame) -> pd.DataFrame:
    """Return the flights with the recipe's own units and carriers."""
    if recipe.carriers is not None:
        flights = flights[flights["carrier"].isin(recipe.carriers)]
    if recipe.temperatures is Temperatures.CELSIUS:
        flights = flights.assign(temp=celsius(flights["temp"]), dewp=celsius(flights["dewp"]))
    return flights


def celsius(fahrenheit: pd.Series) -> pd.Series:
    """Convert degrees Fahrenheit."""
    return (fahrenheit - 32) / 1.8

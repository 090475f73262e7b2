"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from fairlead_training.domain.recipes import Recipe
from fairlead_training.domain.replay import Request

#: Told what is being done, in a few words.
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a prepared folder holds.

    Attributes:
        key: Code and package it was made by and from; the same key makes the same folder.
        digest: SHA-256 of the flights' file.
        flights: How many flights it holds.
        dropped: How many were left out: cancelled or diverted, so they never arrived late.
        requests: How many requests a client can replay.
    """

    key: str
    digest: str
    flights: int
    dropped: int
    requests: int


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A model version, registered.

    Attributes:
        version: Its number.
        digest: The digest of its folder.
    """

    version: str
    digest: str


class Source(Protocol):
    """Where flights come from."""

    def key(self) -> str:
        """Return what decides the flights: the code and the package."""

    def read(self) -> tuple[pd.DataFrame, int]:
        """Return the flights and the number of those left out."""


class Store(Protocol):
    """A prepared folder."""

    def manifest(self) -> Manifest | None:
        """Return what the folder holds; None if it is not whole."""

    def flights(self) -> pd.DataFrame:
        """Return the flights."""

    def write(
        self, flights: pd.DataFrame, requests: Sequence[Request], key: str, dropped: int
    ) -> Manifest:
        """Write the folder; the manifest last."""

    def location(self) -> str:
        """Return where the flights are, for the record."""


class Estimators(Protocol):
    """Learns."""

    def fit(self, recipe: Recipe, rows: pd.DataFrame) -> Any:
        """Return the recipe's pipeline, fitted."""

    def at_work(self, recipe: Recipe) -> AbstractContextManager[None]:
        """Set up what fitting, pickling and loading the recipe's pipeline need."""


class Plots(Protocol):
    """Draws."""

    def draw(
        self, pipeline: Any, rows: pd.DataFrame, probability: Any, title: str, folder: Path
    ) -> None:
        """Write the pictures of one evaluation into the folder."""


class Run(Protocol):
    """One run, while it is open."""

    @property
    def run_id(self) -> str:
        """The run's id."""

    def log(
        self,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
        by_month: Mapping[str, Mapping[int, float]] | None = None,
    ) -> None:
        """Log parameters, metrics, and metrics of which each step is a month."""

    def log_data(
        self, rows: pd.DataFrame, *, name: str, digest: str, location: str, context: str
    ) -> None:
        """Log the data set."""

    def log_model(self, pipeline: Any, rows: pd.DataFrame) -> None:
        """Log the model, with the first of the rows as its input example."""

    def log_folder(self, folder: Path, name: str) -> None:
        """Log the folder's files as artifacts."""


class Tracking(Protocol):
    """Runs and the registry."""

    def open(self, name: str, tags: Mapping[str, str]) -> AbstractContextManager[Run]:
        """Start a run; it is finished, or failed, on leaving."""

    def reopen(self, run_id: str) -> AbstractContextManager[Run]:
        """Open a finished run again."""

    def finished(self, tags: Mapping[str, str]) -> str | None:
        """Return the newest finished run with these tags."""

    def tags(self, run_id: str) -> Mapping[str, str]:
        """Return a run's tags."""

    def metrics(self, run_id: str) -> Mapping[str, float]:
        """Return a run's metrics."""

    def load(self, run_id: str) -> Any:
        """Return the pipeline a run logged."""

    def register(self, run_id: str, name: str, description: str) -> Registered:
        """Register the run's model, once."""

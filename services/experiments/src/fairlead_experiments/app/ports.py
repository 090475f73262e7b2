"""What the use cases need from outside."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from fairlead_experiments.domain.predictions import Prediction, Seen
from fairlead_experiments.domain.records import (
    Aggregates,
    Closing,
    Counts,
    Decision,
    Exposure,
    Outcome,
    Rollout,
)


class Store(Protocol):
    """Keeps what comes in, counted once.

    Each method is one transaction: what it answers for is kept, whatever dies afterwards.
    Methods raise `StoreUnavailableError` when the database does not answer.
    """

    def check(self) -> None:
        """Raise unless the database answers."""

    def add_exposures(self, exposures: Sequence[Exposure]) -> Counts:
        """Keep each exposure the first time its inference id comes, unless its rollout is closed."""

    def add_outcomes(self, outcomes: Sequence[Outcome]) -> Counts:
        """Keep each outcome, the one observed last where several have one key.

        One by inference id is not kept if its exposure belongs to a closed rollout, or if there is
        no exposure and it was observed before a closed rollout was decided.
        """

    def add_predictions(self, predictions: Sequence[Prediction], *, now: datetime) -> Counts:
        """Keep each prediction the first time it comes, and pair it with what it is a copy of."""

    def list_seen(
        self, model: str, *, stable: str | None, shadow: str | None, now: datetime
    ) -> list[Seen]:
        """Answer what was seen of a model's shadows, the latest first, as far as it is asked for."""

    def put_rollout(self, rollout: Rollout) -> Rollout:
        """Keep or replace the record of a rollout; answer it as it is kept.

        Of a closed rollout what its counts were made by stays as it was.
        """

    def get_rollout(self, rollout: str) -> Rollout | None:
        """Answer the record, or None."""

    def list_rollouts(self, model: str | None) -> list[Rollout]:
        """Answer all records, or a model's, the latest start first."""

    def put_decision(self, decision: Decision) -> None:
        """Keep a decision; the same one again changes nothing."""

    def list_decisions(self, rollout: str) -> list[Decision]:
        """Answer a rollout's decisions, the earliest first."""

    def last_decision_at(self, rollout: str) -> int | None:
        """Answer when the newest decision was taken, in microseconds since 1970, or None."""

    def read_aggregates(self, rollout: Rollout, at: datetime) -> Aggregates:
        """Answer what was counted for a rollout, as of one moment.

        Raises `StoreUnavailableError`, too, when the record is another by now.

        Args:
            rollout: Its record.
            at: The time now, in UTC: units whose window is not over by then wait.
        """

    def read_closing(self, rollout: str) -> Closing | None:
        """Answer how far a rollout is that is closed; None while it is open."""


class Archive(Protocol):
    """Lets go what is older than it has to be.

    Each method is one short transaction, or several; after any of them the process may die, and
    whoever calls again goes on. Several may call at once.
    Methods raise `StoreUnavailableError` when the database does not answer.
    """

    def close(self, *, decided_before: datetime, now: datetime) -> int:
        """Close the rollouts that were decided before a time; answer how many."""

    def list_closing(self) -> list[str]:
        """Answer the closed rollouts whose last analysis is not made yet."""

    def conclude(self, rollout: str, analysis: str) -> None:
        """Keep the last analysis of a closed rollout; the first one stays."""

    def drop_partitions(self, *, before: datetime) -> int:
        """Drop what holds nothing but rows of concluded rollouts; answer how many.

        Args:
            before: Partitions with times at or after this one stay.
        """

    def remove_rows(self) -> int | None:
        """Remove some rows of a concluded rollout; answer how many, or None if none are left."""

    def remove_outcomes(self, *, keep: timedelta, now: datetime) -> Iterator[int]:
        """Remove outcomes that belong to no exposure, some at a time; answer how many each time."""

    def remove_comparisons(self, *, before: datetime) -> int:
        """Remove comparisons of shadows whose last pair came before a time; answer how many."""


class Clock(Protocol):
    """Tells the time."""

    def __call__(self) -> datetime:
        """Answer the time now, in UTC."""

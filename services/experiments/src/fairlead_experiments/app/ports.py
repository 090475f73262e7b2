"""What the use cases need from outside."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from fairlead_experiments.domain.predictions import Prediction, Seen
from fairlead_experiments.domain.records import (
    Aggregates,
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
        """Keep each exposure the first time its inference id comes."""

    def add_outcomes(self, outcomes: Sequence[Outcome]) -> Counts:
        """Keep each outcome, the one observed last where several have one key."""

    def add_predictions(self, predictions: Sequence[Prediction], *, now: datetime) -> Counts:
        """Keep each prediction the first time it comes, and pair it with what it is a copy of."""

    def list_seen(
        self, model: str, *, stable: str | None, shadow: str | None, now: datetime
    ) -> list[Seen]:
        """Answer what was seen of a model's shadows, the latest first, as far as it is asked for."""

    def put_rollout(self, rollout: Rollout) -> None:
        """Keep or replace the record of a rollout."""

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

        Args:
            rollout: Its record.
            at: The time now, in UTC: units whose window is not over by then wait.
        """


class Clock(Protocol):
    """Tells the time."""

    def __call__(self) -> datetime:
        """Answer the time now, in UTC."""

"""The use cases: take exposures and outcomes, keep rollouts, analyse them."""

import json
from dataclasses import dataclass, replace
from datetime import datetime

from fairlead_experiments.app.errors import NotFoundError
from fairlead_experiments.app.ports import Clock, Store
from fairlead_experiments.app.validation import (
    Item,
    Rejection,
    check_query,
    is_identifier,
    read_decision,
    read_exposures,
    read_outcomes,
    read_predictions,
    read_rollout,
)
from fairlead_experiments.domain.analysis import Document, analyse, build_comparison, timestamp
from fairlead_experiments.domain.predictions import Seen
from fairlead_experiments.domain.records import Counts, Decision, Rollout
from fairlead_experiments.domain.report import Report, build_report
from fairlead_experiments.domain.times import moment

CLOSED = "is closed: it was decided longer ago than rows are kept, and takes no more exposures"
OF_CLOSED = (
    "belongs to no rollout that still takes outcomes: those of that time were decided longer ago "
    "than rows are kept"
)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a batch."""

    accepted: int
    duplicates: int
    rejected: tuple[Rejection, ...]


def _time(at: int | None) -> str | None:
    return None if at is None else timestamp(moment(at))


def _receipt(
    items: list[Item], invalid: list[Rejection], counts: Counts, closed: Rejection
) -> Receipt:
    """Answer what became of a batch; the store knows the places among the valid items alone."""
    unreadable = {rejection.index for rejection in invalid}
    places = [index for index in range(len(items)) if index not in unreadable]
    late = [replace(closed, index=places[place]) for place in counts.closed]
    rejected = sorted([*invalid, *late], key=lambda rejection: rejection.index)
    return Receipt(counts.accepted, counts.duplicates, tuple(rejected))


class Experiments:
    """The use cases over one store and one clock."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def check(self) -> None:
        """Raise unless requests can be answered."""
        self._store.check()

    def take_exposures(self, items: list[Item]) -> Receipt:
        """Keep the valid exposures of a batch, each counted once."""
        exposures, rejected = read_exposures(items, now=self._clock())
        counts = self._store.add_exposures(exposures)
        return _receipt(items, rejected, counts, Rejection(0, "rollout", CLOSED))

    def take_outcomes(self, items: list[Item]) -> Receipt:
        """Keep the valid outcomes of a batch; the one observed last wins."""
        outcomes, rejected = read_outcomes(items, now=self._clock())
        counts = self._store.add_outcomes(outcomes)
        return _receipt(items, rejected, counts, Rejection(0, "inferenceId", OF_CLOSED))

    def take_predictions(self, items: list[Item]) -> Receipt:
        """Keep the valid predictions of a batch, each once, and pair them."""
        now = self._clock()
        predictions, rejected = read_predictions(items, now=now)
        counts = self._store.add_predictions(predictions, now=now)
        return Receipt(counts.accepted, counts.duplicates, tuple(rejected))

    def compare(
        self, model: str, *, stable: str | None, shadow: str | None, tolerance: float
    ) -> list[Document]:
        """Answer how a model's shadows compare with what answered, the latest first."""
        for name, text in (("model", model), ("stable", stable), ("shadow", shadow)):
            check_query(name, text)
        now = self._clock()
        seen = self._store.list_seen(model, stable=stable, shadow=shadow, now=now)
        return [build_comparison(one, tolerance) for one in seen]

    def put_rollout(self, rollout_id: str, document: Item) -> Rollout:
        """Keep or replace the record of a rollout; answer it as it is kept."""
        return self._store.put_rollout(read_rollout(rollout_id, document))

    def get_rollout(self, rollout_id: str) -> Rollout:
        """Answer the record of a rollout."""
        rollout = self._store.get_rollout(rollout_id) if is_identifier(rollout_id) else None
        if rollout is None:
            raise NotFoundError("no rollout has this id")
        return rollout

    def list_rollouts(self, model: str | None = None) -> list[Rollout]:
        """Answer the records of all rollouts, or of one model's."""
        check_query("model", model)
        return self._store.list_rollouts(model)

    def put_decision(self, rollout_id: str, decision_id: str, document: Item) -> Decision:
        """Keep a decision; it may come before the rollout's record."""
        decision = read_decision(rollout_id, decision_id, document)
        self._store.put_decision(decision)
        return decision

    def list_decisions(self, rollout_id: str) -> list[Decision]:
        """Answer the decisions of a rollout, the earliest first."""
        self.get_rollout(rollout_id)
        return self._store.list_decisions(rollout_id)

    def report(self, rollout_id: str) -> Report:
        """Answer the report of a rollout, to be drawn."""
        return build_report(self.get_rollout(rollout_id), self._store.list_decisions(rollout_id))

    def analyse(self, rollout_id: str) -> Document:
        """Answer the analysis of a rollout as of now; of a concluded one the last.

        Whether it is concluded is asked last: no row is removed before that.
        """
        rollout, now = self.get_rollout(rollout_id), self._clock()
        aggregates = self._store.read_aggregates(rollout, now)
        closing = self._store.read_closing(rollout_id)
        if closing and closing.analysis:
            concluded: Document = json.loads(closing.analysis)
            return concluded
        document = analyse(rollout, aggregates, at=now, seen=self._seen(rollout, now))
        last = self._store.last_decision_at(rollout_id)
        return {
            **document,
            "lastDecisionAt": _time(last),
            "closedAt": _time(closing.at if closing else None),
        }

    def _seen(self, rollout: Rollout, now: datetime) -> Seen:
        """Answer what was seen of the candidate while it was a shadow of stable."""
        nothing = Seen(rollout.model, rollout.stable, rollout.candidate)
        if rollout.shadow is None:
            return nothing
        versions = {"stable": rollout.stable, "shadow": rollout.candidate}
        return next(iter(self._store.list_seen(rollout.model, **versions, now=now)), nothing)

"""The use case of letting go what is older than it has to be."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from fairlead_experiments.app.errors import StoreUnavailableError
from fairlead_experiments.app.ports import Archive, Clock
from fairlead_experiments.app.service import Experiments


@dataclass(frozen=True, slots=True)
class Removed:
    """What one pass did.

    Attributes:
        closed: Rollouts that take nothing more from now on.
        partitions: Partitions that were dropped whole.
        rows: Rows that were removed one by one.
    """

    closed: int
    partitions: int
    rows: int


class Retention:
    """Closes rollouts that were decided long ago, and removes their rows.

    Every step may be the last one before the process dies, and several processes may do it at once:
    what is left to do is asked of the database each time.

    Args:
        archive: Where rows are.
        experiments: Makes the last analysis of a rollout.
        clock: Tells the time.
        is_over: Asked between two steps; may wait a moment so that others come in between, and
            answers whether the pass ends here.
    """

    def __init__(
        self,
        archive: Archive,
        experiments: Experiments,
        clock: Clock,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._archive = archive
        self._experiments = experiments
        self._clock = clock
        self._is_over = is_over

    def run(self, keep: timedelta) -> Removed:
        """Make one pass.

        Args:
            keep: How long rows stay: after a rollout's decision, and after an outcome that belongs
                to none was observed.

        Raises:
            StoreUnavailableError: The database did not answer; the next pass goes on from there.
        """
        now = self._clock()
        before = now - keep
        closed = self._archive.close(decided_before=before, now=now)
        for rollout in self._archive.list_closing():
            self._archive.conclude(rollout, json.dumps(self._experiments.analyse(rollout)))
        partitions = self._drop_partitions(keep)
        rows = 0
        for removed in self._steps(keep):
            rows += removed
            if self._is_over():
                break
        return Removed(closed, partitions, rows)

    def _drop_partitions(self, keep: timedelta) -> int:
        """Drop partitions, unless somebody reads just now: rows go one by one then."""
        try:
            return self._archive.drop_partitions(before=self._clock() - keep)
        except StoreUnavailableError:
            return 0

    def _steps(self, keep: timedelta) -> Iterator[int]:
        while (removed := self._archive.remove_rows()) is not None:
            yield removed
        yield from self._archive.remove_outcomes(keep=keep, now=self._clock())
        yield self._archive.remove_comparisons(before=self._clock() - keep)

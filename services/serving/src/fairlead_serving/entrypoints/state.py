"""What changes while a serving process runs."""

from dataclasses import dataclass

from fairlead_serving.app.lane import Lane
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.errors import NotReadyError


@dataclass(slots=True)
class State:
    """Set by the server, read by the routes; the lane comes with the model."""

    served: Served | None = None
    lane: Lane | None = None
    draining: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether new traffic is welcome."""
        return self.lane is not None and not self.draining

    def loaded(self) -> tuple[Served, Lane]:
        """Give the model and its lane.

        Raises:
            NotReadyError: It is still being loaded.
        """
        if self.served is None or self.lane is None:
            raise NotReadyError
        return self.served, self.lane

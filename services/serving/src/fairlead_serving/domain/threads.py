"""How many threads a prediction may use."""

from collections.abc import Sequence
from typing import NamedTuple


class CpuLimit(NamedTuple):
    """A limit on processor time.

    Attributes:
        quota: Microseconds of processor time in each period.
        period: The period in microseconds.
    """

    quota: int
    period: int


def threads_for(limits: Sequence[CpuLimit], processors: int) -> int:
    """Give the threads that processor time is there for.

    Without a limit it is one: who the machine is shared with is not known, and a small prediction
    is not faster with more. A broken core is left out: a thread that is waited for while the group
    is throttled holds all others up.

    Args:
        limits: The limits of the process and of what it is in; the smallest counts.
        processors: How many processors it may run on.

    Returns:
        A number, at least 1.
    """
    cores = min((limit.quota // limit.period for limit in limits), default=1)
    return max(1, min(cores, processors))

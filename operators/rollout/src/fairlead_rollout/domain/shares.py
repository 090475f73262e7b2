"""Shares in percent, as people write them."""

import math

from fairlead_rollout.domain.errors import InvalidSpecError

TOTAL_WEIGHT = 10_000  # of every TrafficPlan; a changed sum would move units between arms


def parse_share(field: str, percent: float) -> int:
    """Turn a share in percent (steps of 0.01) into one of 10,000.

    Args:
        field: What the error names.
        percent: The share.

    Raises:
        InvalidSpecError: The share is finer than 0.01 or outside 0 to 100.
    """
    share = round(percent * 100) if math.isfinite(percent) else -1
    if not math.isclose(share, percent * 100, abs_tol=1e-6) or not 0 <= share <= TOTAL_WEIGHT:
        raise InvalidSpecError(
            f"{field} {percent} is not a percentage between 0 and 100 in steps of 0.01"
        )
    return share

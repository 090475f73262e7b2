"""Watches that a unit stays with the candidate: within a rollout, ramping up moves nobody out."""

from typing import Final

SETTLES: Final = 5.0
"""Seconds within which all replicas of the gateway have a new plan; until then they may differ."""


class Stickiness:
    """What each unit met in each rollout."""

    def __init__(self) -> None:
        self._candidates: dict[tuple[str, str], float] = {}

    def note(self, rollout: str, unit: str, arm: str, now: float) -> str | None:
        """Remember an answer; answer what is wrong with it, if anything.

        Args:
            rollout: Its id; empty outside a rollout.
            unit: Who asked.
            arm: The assigned arm.
            now: Seconds on any clock that only goes forward.
        """
        if not rollout:
            return None
        if arm == "candidate":
            self._candidates.setdefault((rollout, unit), now)
            return None
        since = self._candidates.get((rollout, unit))
        if since is None or now - since <= SETTLES:
            return None
        return "a unit moved from the candidate back to stable in one rollout"

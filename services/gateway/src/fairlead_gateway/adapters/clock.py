"""The system's clock."""

import time


class SystemClock:
    """The time, as the machine has it."""

    def now(self) -> float:
        """Return seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never run back."""
        return time.monotonic()

"""Keeps a finished run's report in its pod until somebody has copied it out.

    python -m fairlead_load.keep FOLDER SECONDS

It waits until the run is over (`verdict.json` is there), then until the file `fetched` is, at most
so many seconds.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

VERDICT: Final = "verdict.json"
FETCHED: Final = "fetched"
EVERY: Final = 0.5  # seconds


def keep(folder: Path, seconds: float, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Wait for the report, then for somebody to fetch it; tell whether somebody did."""
    while not (folder / VERDICT).exists():
        sleep(EVERY)
    waited = 0.0
    while not (folder / FETCHED).exists():
        if waited >= seconds:
            return False
        sleep(EVERY)
        waited += EVERY
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep the report; the exit code is 0 either way, the run has its own."""
    folder, seconds = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    was_fetched = keep(Path(folder), float(seconds))
    sys.stdout.write("the report was fetched\n" if was_fetched else "nobody fetched the report\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

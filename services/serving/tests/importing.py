"""Tells what a process imports that serves a model."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from fairlead_serving.entrypoints import server
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.wiring import fetch_and_load
served = fetch_and_load(
    Settings(model=sys.argv[1], environment="ignore", predictor=sys.argv[3])
)
if sys.argv[2]:
    served.predict(served.reader.read_json(sys.argv[2].encode()))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def imported_by(folder: Path, body: str, predictor: str = "auto") -> set[str]:
    """Load a model in a process of its own, predict on a body, and name the packages there.

    An empty body is not predicted on.
    """
    command = [sys.executable, "-c", SCRIPT, str(folder), body, predictor]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())

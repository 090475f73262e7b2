"""The load test's own modules, found without Locust, which would patch this process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

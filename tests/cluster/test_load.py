"""The load test runs in the cluster as its chart, and its report comes back."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fairlead_e2e.platform import Platform
from fairlead_e2e.served import Served, unique
from fairlead_e2e.settings import ROOT

from fairlead_training.domain.features import CATEGORIES, COLUMNS

WHOLE = {"weekday", "dep_hour", "arr_hour"}
FLIGHT = {
    column: "string" if column in CATEGORIES else "long" if column in WHOLE else "double"
    for column in COLUMNS
}
REPORT = {"report.html", "stats_stats.csv", "stats_failures.csv", "verdict.json"}


@pytest.fixture
def flights(platform: Platform, team: str) -> Iterator[Served]:
    """A served model that takes the flights the load test sends."""
    served = Served(platform=platform, namespace=team, name="flights", model=unique("Flights"))
    served.remove()
    served.promote(served.register(0.25, chances=True, columns=FLIGHT))
    served.apply()
    served.await_serving("1")
    yield served
    served.remove()


def test_load_test_keeps_its_thresholds(
    flights: Served, platform: Platform, team: str, tmp_path: Path
) -> None:
    """Flights from one master and two workers: no error, outcomes taken, the report fetched."""
    if shutil.which("kubectl") is None:
        pytest.skip("the load test in the cluster needs the command 'kubectl' on PATH")
    # When the load test runs against it
    settings = {
        "gateway.url": platform.gateway_url,
        "experiments.url": platform.experiments_url,
        "image.tag": platform.settings.tag,
        "users": "20",
        "seconds": "20",
        "thresholds.p99Multiple": "1000",  # of two cores that do everything at once
    }
    options = [f"--set={key}={value}" for key, value in settings.items()]
    where = ("--namespace", team, "--model", flights.name, "--output", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "fairlead_load.cluster", *where, "--", *options],
        cwd=ROOT / "tests" / "load",
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    # Then its thresholds are kept, and the report is here
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.iterdir()
    assert {path.name for path in folder.iterdir()} >= REPORT
    verdict = json.loads((folder / "verdict.json").read_text("utf-8"))
    assert {finding["kept"] for finding in verdict["findings"]} == {True}
    assert platform.kube.find("Job", team) == []

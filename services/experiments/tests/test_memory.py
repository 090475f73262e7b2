"""What the chart reserves for the service is what it takes."""

from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import yaml
from experiments_process import Server, serving

VALUES = Path(__file__).parents[3] / "charts/fairlead/values.yaml"
UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
BATCHES, BATCH = 3, 10_000  # exposures: the largest batch that is taken
RECORD = {
    "model": "m",
    "stable": "3",
    "candidate": "4",
    "startedAt": "2026-01-01T00:00:00Z",
    "state": "running",
    "steps": [{"index": 0, "weight": 5000}],
    "objective": {"outcome": "score", "better": "higher", "minimumEffect": 0.1},
    "guardrails": {"errors": {"margin": 0.25}, "latency": {"slowerThan": 0.2, "margin": 0.25}},
}
PLACE = {"state": "running", "step": 0, "weight": 5000}


def reserved() -> int:
    """Return the bytes that the chart `fairlead` reserves for the service by default."""
    values = yaml.safe_load(VALUES.read_text("utf-8"))
    memory = str(values["experiments"]["resources"]["requests"]["memory"])
    return int(memory[:-2]) * UNITS[memory[-2:]]


def exposures(batch: int) -> dict[str, Any]:
    """Build a batch of exposures, each of a unit of its own."""
    same = {"rollout": "r1", "step": 0, "arm": "candidate", "version": "4", "code": 200}
    same |= {"at": "2026-01-01T00:00:01Z", "attempts": 1, "durationMs": 3.0}
    numbers = range(batch * BATCH, (batch + 1) * BATCH)
    return {"exposures": [{**same, "inferenceId": f"i{n}", "unit": f"u{n}"} for n in numbers]}


def use(server: Server) -> None:
    """Have the service do all it does: take batches, analyse, and draw the report."""
    server.call("/v1/rollouts/r1", RECORD, "PUT")
    for batch in range(BATCHES):
        assert server.call("/v1/exposures", exposures(batch))["accepted"] == BATCH
    analysis = server.call("/v1/rollouts/r1/analysis")
    words = dict.fromkeys(("check", "verdict", "reason", "message", "summary"), "x")
    for minute in range(20):
        at = {"at": f"2026-01-01T00:{minute:02}:00Z", "to": PLACE, "thresholds": {}}
        decision = {**words, **at, "inputs": {"analysis": analysis}}
        server.call(f"/v1/rollouts/r1/decisions/d{minute}", decision, "PUT")
    page = f"http://127.0.0.1:{server.port}/v1/rollouts/r1/report"
    with urlopen(page, timeout=60) as answer:
        assert b"<svg" in answer.read()


def test_a_service_that_has_drawn_a_report_takes_no_more_than_is_reserved(
    tmp_path: Path,
) -> None:
    """Matplotlib stays loaded once a report was asked for, beside what batches have taken."""
    with serving(f"sqlite:///{tmp_path / 'experiments.db'}") as server:
        use(server)
        taken = psutil.Process(server.process.pid).memory_info().rss

    assert taken <= reserved()

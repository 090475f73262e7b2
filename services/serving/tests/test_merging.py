"""`--merge` and `--max-merged-rows`, as callers and `/metrics` see them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROW = {"dataframe_records": [{"hour": 1.0, "day": 2, "late": 0}]}
CALLERS = 16
MERGED = "fairlead_serving_merged_requests"


def _ask_at_once(server: Any) -> list[float]:
    """Send a row from each of several callers; give the predictions."""
    with ThreadPoolExecutor(CALLERS) as callers:
        answers = list(callers.map(lambda _: server.predict(ROW), range(4 * CALLERS)))
    assert {answer.status_code for answer in answers} == {200}
    return [answer.json()["predictions"][0] for answer in answers]


def _calls(server: Any, limit: str = "+Inf") -> float:
    """Count the calls that held no more requests than a limit."""
    return float(server.metric(f"{MERGED}_bucket", le=limit))


def test_unknown_model_is_never_merged_by_itself(models: Path, serve: Callable[..., Any]) -> None:
    """A pyfunc may look at all rows at once, so each of its callers is alone."""
    with serve(models / "company") as server:
        server.wait_ready()
        assert set(_ask_at_once(server)) == {1.0}
        assert _calls(server, "1.0") == _calls(server) == 4 * CALLERS


def test_owner_may_say_that_a_model_is_merged(models: Path, serve: Callable[..., Any]) -> None:
    """With `on` what queued is one call, of no more rows than are allowed."""
    with serve(models / "company", "--merge", "on", "--max-merged-rows", "3") as server:
        server.wait_ready()
        # A call takes 20 ms, in which all other callers queue.
        found = _ask_at_once(server)
        assert max(found) == 3.0
        assert _calls(server, "4.0") == _calls(server) < 4 * CALLERS
        assert server.metric(f"{MERGED}_sum") == 4 * CALLERS


def test_known_model_is_merged_by_itself(
    models: Path, serve: Callable[..., Any], wait: Callable[[Callable[[], bool]], None]
) -> None:
    """A model that is known to predict row by row is merged as soon as requests queue."""
    with serve(models / "cloudpickle") as server:
        server.wait_ready()

        def is_merged() -> bool:
            _ask_at_once(server)
            return _calls(server, "1.0") < _calls(server)

        wait(is_merged)
        requests = server.metric(f"{MERGED}_sum")
        assert requests % (4 * CALLERS) == 0
        assert server.metric("fairlead_serving_rows_total") == requests


def test_merging_may_be_switched_off(models: Path, serve: Callable[..., Any]) -> None:
    """With `off` even a known model gets one request at a time, however many queue."""
    with serve(models / "light_booster", "--merge", "off") as server:
        server.wait_ready()
        for _ in range(10):
            _ask_at_once(server)
        assert _calls(server, "1.0") == _calls(server) == 40 * CALLERS

"""From an empty cluster to the first prediction."""

from collections.abc import Callable

from fairlead_e2e.helm import check, install, uninstall
from fairlead_e2e.kube import Document
from fairlead_e2e.platform import Platform
from fairlead_e2e.served import Served, unique
from fairlead_e2e.waiting import Stopwatch

FIVE_MINUTES = 300.0


def test_install_to_first_prediction(
    installed: tuple[Platform, Stopwatch],
    platform: Platform,
    team: str,
    measured: Callable[[str, float], None],
) -> None:
    """Given an empty cluster and the images, the first prediction comes within five minutes."""
    _, clock = installed
    # Given a version in Production
    served = Served(platform=platform, namespace=team, name="first", model=unique("First model"))
    served.promote(served.register(1))
    # When a data scientist installs the chart of the model
    install("first", "model", team, _values(platform, served.model))
    served.await_serving("1")
    with served.load() as load:
        seconds = clock.seconds
    # Then it answers
    measured("from nothing to the first prediction", seconds)
    assert seconds <= FIVE_MINUTES
    served.assert_unnoticed(load.report)
    assert load.report.values("1") == {1.0}
    # ... and each chart's own test passes
    check("mlflow", platform.mlflow_namespace)
    check("fairlead", platform.name)
    check("first", team)
    uninstall("first", team)


def _values(platform: Platform, model: str) -> Document:
    """Return what a data scientist writes, in an air-gapped cluster with its own names."""
    return {
        "model": model,
        "test": {
            "gatewayUrl": platform.gateway_url,
            "payload": {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}},
            "image": {"tag": platform.settings.tag},
        },
    }

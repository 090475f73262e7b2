"""What is wrong is refused with the field's name, before anything changes."""

from collections.abc import Callable

import pytest
from fairlead_e2e.helm import HelmFailedError, helm
from fairlead_e2e.kube import Document
from fairlead_e2e.platform import Platform
from fairlead_e2e.served import Served
from fairlead_e2e.settings import CHARTS
from fairlead_e2e.waiting import wait_until

Serve = Callable[..., Served]
DECIDED = {"steps": [{"weight": 50, "until": "decided"}]}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"rollout": {"steps": [{"weight": 120, "for": "1m"}]}}, "spec.rollout.steps[0].weight"),
        ({"rollout": {"steps": [{"weight": 10, "for": "soon"}]}}, "spec.rollout.steps[0].for"),
        ({"rollout": DECIDED}, "rollout.objective"),
        ({"rollout": {"maxDuraton": "3d"}}, "spec.rollout.maxDuraton"),
        ({"server": {"replicas": 0}}, "spec.server.replicas"),
        ({"server": {"replicas": 3, "autoscaling": {"maxReplicas": 2}}}, "autoscaling.maxReplicas"),
        ({"registry": {"production": {"stage": "Live"}}}, "spec.registry.production.stage"),
        ({"traffic": {"unit": {"header": "X-User"}}}, "spec.traffic.unit.header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_by_field(platform: Platform, team: str, spec: Document, field: str) -> None:
    """The API server refuses a ServedModel that cannot work, and names the field."""
    served = Served(platform=platform, namespace=team, name="wrong", model="Wrong")
    assert field in platform.kube.refusal(served.manifest(spec))


def test_chart_value_refused(platform: Platform) -> None:
    """Helm refuses a chart's value that cannot work, and names its key."""
    chart = str(CHARTS / "model")
    with pytest.raises(HelmFailedError, match="replicas"):
        helm("template", "wrong", chart, "--set", "model=a", "--set", "server.replicas=none")


def test_bad_template_is_told(serve: Serve) -> None:
    """A pod template that the API server refuses is told in the condition; stable serves on."""
    served = serve({"rollout": {"progressDeadline": "20s"}})
    wrong = {"spec": {"containers": [{"name": "server", "volumeMounts": [WITHOUT_VOLUME]}]}}
    with served.load() as load:
        served.apply({"rollout": {"progressDeadline": "20s"}, "server": {"template": wrong}})
        wait_until(
            lambda: "no-such-volume" in served.told(), 30, "the condition names it", served.told
        )
        load.await_sent(60)
        served.apply({"rollout": {"progressDeadline": "20s"}})
        served.await_serving("1")
    served.assert_unnoticed(load.report)


WITHOUT_VOLUME = {"name": "no-such-volume", "mountPath": "/data"}


def test_same_name_twice(serve: Serve, platform: Platform) -> None:
    """Of two ServedModels with one name in two namespaces the older serves, the newer is stalled."""
    served = serve()
    other = next(team for team in platform.teams if team != served.namespace)
    twin = Served(platform=platform, namespace=other, name=served.name, model=served.model)
    with served.load() as load:
        twin.apply()
        stalled = wait_until(
            lambda: twin.condition("Stalled"), 30, "the newer one is stalled", twin.told
        )
        load.await_sent(60)
        twin.remove()
    served.assert_unnoticed(load.report)
    assert stalled["reason"] == "RouteConflict"
    assert f"{served.namespace}/{served.name}" in stalled["message"]

"""The autoscaler adds pods under load and takes them away again."""

from collections.abc import Callable

from fairlead_e2e.kube import Document
from fairlead_e2e.served import Served
from fairlead_e2e.waiting import wait_until

Serve = Callable[..., Served]
BUSY = 0.01  # seconds of processor time that a prediction takes
SCALING: Document = {
    "server": {
        "replicas": 1,
        "autoscaling": {"maxReplicas": 3, "cpuPercent": 60},
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "1Gi"},
        },
    }
}
# Kubernetes waits five minutes before it takes pods away; a test cannot.
QUICK = {"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 10}}}}


def test_scale_up_and_down(serve: Serve) -> None:
    """Under load pods are added, afterwards taken away; no request fails at either."""
    served = serve(SCALING, versions=1, spin=BUSY)
    kube = served.platform.kube
    workload = served.pods("1")[0]["metadata"]["name"].rsplit("-", 2)[0]
    kube.patch("HorizontalPodAutoscaler", served.namespace, workload, QUICK)
    with served.load(rate=3, connections=2) as idle:
        # When many requests come
        with served.load(rate=40, pod="load-more"):
            wait_until(lambda: len(served.ready_pods("1")) >= 2, 150, "pods are added", served.told)
            idle.await_sent(50)
        # ... and no more
        wait_until(lambda: len(served.pods("1")) == 1, 240, "pods are taken away", served.told)
        idle.await_sent(50)
    served.assert_unnoticed(idle.report)

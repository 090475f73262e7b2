"""What the gateway's replicas say, summed up."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fairlead_rollout.adapters.k8s.gateways import STALE_AFTER, Answer, GatewayReplicas, combine

Document = dict[str, Any]
Kube = Any


def model(digest: str | None, **healthy: int) -> Document:
    """Return what a replica says of one model."""
    versions = {name.removeprefix("v"): {"healthy": n, "total": n} for name, n in healthy.items()}
    return {"digest": digest, "appliedAt": "2026-01-01T00:00:00Z", "versions": versions}


def answers(**models: Any) -> tuple[Answer, ...]:
    """Return the answers of replicas about the model `m`; None is no answer at all."""
    return tuple(
        Answer(replica=replica, models=None if said is None else {"m": said})
        for replica, said in models.items()
    )


def test_a_version_is_as_healthy_as_the_replica_that_sees_the_fewest_says() -> None:
    """Weight for a version must not reach a gateway that knows no pod of it."""
    applied = combine("m", answers(a=model("d", v1=2, v2=1), b=model("d", v1=1)))
    assert applied.healthy == {"1": 1, "2": 0}


def test_a_replica_that_is_silent_is_behind_and_sees_nothing() -> None:
    """Who does not answer has applied nothing, as far as anybody knows."""
    applied = combine("m", answers(a=model("d", v1=2), b=None))
    assert applied.digests == {"a": "d", "b": None}
    assert applied.healthy == {"1": 0}


def test_a_replica_that_does_not_know_the_model_yet_is_behind() -> None:
    """A new ServedModel reaches the replicas one by one."""
    known = Answer(replica="a", models={"m": model("d", v1=1)})
    applied = combine("m", (known, Answer(replica="b", models={})))
    assert applied.digests == {"a": "d", "b": None}
    assert applied.healthy == {"1": 0}


def test_a_model_without_a_plan_has_no_digest() -> None:
    """Endpoints are seen before the first plan."""
    applied = combine("m", answers(a=model(None, v1=1)))
    assert applied.digests == {"a": None}
    assert applied.healthy == {"1": 1}


class Agent:
    """The agent of one replica, over HTTP."""

    def __init__(self) -> None:
        self.status = 200
        self.body: bytes = b"{}"
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(agent.status if self.path == "/v1/applied" else 404)
                self.send_header("Content-Length", str(len(agent.body)))
                self.end_headers()
                self.wfile.write(agent.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Return where it listens."""
        return int(self.server.server_address[1])

    def says(self, models: Any) -> None:
        """Answer with these models from now on."""
        self.status, self.body = 200, json.dumps({"models": models}).encode()

    def close(self) -> None:
        """End it."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(timeout=10)


@pytest.fixture
def agent() -> Iterator[Agent]:
    """Return an agent that knows nothing yet."""
    agent = Agent()
    yield agent
    agent.close()


class Slices:
    """An API server that lists EndpointSlices; real ones take no loopback address."""

    def __init__(self) -> None:
        self.found: list[Document] = []
        self.asked_for: list[Any] = []

    def list(self, kind: str, namespace: str, labels: Any) -> list[Document]:
        """See KubeApi."""
        self.asked_for.append((kind, namespace, dict(labels)))
        return self.found


def endpoints(port: int, ready: tuple[bool, ...] = (True,), pod: str = "gateway") -> Document:
    """Return an EndpointSlice as Kubernetes writes it."""
    return {
        "ports": [{"name": "agent", "port": port, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": ["127.0.0.1"],
                "conditions": {"ready": is_ready},
                "targetRef": {"kind": "Pod", "name": f"{pod}-{number}"},
            }
            for number, is_ready in enumerate(ready)
        ],
    }


@pytest.fixture
def slices() -> Slices:
    """Return an API server without EndpointSlices."""
    return Slices()


@pytest.fixture
def replicas(slices: Slices) -> Iterator[GatewayReplicas]:
    """Return the replicas under test."""
    made = GatewayReplicas(slices, namespace="fairlead", service="agents")  # type: ignore[arg-type]
    yield made
    made._http.close()


def test_each_replica_that_gets_traffic_is_asked(
    replicas: GatewayReplicas, slices: Slices, agent: Agent
) -> None:
    """One that is not ready gets no traffic and holds nobody up."""
    agent.says({"m": model("d", v1=1)})
    slices.found = [endpoints(agent.port, (True, False))]
    replicas.look()
    applied = replicas.applied("m")
    assert applied is not None
    assert applied.digests == {"gateway-0": "d"}
    (asked,) = slices.asked_for
    assert asked == ("EndpointSlice", "fairlead", {"kubernetes.io/service-name": "agents"})


def test_a_replica_in_two_slices_is_asked_once(
    replicas: GatewayReplicas, slices: Slices, agent: Agent
) -> None:
    """While Kubernetes moves an endpoint it is in two slices."""
    agent.says({"m": model("d")})
    slices.found = [endpoints(agent.port)] * 2
    replicas.look()
    applied = replicas.applied("m")
    assert applied is not None
    assert list(applied.digests) == ["gateway-0"]


def test_before_the_first_look_nothing_is_known(replicas: GatewayReplicas) -> None:
    """Not to have asked is not the same as to have no gateway."""
    assert replicas.applied("m") is None


def test_what_was_seen_long_ago_is_not_known_any_more(slices: Slices, agent: Agent) -> None:
    """After an abort the plan is the one from before the trial: an old answer would fit it."""
    now = [0.0]
    replicas = GatewayReplicas(
        slices,  # type: ignore[arg-type]
        namespace="fairlead",
        service="agents",
        monotonic=lambda: now[0],
    )
    agent.says({"m": model("d", v1=1)})
    slices.found = [endpoints(agent.port)]
    replicas.look()
    now[0] = STALE_AFTER.total_seconds()
    assert replicas.applied("m") is not None
    now[0] += 1
    assert replicas.applied("m") is None
    replicas.look()
    assert replicas.applied("m") is not None
    replicas._http.close()


def test_a_look_that_fails_on_an_address_does_not_stop_at_it(
    replicas: GatewayReplicas, slices: Slices, agent: Agent
) -> None:
    """Colons are part of an address in IPv6; whoever cannot be asked is silent."""
    agent.says({"m": model("d", v1=1)})
    elsewhere = endpoints(agent.port, pod="six")
    elsewhere["endpoints"][0]["addresses"] = ["::1"]
    slices.found = [elsewhere, endpoints(agent.port)]
    replicas.look()
    assert replicas.states({"m": "d"}) == {"applied": 1, "behind": 0, "silent": 1}


@pytest.mark.parametrize(
    ("status", "body"),
    [(503, b"{}"), (200, b"<html>"), (200, b"{}"), (200, b"[]"), (200, b'{"models": null}')],
)
def test_an_answer_that_cannot_be_read_is_none(
    replicas: GatewayReplicas, slices: Slices, agent: Agent, status: int, body: bytes
) -> None:
    """One odd replica neither stops the looking nor counts as up to date."""
    agent.status, agent.body = status, body
    slices.found = [endpoints(agent.port)]
    replicas.look()
    assert replicas.applied("m") is None
    assert replicas.states({}) == {"applied": 0, "behind": 0, "silent": 1}


def test_replicas_are_counted_by_how_they_stand(
    replicas: GatewayReplicas, slices: Slices, agent: Agent
) -> None:
    """The metric tells those that are behind from those that are silent."""
    agent.says({"m": model("new")})
    slices.found = [endpoints(agent.port), endpoints(9, pod="gone")]
    replicas.look()
    assert replicas.states({"m": "new"}) == {"applied": 1, "behind": 0, "silent": 1}
    assert replicas.states({"m": "newer"}) == {"applied": 0, "behind": 1, "silent": 1}


def test_a_slice_without_ports_or_endpoints_is_no_replica(
    replicas: GatewayReplicas, slices: Slices
) -> None:
    """Kubernetes writes such slices for a Service without pods."""
    slices.found = [{"endpoints": None, "ports": None}, endpoints(9, ready=())]
    replicas.look()
    assert replicas.applied("m") is None


def test_looking_goes_on_after_anything(
    replicas: GatewayReplicas, slices: Slices, agent: Agent, until: Callable[..., None]
) -> None:
    """An answer nobody thought of must not freeze what is known of the gateway."""
    agent.says({"m": model("d")})
    slices.found = ["no slice at all"]  # type: ignore[list-item]
    stop = threading.Event()
    thread = threading.Thread(target=replicas.run, args=(stop,))
    thread.start()
    until(lambda: len(slices.asked_for) > 1)
    slices.found = [endpoints(agent.port)]
    until(lambda: replicas.applied("m") is not None)
    stop.set()
    replicas.applied("m")
    thread.join(timeout=10)
    assert not thread.is_alive()

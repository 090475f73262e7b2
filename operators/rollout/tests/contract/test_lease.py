"""Who leads: never two at once, and never nobody for long."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fairlead_rollout.adapters.k8s.lease import GIVE_UP_AFTER, HELD_FOR, RENEW_EVERY, TIMEOUT, Lease
from fairlead_rollout.domain.errors import ConflictError, UnavailableError

Kube = Any


@dataclass
class Clocks:
    """The clocks of one machine: one that nobody sets, one that may be wrong."""

    seconds: float = 1_000.0
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        """Return the seconds of the first."""
        return self.seconds

    def wall(self) -> datetime:
        """Return the time of the second."""
        return self.now


class Outage:
    """An API that does not answer while it is told not to."""

    def __init__(self, api: Any):
        self._api = api
        self.is_on = False

    def __getattr__(self, name: str) -> Any:
        if self.is_on:
            raise UnavailableError("the API server does not answer")
        return getattr(self._api, name)


@dataclass
class Candidate:
    """A process that wants to lead."""

    lease: Lease
    clocks: Clocks
    api: Outage


class Election:
    """Candidates for one Lease; time passes for all of them alike."""

    def __init__(self, kube: Kube):
        self._kube = kube
        self._candidates: list[Candidate] = []

    def join(self, identity: str, now: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> Candidate:
        """Return a new candidate."""
        clocks, api = Clocks(now=now), Outage(self._kube.api)
        lease = Lease(
            api,  # type: ignore[arg-type]
            namespace=self._kube.namespace,
            name="controller",
            identity=identity,
            monotonic=clocks.monotonic,
            now=clocks.wall,
        )
        self._candidates.append(Candidate(lease, clocks, api))
        return self._candidates[-1]

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        for candidate in self._candidates:
            candidate.clocks.seconds += seconds
            candidate.clocks.now += timedelta(seconds=seconds)

    def leaders(self) -> int:
        """Return how many think that they lead."""
        return sum(candidate.lease.is_held for candidate in self._candidates)

    def spec(self) -> dict[str, Any]:
        """Return the Lease as it is stored."""
        spec: dict[str, Any] = self._kube.api.get("Lease", self._kube.namespace, "controller")[
            "spec"
        ]
        return spec


@pytest.fixture
def election(kube: Kube) -> Election:
    """Return an election nobody has joined."""
    return Election(kube)


RENEWAL = RENEW_EVERY.total_seconds()
SILENCE = HELD_FOR.total_seconds()


def test_the_first_one_leads_and_the_second_waits(election: Election) -> None:
    """A free Lease is taken at once, a held one is not."""
    a, b = election.join("a"), election.join("b")
    assert a.lease.step()
    assert not b.lease.step()
    assert (a.lease.is_held, b.lease.is_held) == (True, False)
    assert election.spec()["holderIdentity"] == "a"


def test_a_leader_that_renews_goes_on_leading(election: Election) -> None:
    """However long, nobody takes a Lease that is renewed."""
    a, b = election.join("a"), election.join("b")
    for _ in range(20):
        assert a.lease.step()
        election.wait(RENEWAL)
        assert not b.lease.step()
    assert election.spec().get("leaseTransitions", 0) <= 1


def test_another_leads_after_a_silence_and_no_sooner(election: Election) -> None:
    """After a crash the Lease passes on within 20 seconds."""
    a, b = election.join("a"), election.join("b")
    a.lease.step()
    b.lease.step()
    waited = 0.0
    while not b.lease.step():
        election.wait(RENEWAL / 2)
        waited += RENEWAL / 2
        assert waited < 20
    assert waited >= SILENCE
    assert election.spec()["holderIdentity"] == "b"
    assert not a.lease.step()


def test_a_release_hands_over_at_once(election: Election) -> None:
    """On SIGTERM nobody waits for a silence."""
    a, b = election.join("a"), election.join("b")
    a.lease.step()
    b.lease.step()
    a.lease.release()
    assert not a.lease.is_held
    assert b.lease.step()
    assert election.spec()["holderIdentity"] == "b"


def test_a_release_of_what_is_not_held_changes_nothing(election: Election) -> None:
    """A process that never led cannot give the lead away."""
    a, b = election.join("a"), election.join("b")
    a.lease.step()
    b.lease.release()
    assert election.spec()["holderIdentity"] == "a"


def test_a_holder_that_cannot_renew_stops_before_another_may_start(election: Election) -> None:
    """At no moment do two processes lead, also while one of them is cut off."""
    a, b = election.join("a"), election.join("b")
    a.lease.step()
    b.lease.step()
    a.api.is_on = True
    waited = 0.0
    while not b.lease.is_held:
        assert election.leaders() <= 1
        a.lease.step()
        b.lease.step()
        assert election.leaders() <= 1
        election.wait(0.5)
        waited += 0.5
    assert waited > GIVE_UP_AFTER.total_seconds()
    assert not a.lease.is_held


def test_a_short_outage_costs_nobody_the_lead(election: Election) -> None:
    """One renewal that fails is made up for by the next."""
    a, b = election.join("a"), election.join("b")
    a.lease.step()
    b.lease.step()
    a.api.is_on = True
    election.wait(RENEWAL)
    assert a.lease.step()
    a.api.is_on = False
    election.wait(RENEWAL)
    assert a.lease.step()
    election.wait(SILENCE - 2 * RENEWAL)
    assert not b.lease.step()


@pytest.mark.parametrize("hours", [-5, 5], ids=["behind", "ahead"])
def test_clocks_that_disagree_change_nothing(election: Election, hours: int) -> None:
    """Silence is measured by one's own clock, not by what another one writes."""
    wrong = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
    a, b = election.join("a"), election.join("b", wrong)
    a.lease.step()
    for _ in range(10):
        assert not b.lease.step()
        election.wait(RENEWAL)
        assert a.lease.step()
    election.wait(SILENCE - 1)
    assert not b.lease.step()
    election.wait(SILENCE + 1)
    assert b.lease.step()
    assert not a.lease.step()


def test_a_process_that_starts_again_under_its_name_leads_at_once(election: Election) -> None:
    """A container that is restarted in its pod need not wait for itself."""
    election.join("a").lease.step()
    assert election.join("a").lease.step()


def test_of_two_that_take_a_free_lease_one_gets_it(election: Election) -> None:
    """Whoever writes second finds that the Lease has changed."""
    a, b = election.join("a"), election.join("b")
    a.lease.step()
    a.lease.release()

    class Slower:
        """Reads, and is overtaken before it writes."""

        def __getattr__(self, name: str) -> Any:
            return getattr(b.api, name)

        def get(self, *place: str) -> Any:
            lease = b.api.get(*place)
            a.lease.step()
            return lease

    b.lease._api = Slower()  # type: ignore[assignment]
    assert not b.lease.step()
    assert election.leaders() == 1


def test_of_two_that_make_the_lease_one_gets_it(election: Election, kube: Kube) -> None:
    """The very first start of two replicas is a race, too."""
    a, b = election.join("a"), election.join("b")

    class Slower:
        """Finds no Lease, and is overtaken before it makes one."""

        def __getattr__(self, name: str) -> Any:
            return getattr(b.api, name)

        def create(self, document: Any) -> Any:
            a.lease.step()
            return b.api.create(document)

    b.lease._api = Slower()  # type: ignore[assignment]
    assert not b.lease.step()
    assert a.lease.is_held
    with pytest.raises(ConflictError):
        kube.api.create(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": "controller", "namespace": kube.namespace},
                "spec": {},
            }
        )


def test_a_pause_of_the_whole_process_ends_the_lead(election: Election) -> None:
    """A process that was stopped for long knows so before it acts."""
    a = election.join("a")
    a.lease.step()
    election.wait(GIVE_UP_AFTER.total_seconds())
    assert not a.lease.is_held


def test_renewals_are_counted_from_before_they_are_sent(election: Election) -> None:
    """An answer that took long does not make the lead last longer than others think."""
    a = election.join("a")

    class Slow:
        """An API whose answers take four seconds."""

        def __getattr__(self, name: str) -> Any:
            a.clocks.seconds += 4
            return getattr(a.api, name)

    a.lease._api = Slow()  # type: ignore[assignment]
    a.lease.step()
    election.wait(GIVE_UP_AFTER.total_seconds() - 4)
    assert not a.lease.is_held


def test_a_call_that_hangs_costs_nobody_the_lead(election: Election) -> None:
    """It is given up in time for the next renewal."""
    a = election.join("a")
    a.lease.step()
    election.wait(RENEWAL)
    a.api.is_on = True
    election.wait(max(TIMEOUT))
    a.lease.step()
    a.api.is_on = False
    election.wait(RENEWAL)
    assert a.lease.is_held
    assert a.lease.step()


def test_waiting_for_the_lead_ends_when_told_to(election: Election) -> None:
    """A standby that is stopped leaves without having led."""
    a, b = election.join("a"), election.join("b")
    a.lease.step()
    stop = threading.Event()
    stop.set()
    assert not b.lease.acquire(stop)
    assert a.lease.acquire(threading.Event())


def test_holding_ends_when_told_to(election: Election, until: Callable[..., None]) -> None:
    """Signals end the renewing."""
    a = election.join("a")
    a.lease.step()
    stop = threading.Event()
    thread = threading.Thread(target=a.lease.hold, args=(stop,))
    thread.start()
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()

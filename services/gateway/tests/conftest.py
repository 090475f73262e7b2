"""What the gateway's tests share."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Test folders are no packages; the helpers have names no other folder uses.
sys.path.insert(0, str(Path(__file__).parent))

from gateway_lab import Gateway, Served, name_for, plan, running


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Give a gateway of its own, whose Envoy and agent run, with nothing served yet."""
    with running(tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Give the gateway of all tests that need but a served model of their own."""
    with running(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture
def served(shared: Gateway, request: pytest.FixtureRequest) -> Iterator[Served]:
    """Give a served model: version 3 against version 4 at 10 %, on replicas all tests share."""
    made = Served(shared, name_for(request))
    for version in ("3", "4"):
        shared.borrow(version, made.model)
    made.apply()
    yield made
    made.close()


@pytest.fixture
def mortal(shared: Gateway, request: pytest.FixtureRequest) -> Iterator[Served]:
    """Give a served model as above, on replicas of its own, which may be killed."""
    made = Served(shared, name_for(request))
    for version in ("3", "4"):
        made.upstream(version)
    made.apply()
    yield made
    made.close()


@pytest.fixture
def iris(gateway: Gateway) -> Gateway:
    """Give a gateway of its own with version 3 of iris against version 4 at 10 %."""
    gateway.upstream("3")
    gateway.upstream("4")
    gateway.apply(plan())
    return gateway

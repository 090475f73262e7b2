"""End-to-end tests on a real cluster; see docs/how-to/run-the-cluster-tests.md.

Each test has a namespace of its own for its model. MLflow and Fairlead are installed once and look
after all these namespaces.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fairlead_e2e.dump import dump
from fairlead_e2e.kube import Kube
from fairlead_e2e.platform import Platform, owns_crd, remove_namespaces
from fairlead_e2e.served import Served, unique
from fairlead_e2e.settings import ROOT, SWITCH, Settings, is_wanted, read_settings
from fairlead_e2e.waiting import Stopwatch

HERE = Path(__file__).parent
# The installation is timed by the first; the last ones take nodes and installations away.
ORDER = (
    "test_install",
    "test_promotion",
    "test_broken",
    "test_kills",
    "test_outages",
    "test_lost_state",
    "test_bad_input",
    "test_scaling",
    "test_load",
    "test_upgrade",
    "test_teams",
    "test_mlflow",
    "test_nodes",
)
OURS = {"fairlead.dev/e2e": "true"}
TEAMS = pytest.StashKey[tuple[str, ...]]()
FIGURES = pytest.StashKey[dict[str, float]]()
FAILED = pytest.StashKey[bool]()
TIMEOUT = 900  # seconds of one test, the installation included


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark our tests, put them in order, note which namespaces they need; skip them unless asked."""
    ours = [item for item in items if HERE in item.path.parents]
    places = iter([index for index, item in enumerate(items) if HERE in item.path.parents])
    for item in sorted(ours, key=_rank):
        items[next(places)] = item
        item.add_marker(pytest.mark.cluster)
        item.add_marker(pytest.mark.timeout(TIMEOUT))
        if not is_wanted():
            reason = f"needs a cluster, which it changes: set {SWITCH}=1, or run 'make e2e'"
            item.add_marker(pytest.mark.skip(reason=reason))
    config.stash[TEAMS] = tuple(dict.fromkeys(_slug(i) for i in ours if "team" in i.fixturenames))


def _rank(item: pytest.Item) -> int:
    return ORDER.index(item.path.stem) if item.path.stem in ORDER else len(ORDER)


def _slug(item: pytest.Item) -> str:
    """Return what a test's namespace and model are called: its name, short enough for both."""
    name = getattr(item, "originalname", item.name).removeprefix("test_")
    return re.sub(r"[^a-z0-9]+", "-", name)[:34].strip("-")


def _name(item: pytest.Item) -> str:
    """Return what a test's served model is called; each parameter's another name."""
    variant: str = item.callspec.id if hasattr(item, "callspec") else ""
    return re.sub(r"[^a-z0-9]+", "-", f"{_slug(item)[: 38 - len(variant)]}-{variant}").strip("-")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Leave objects, events and logs of a test that failed."""
    report: Any = yield
    platform = _platform_of(item)
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    if report.failed and report.when != "teardown" and platform is not None:
        folder = ROOT / ".fairlead" / "e2e" / _slug(item)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "failure.txt").write_text(report.longreprtext, "utf-8")
        teams = {f"{platform.name}-{_slug(item)}"}
        dump(platform.kube, folder, {*platform.namespaces} - {*platform.teams} | teams)
        report.sections.append(("What was there", f"objects, events and logs are in {folder}"))
    return report


def _platform_of(item: pytest.Item) -> Platform | None:
    found = getattr(item, "funcargs", {}).get("platform")
    return found if isinstance(found, Platform) else None


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what was measured."""
    for name, seconds in config.stash.get(FIGURES, {}).items():
        terminalreporter.write_line(f"measured: {name}: {seconds:.1f} s")


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> Callable[[str, float], None]:
    """Notes a figure in seconds, which is printed at the end."""
    figures = pytestconfig.stash.setdefault(FIGURES, {})
    return figures.__setitem__


@pytest.fixture(scope="session")
def settings() -> Settings:
    """What the environment says."""
    return read_settings()


@pytest.fixture(scope="session")
def kube() -> Kube:
    """The cluster of the current kubeconfig."""
    return Kube()


@pytest.fixture(scope="session")
def installed(
    kube: Kube, settings: Settings, request: pytest.FixtureRequest
) -> Iterator[tuple[Platform, Stopwatch]]:
    """One installation for all tests, made from nothing, and the time since it was begun."""
    name = settings.prefix
    teams = tuple(f"{name}-{slug}" for slug in request.config.stash[TEAMS])
    if not settings.keep:
        left = [n["metadata"]["name"] for n in kube.find("Namespace", labels=OURS)]
        remove_namespaces(kube, [n for n in left if n == name or n.startswith(f"{name}-")])
    platform = Platform(
        kube=kube, settings=settings, name=name, teams=teams, has_crd=owns_crd(kube, name)
    )
    platform.make_namespaces()
    clock = Stopwatch()
    platform.install()
    platform.start_toolbox()
    yield platform, clock
    if not settings.keep:
        platform.remove()


@pytest.fixture
def platform(installed: tuple[Platform, Stopwatch]) -> Platform:
    """The installation, whole again whatever the test before has done to it."""
    installed[0].await_whole()
    return installed[0]


@pytest.fixture
def team(platform: Platform, request: pytest.FixtureRequest) -> str:
    """The test's own namespace for models."""
    return f"{platform.name}-{_slug(request.node)}"


@pytest.fixture
def serve(
    platform: Platform, team: str, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Served]]:
    """Makes a served model whose versions answer 1, 2 and so on; the first one serves."""
    made: list[Served] = []

    def make(spec: dict[str, Any] | None = None, versions: int = 2, **behaviour: Any) -> Served:
        name = _name(request.node)
        served = Served(platform=platform, namespace=team, name=name, model=unique(name))
        made.append(served)
        served.remove()  # what a run before has left for a look
        for number in range(1, versions + 1):
            assert served.register(number, **behaviour) == str(number)
        served.point_to("1", spec or {})
        served.apply(spec)
        served.await_serving("1")
        served.await_whole("1")
        return served

    yield make
    if platform.settings.keep and request.node.stash.get(FAILED, False):
        return
    for served in made:
        served.remove()

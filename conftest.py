"""How the tests are shared out over workers: what shares a costly fixture stays together.

pytest-xdist's own `loadgroup` reads groups from node ids that pytest 9 no longer lets it rename, so
the groups are folders here.
"""

import os
import time
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# An example may take as long as it likes: no test asserts on time outside the benches.
settings.register_profile("fairlead", deadline=None)
settings.load_profile("fairlead")

# Longest first: the last group to start should be a short one.
TOGETHER = ("tests/local/", "tests/load/", "services/training/tests/", "services/serving/tests/")


class ByFolder(LoadScopeScheduling):
    """Gives a worker a whole folder with costly fixtures, or else one file."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return next((folder for folder in TOGETHER if path.startswith(folder)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolder:
    """Share the tests out by folder, in the order they were collected."""
    config.option.loadscopereorder = False
    return ByFolder(config, log)


STARTED = time.monotonic()
BUDGET = float(os.environ.get("FAIRLEAD_TEST_BUDGET", "inf"))
"""Seconds after which no test is begun: CI ends before its own limit, and names what it left out."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what no time is left for."""
    del item
    if time.monotonic() - STARTED > BUDGET:
        pytest.skip(f"left out: FAIRLEAD_TEST_BUDGET of {BUDGET:.0f} s is used up")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the costly folders; the order within a folder stays."""

    def rank(item: pytest.Item) -> int:
        starts = [item.nodeid.startswith(folder) for folder in TOGETHER]
        return starts.index(True) if any(starts) else len(TOGETHER)

    items.sort(key=rank)

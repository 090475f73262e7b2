"""What the environment says about a run."""

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
CHARTS = ROOT / "charts"
SWITCH = "FAIRLEAD_E2E"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run.

    Attributes:
        tag: Tag of Fairlead's images; the serving image has the suffix `-sklearn`.
        prefix: What the name of every namespace starts with.
        keep: Leave everything as it is at the end, and take over what a run before left.
        node_stop: Command that cuts a node's power; `{node}` stands for its name.
        node_start: Command that brings it back.
    """

    tag: str
    prefix: str
    keep: bool
    node_stop: str
    node_start: str


def read_settings() -> Settings:
    """Read the environment."""
    return Settings(
        tag=os.environ.get("FAIRLEAD_E2E_TAG", "dev"),
        prefix=os.environ.get("FAIRLEAD_E2E_PREFIX", "fl-e2e"),
        keep=os.environ.get("FAIRLEAD_E2E_KEEP") == "1",
        node_stop=os.environ.get("FAIRLEAD_E2E_NODE_STOP", ""),
        node_start=os.environ.get("FAIRLEAD_E2E_NODE_START", ""),
    )


def is_wanted() -> bool:
    """Say whether the tests are to run at all."""
    return os.environ.get(SWITCH) == "1"

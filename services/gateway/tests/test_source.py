"""The folder of local mode: what a missing file means."""

import errno
import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fairlead_gateway.adapters.files import FolderSource, Home

PLAN: dict[str, Any] = {
    "model": "flights",
    "rollout": None,
    "step": None,
    "salt": "",
    "unit": {"header": "x-unit-id"},
    "arms": [{"arm": "stable", "version": "3", "weight": 10_000}],
    "shadow": [],
    "fallback": None,
    "timeout": 5.0,
    "retries": {"attempts": 3, "onReset": True},
    "limits": {"maxBodyBytes": 10_485_760},
}


def served_model(root: Path) -> Path:
    """Write a served model that has a plan; return its folder."""
    folder = root / "served-models" / "flights"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}", "utf-8")
    (folder / "status.json").write_text(json.dumps({"traffic": PLAN}), "utf-8")
    return folder


def test_a_lost_status_keeps_the_plan(tmp_path: Path) -> None:
    """A status that vanishes beside its manifest is lost, not taken back."""
    folder = served_model(tmp_path)
    source = FolderSource(Home(tmp_path))
    assert "flights" in source.read().plans
    (folder / "status.json").unlink()
    lost = source.read()
    assert "flights" in lost.plans
    assert "missing" in lost.problems["flights"]
    (folder / "status.json").write_text(json.dumps({"traffic": PLAN}), "utf-8")
    assert source.read().problems == {}


def test_a_restarted_agent_tells_a_lost_status_from_a_removed_model(tmp_path: Path) -> None:
    """After a restart the lost one is a problem, for which the plan applied last is kept."""
    folder = served_model(tmp_path)
    (folder / "status.json").unlink()
    assert "flights" in FolderSource(Home(tmp_path)).read().problems


def test_a_status_that_could_not_be_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Short of file descriptors for a moment, the agent takes the plan although no file changes."""
    served_model(tmp_path)
    source = FolderSource(Home(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", mock.Mock(side_effect=OSError(errno.EMFILE, "many")))
        for _ in range(3):
            assert "many" in source.read().problems["flights"]
    assert len(caplog.records) == 1
    read = source.read()
    assert (set(read.plans), dict(read.problems)) == ({"flights"}, {})


@pytest.mark.parametrize("folder", ["served-models", "workloads"])
def test_a_folder_that_is_away_is_no_reason_to_forget(tmp_path: Path, folder: str) -> None:
    """As a volume that is not mounted for a moment: what was read last stays; one workload may go."""
    served_model(tmp_path)
    workload = tmp_path / "workloads" / "flights-v3"
    workload.mkdir(parents=True)
    endpoint = {"address": "127.0.0.1", "port": 1, "ready": True}
    document = {"model": "flights", "version": "3", "endpoints": [endpoint]}
    (workload / "status.json").write_text(json.dumps(document), "utf-8")
    source = FolderSource(Home(tmp_path))
    before = source.read()
    (tmp_path / folder).rename(tmp_path / "away")
    assert source.read() is before
    (tmp_path / "away").rename(tmp_path / folder)
    assert source.read() is before
    (workload / "status.json").unlink()
    assert source.read().endpoints == {}


def test_a_removed_model_loses_its_plan(tmp_path: Path) -> None:
    """Without a manifest the served model is gone."""
    folder = served_model(tmp_path)
    source = FolderSource(Home(tmp_path))
    source.read()
    for file in folder.iterdir():
        file.unlink()
    gone = source.read()
    assert (dict(gone.plans), dict(gone.problems)) == ({}, {})


def test_a_plan_that_is_gone_stays_applied(tmp_path: Path) -> None:
    """A status without a plan where there was one is a lost status: the last plan counts."""
    folder = served_model(tmp_path)
    source = FolderSource(Home(tmp_path))
    source.read()
    (folder / "status.json").write_text(json.dumps({"traffic": None, "conditions": []}), "utf-8")
    lost = source.read()
    assert "flights" in lost.plans
    assert "gone" in lost.problems["flights"]

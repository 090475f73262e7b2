"""The environments of other servers: made by uv from pinned files, and compared with ours."""

from pathlib import Path

import environments
import pytest
from environments import EnvironmentMissingError, python_of


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pinned file of a server "other"."""
    monkeypatch.setattr(environments, "HOME", tmp_path / "home")
    monkeypatch.setattr(environments, "PINNED", tmp_path)
    return tmp_path / "other.txt"


def test_our_own_environment_is_there() -> None:
    """Servers without pins of their own run on ours."""
    assert python_of("").exists()


def test_an_environment_that_computes_with_other_versions_is_none(pins: Path) -> None:
    """It is made, found to differ, and the reason names what differs."""
    pins.write_text("")

    with pytest.raises(EnvironmentMissingError, match="its pins bring scikit-learn none and not"):
        python_of("other")


def test_pins_that_cannot_be_installed_are_a_reason(pins: Path) -> None:
    """A requirement without its hash is refused."""
    pins.write_text("numpy==2.4.6\n")

    with pytest.raises(EnvironmentMissingError, match="cannot be installed"):
        python_of("other")

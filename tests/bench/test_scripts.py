"""The bench's scripts start as `make bench` starts them: by path, and not by pytest."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = ("controller", "experiments", "gateway", "gateway_requests")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_all_it_imports(script: str, tmp_path: Path) -> None:
    """It prints its options, wherever it is started."""
    path = Path(__file__).with_name(f"{script}.py")
    done = subprocess.run(
        [sys.executable, str(path), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout or "--count" in done.stdout

"""What the command makes of its arguments and its environment."""

import json
import subprocess
import sys

import pytest

from fairlead_serving.entrypoints.cli import _parse


def test_options_of_the_environment_yield_to_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the controller does not say may be said in a variable; what it says stays."""
    options = "--max-rows 7 --access-log 0.5 --trusted-types 'a.B, c.D'"
    monkeypatch.setenv("FAIRLEAD_SERVING_OPTIONS", options)
    settings, *_ = _parse(["--model", "m", "--port", "1", "--max-rows", "9"])
    assert (settings.limits.rows, settings.access_log) == (9, 0.5)
    assert settings.trusted_types == ("a.B", "c.D")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--nothing", "unrecognized arguments: --nothing"),
        ("--name 'x", "FAIRLEAD_SERVING_OPTIONS cannot be read: no closing quotation"),
        ("--access-log 2", "'2' is not a share between 0 and 1"),
        ("--access-log x", "'x' is not a share between 0 and 1"),
        ("--max-queue many", "'many' is not a whole number above 0"),
        ("--max-queue 0", "'0' is not a whole number above 0"),
        ("--latency-buckets 2,1", "'2,1' is not in ascending order"),
        ("--log-format xml", "invalid choice: 'xml'"),
    ],
)
def test_wrong_options_are_named(
    options: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong option ends the command with 2 and says which one it is."""
    monkeypatch.setenv("FAIRLEAD_SERVING_OPTIONS", options)
    with pytest.raises(SystemExit) as ended:
        _parse(["--model", "m", "--port", "1"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


SCRIPT = """
import logging
from fairlead_serving.entrypoints.logs import configure_logging

configure_logging("warning", "{form}")
logging.getLogger("x").info("not this")
logging.getLogger("x").warning("Two\\nlines %s", 1, extra={{"status": 200}})
"""


def _logged(form: str) -> str:
    command = [sys.executable, "-c", SCRIPT.format(form=form)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_json_logs_hold_the_fields() -> None:
    """A line of the log is one object with time, level, logger, message and all fields."""
    (line,) = _logged("json").splitlines()
    record = json.loads(line)
    assert record.pop("at").startswith("20")
    assert record == {"level": "WARNING", "logger": "x", "message": "Two\nlines 1", "status": 200}


def test_text_logs_are_for_people() -> None:
    """Without a wish the log is readable."""
    assert _logged("text") == "WARNING x: Two\nlines 1\n"

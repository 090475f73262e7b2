"""The page of input types, row by row, against MLflow itself and against this service."""

import base64
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fairlead_serving.domain.data import Columns
from fairlead_serving.domain.decode import decode
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.signature import Column, Kind, Signature

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "input-types.md"
SCRIPT = Path(__file__).with_name("mlflow_rules.py")
NOTHING = "no column"


def _rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").partition("## Rules")[2].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "`" in line
    ]
    rows += [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if NOTHING in line and "`" not in line
    ]
    return rows


ROWS = _rows()


def _case(row: list[str]) -> tuple[str, bool, list[Any] | None]:
    """Give a row's type, whether it is required, and the values that are sent."""
    kind, _, optional = row[0].partition(", ")
    sent, several, _ = row[1].partition(" (rows)")
    if sent == NOTHING:
        return kind, not optional, None
    value = json.loads(sent.strip("`"))
    return kind, not optional, value if several else [value]


def _expected(cell: str, row: list[str]) -> Any:
    """Give what a cell of the page says: values, "refused" or "absent"."""
    words = cell.strip("*")
    if words == NOTHING:
        return "absent"
    if words == "refused":
        return words
    value = json.loads(words.strip("`"))
    return value if "(rows)" in row[1] else [value]


@pytest.fixture(scope="module")
def mlflow_answers() -> list[Any]:
    """What MLflow's scoring server makes of each row."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT)],
        input=json.dumps([_case(row) for row in ROWS]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def test_page_is_complete() -> None:
    """Each type has rows for a column that is required and for one that is not."""
    kinds = {row[0] for row in ROWS}
    assert kinds == {*Kind, *(f"{kind}, optional" for kind in Kind)}
    assert len(ROWS) > 100


@pytest.mark.parametrize("at", range(len(ROWS)), ids=[" ".join(row[:2]) for row in ROWS])
def test_rule_is_as_the_page_says(at: int, mlflow_answers: list[Any]) -> None:
    """MLflow and this service make of a value what the page says; bold is where they differ."""
    row = ROWS[at]
    theirs, ours = _expected(row[2], row), _expected(row[3], row)
    assert mlflow_answers[at] == theirs
    assert _read(*_case(row)) == ours
    assert (theirs != ours) is row[3].startswith("**")


def _read(kind: str, required: bool, values: list[Any] | None) -> Any:
    columns = (Column("c", Kind(kind), required), Column("k", Kind.LONG))
    cells = [{}] if values is None else [{"c": value} for value in values]
    records = [{**cell, "k": 1} for cell in cells]
    try:
        data = decode({"dataframe_records": records}, Signature(columns=columns)).data
    except BadInputError:
        return "refused"
    assert isinstance(data, Columns)
    found = dict(zip(data.layout.names, data.cells, strict=True))
    return [_plainly(value) for value in found["c"]] if "c" in found else "absent"


def _plainly(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, datetime) else value

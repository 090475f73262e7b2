"""The prepared data, as files.

flights.parquet          every flight that arrived: keys, features, label
heldout/columns.json     the columns of a request's rows
heldout/requests.jsonl   one request a line
manifest.json            written last: without it the folder counts as empty
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fairlead_training.app.ports import Manifest
from fairlead_training.domain.features import COLUMNS, UNITS, column_type
from fairlead_training.domain.replay import Request


class Folder:
    """A prepared folder.

    Args:
        path: Made when written to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def location(self) -> str:
        """Return the flights' file."""
        return str(self._flights.resolve())

    def manifest(self) -> Manifest | None:
        """Return what the folder holds; None if it is not whole."""
        try:
            manifest = Manifest(**json.loads((self._path / "manifest.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        whole = all(path.is_file() for path in (self._flights, self._requests, self._columns))
        return manifest if whole else None

    def flights(self) -> pd.DataFrame:
        """Return the flights."""
        return pd.read_parquet(self._flights)

    def write(
        self, flights: pd.DataFrame, requests: Sequence[Request], key: str, dropped: int
    ) -> Manifest:
        """Write the folder; the manifest last."""
        (self._path / "heldout").mkdir(parents=True, exist_ok=True)
        (self._path / "manifest.json").unlink(missing_ok=True)
        flights.to_parquet(self._flights, index=False)
        _write_json(self._columns, _columns())
        lines = (_line(request) for request in requests)
        self._requests.write_text("\n".join(lines) + "\n", "utf-8")
        manifest = Manifest(
            key=key,
            digest=hashlib.sha256(self._flights.read_bytes()).hexdigest(),
            flights=len(flights),
            dropped=dropped,
            requests=len(requests),
        )
        _write_json(self._path / "manifest.json", asdict(manifest))
        return manifest

    @property
    def _flights(self) -> Path:
        return self._path / "flights.parquet"

    @property
    def _columns(self) -> Path:
        return self._path / "heldout" / "columns.json"

    @property
    def _requests(self) -> Path:
        return self._path / "heldout" / "requests.jsonl"


def _columns() -> dict[str, Any]:
    return {
        "columns": list(COLUMNS),
        "types": {column: column_type(column) for column in COLUMNS},
        "meaning": dict(UNITS),
        "unit": "tailnum",
        "label": "1 where the flight arrived more than 15 minutes late",
    }


def _line(request: Request) -> str:
    """Return one request as one line; `asdict` would copy every value of every row."""
    document = {
        "unit": request.unit,
        "month": request.month,
        "rows": request.rows,
        "late": request.late,
    }
    return json.dumps(document, allow_nan=False, separators=(",", ":"))


def _write_json(path: Path, document: object) -> None:
    """Write beside the file and rename, so that no reader meets half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    part.replace(path)

"""Tells before serving whether a model could be served, without loading it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairlead_serving.domain.environment import Environment
from fairlead_serving.domain.errors import CannotFetchError, CannotLoadError
from fairlead_serving.entrypoints.server import CANNOT_FETCH, CANNOT_LOAD
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.wiring import (
    Inspected,
    LayerNeededError,
    fetch,
    inspect,
    settle_environment,
)


def check(settings: Settings, *, as_json: bool) -> int:
    """Print what a model needs and what there is, and whether it could be served.

    Args:
        settings: The model, and what is to be done about unmet requirements.
        as_json: Print one JSON document instead of a table.

    Returns:
        0 if it could be served; 3 if never, with the sentence that the server would give; 4 if it
        could not be fetched, or what it needs could not be installed, just now.
    """
    found, layer, code, reason = None, None, 0, ""
    try:
        folder = fetch(settings, _show_bar if sys.stderr.isatty() else None)
        found = inspect(settings, folder)
        settle_environment(settings, folder, found.environment)
    except LayerNeededError as needed:
        layer = needed.layer
    except CannotLoadError as error:
        code, reason = CANNOT_LOAD, str(error)
    except CannotFetchError as error:
        code, reason = CANNOT_FETCH, str(error)
    if as_json:
        print(json.dumps(_document(settings, found, layer, reason), indent=2))
    else:
        _print_table(found, layer, reason)
    return code


def _show_bar(done: int, total: int) -> None:
    share = done / total if total else 1.0
    bar = "#" * round(30 * share)
    print(
        f"\r[{bar:<30}] {done / 1e6:.0f} of {total / 1e6:.0f} MB",
        end="\n" if done >= total else "",
        file=sys.stderr,
        flush=True,
    )


def _document(
    settings: Settings, found: Inspected | None, layer: Path | None, reason: str
) -> Mapping[str, Any]:
    known = {} if found is None else _known(found)
    return {
        "model": settings.model,
        **known,
        "layer": None if layer is None else str(layer),
        "canBeServed": not reason,
        "reason": reason or None,
    }


def _known(found: Inspected) -> Mapping[str, Any]:
    environment = found.environment
    return {
        "flavor": found.flavor,
        "python": {
            "madeWith": environment.made_with or None,
            "installed": environment.python,
            "isMet": environment.is_python_met,
        },
        "requirements": [
            {
                "name": need.name,
                "wanted": need.wanted,
                "installed": need.installed,
                "isMet": need.is_met,
            }
            for need in environment.needs
        ],
    }


def _print_table(found: Inspected | None, layer: Path | None, reason: str) -> None:
    if found is not None:
        rows = [("REQUIREMENT", "WANTED", "INSTALLED", ""), *_rows(found.environment)]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
            print("  ".join((*cells, row[3])).rstrip())
        print(f"It would be loaded as {found.flavor}.")
    if layer is not None:
        print(f"What it lacks is installed in '{layer}'.")
    print(reason or "It can be served.")


def _rows(environment: Environment) -> list[tuple[str, str, str, str]]:
    needs = [
        (need.name, need.wanted or "any", need.installed or "-", _word(is_met=need.is_met))
        for need in environment.needs
    ]
    python = _word(is_met=environment.is_python_met)
    if environment.is_python_met and environment.is_other_python:
        python = "differs"
    return [("Python", environment.made_with or "any", environment.python, python), *needs]


def _word(*, is_met: bool) -> str:
    return "ok" if is_met else "not met"

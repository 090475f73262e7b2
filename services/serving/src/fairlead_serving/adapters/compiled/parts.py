"""Recognises scikit-learn's classes by name: importing those a model does not have would be slow."""

from typing import Any


def name_of(part: Any) -> str:
    """Give the name of a part's class; empty for one that is not scikit-learn's own."""
    kind = type(part)
    return kind.__name__ if kind.__module__.partition(".")[0] == "sklearn" else ""


def steps_of(part: Any) -> list[Any]:
    """Give the steps of a pipeline; anything else is the only step."""
    return [step for _, step in part.steps] if name_of(part) == "Pipeline" else [part]

"""Walks all trees of a histogram boosting at once, a level at a time.

scikit-learn's own code is called once for each tree, which for a few rows is nearly all it takes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead_serving.adapters.compiled.blocks import Numbers
from fairlead_serving.adapters.compiled.errors import CannotCompileError

Walk = Callable[[Numbers], Numbers]


def compile_walk(trees: Sequence[NDArray[Any]]) -> Walk:
    """Put trees together for a walk.

    Args:
        trees: The nodes of each, as scikit-learn keeps them.

    Returns:
        A function from rows, 64-bit floats in C order, to an array of the shape (rows, trees):
        the values of the leaves where each row ends.

    Raises:
        CannotCompileError: The nodes are not as they are known to be.
    """
    sizes = [len(nodes) for nodes in trees]
    roots = np.cumsum([0, *sizes[:-1]])
    nodes = np.concatenate(trees)
    try:
        if nodes["is_categorical"].any():
            raise CannotCompileError("histogram boosting with categories")
        is_leaf, depth = nodes["is_leaf"].astype(bool), int(nodes["depth"].max())
        features = nodes["feature_idx"].astype(np.intp)
        limits, values = nodes["num_threshold"].astype(float), nodes["value"].astype(float)
        misses_left = nodes["missing_go_to_left"].astype(bool)
        children = np.stack([nodes["right"], nodes["left"]], axis=1).astype(np.intp)
    except ValueError as error:
        raise CannotCompileError("histogram boosting of this scikit-learn") from error
    children += np.repeat(roots, sizes)[:, None]
    # Who has arrived stays there, while others go on.
    children[is_leaf] = np.flatnonzero(is_leaf)[:, None]
    steps = children.ravel()

    def walk(block: Numbers) -> Numbers:
        at = np.repeat(roots[None], len(block), axis=0)
        rows = (np.arange(len(block)) * block.shape[1])[:, None]
        has_gaps = bool(np.isnan(block).any())
        for _ in range(depth):
            found = block.take(features.take(at) + rows)
            is_left = found <= limits.take(at)
            if has_gaps:
                is_left |= np.isnan(found) & misses_left.take(at)
            at = steps.take(2 * at + is_left)
        return values.take(at)

    return walk

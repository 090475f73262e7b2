"""Puts compiled parts together: pipelines, and transformers by column."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from fairlead_serving.adapters.compiled.blocks import (
    Block,
    Frame,
    Holds,
    Numbers,
    Shape,
    shape_of,
)
from fairlead_serving.adapters.compiled.errors import CannotCompileError
from fairlead_serving.adapters.compiled.heads import compile_head
from fairlead_serving.adapters.compiled.parts import name_of, steps_of
from fairlead_serving.adapters.compiled.transforms import (
    Step,
    compile_transform,
    held_after,
)
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.signature import Signature

Enter = Callable[[Frame], Numbers]


class Compiled:
    """A compiled model.

    Args:
        shape: What its input is.
        enter: Makes the numbers for the final estimator.
        head: Predicts on them.

    Attributes:
        shape: See above.
        tolerance: How far floats may differ, relative to the largest: scikit-learn's own
            predictions of one row differ as much with the number of rows beside it.
    """

    tolerance = 1e-12

    def __init__(self, shape: Shape, enter: Enter, head: Step) -> None:
        self.shape = shape
        self._enter = enter
        self._head = head

    def predict(self, data: Data) -> Any:
        """Predict.

        Args:
            data: The checked input.

        Returns:
            What the model's own method would give.

        Raises:
            NotTakenError: The model's own method has to be asked.
        """
        # Numbers that are too large are found out, and need no warning as well.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._head(self._enter(Frame(data, self.shape)))


def compile_model(estimator: Any, method: str, signature: Signature) -> Compiled:
    """Compile a fitted estimator.

    Args:
        estimator: An estimator or a pipeline.
        method: The method that predicts.
        signature: What it is given.

    Raises:
        CannotCompileError: Something in it is not known.
    """
    shape = shape_of(signature)
    if shape is None:
        raise CannotCompileError("a signature with optional, nested or other special inputs")
    steps = steps_of(estimator)
    head = compile_head(steps[-1], method)
    return Compiled(shape, _compile_steps(steps[:-1], shape), head)


def _compile_steps(steps: Sequence[Any], shape: Shape) -> Enter:
    steps = [step for step in steps if not _is_passthrough(step)]
    everything = range(len(shape.names))
    if steps and name_of(steps[0]) == "ColumnTransformer":
        enter, steps = _compile_columns(steps[0], shape), steps[1:]
        return _chained(enter, [compile_transform(step, Holds.NUMBERS) for step in steps])
    return _compile_branch(steps, everything, shape)


def _chained(enter: Callable[[Frame], Block], chain: Sequence[Step]) -> Enter:
    if not chain:
        return enter  # type: ignore[return-value]

    def run(frame: Frame) -> Any:
        return reduce(lambda block, step: step(block), chain, enter(frame))

    return run


def _compile_columns(transformer: Any, shape: Shape) -> Enter:
    if transformer.transformer_weights:
        raise CannotCompileError("ColumnTransformer with weights")
    branches = []
    for _, part, columns in transformer.transformers_:
        indexes = indexes_of(columns, shape)
        if indexes and part != "drop":
            branches.append(_compile_branch(steps_of(part), indexes, shape))
    if not branches:
        raise CannotCompileError("ColumnTransformer without columns")
    if len(branches) == 1:
        return branches[0]
    return lambda frame: np.hstack([branch(frame) for branch in branches])


def _compile_branch(steps: Sequence[Any], indexes: Sequence[int], shape: Shape) -> Enter:
    holds = shape.holds(indexes)
    enter: Callable[[Frame], Block] = lambda frame: frame.numbers(indexes)  # noqa: E731
    if holds is Holds.CELLS:
        enter = lambda frame: frame.cells(indexes)  # noqa: E731
    chain = []
    for step in steps:
        if not _is_passthrough(step):
            chain.append(compile_transform(step, holds))
            holds = held_after(step, holds)
    if holds is not Holds.NUMBERS:
        raise CannotCompileError("text that reaches the estimator")
    return _chained(enter, chain)


def _is_passthrough(step: Any) -> bool:
    if step is None or (isinstance(step, str) and step == "passthrough"):
        return True
    # What a fitted ColumnTransformer puts in the place of the word.
    return name_of(step) == "FunctionTransformer" and step.func is None


def indexes_of(columns: Any, shape: Shape) -> list[int]:
    """Give the places of the columns that somebody chose by name, number, slice or mask.

    Args:
        columns: As a ColumnTransformer keeps them.
        shape: The input's.

    Raises:
        CannotCompileError: The input has no such columns.
    """
    if isinstance(columns, str | int):
        raise CannotCompileError("a transformer of a single column, as a vector")
    names = list(shape.names)
    if isinstance(columns, slice):
        bounds = [
            names.index(at) if isinstance(at, str) else at for at in (columns.start, columns.stop)
        ]
        stop = bounds[1]
        if isinstance(columns.stop, str) and stop is not None:
            stop += 1  # With names the last one belongs to it.
        return list(range(len(names)))[slice(bounds[0], stop, columns.step)]
    chosen = list(columns)
    if chosen and all(isinstance(one, bool | np.bool_) for one in chosen):
        return [at for at, one in enumerate(chosen) if one]
    try:
        return [names.index(one) if isinstance(one, str) else int(one) for one in chosen]
    except (ValueError, TypeError) as error:
        raise CannotCompileError("columns that the signature does not have") from error

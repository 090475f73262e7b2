"""Sessions of onnxruntime: how one is made, what it refuses, whether its rows see each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead_serving.adapters.arrays import to_json
from fairlead_serving.domain.errors import BadInputError

_CPU = "CPUExecutionProvider"
_FATAL = 4
_MODES = {"SEQUENTIAL": "ORT_SEQUENTIAL", "PARALLEL": "ORT_PARALLEL"}
_ROWWISE_PRODUCERS = frozenset({"OnnxMLTools", "skl2onnx"})
_DRAWN = 8
_TOLERANCE = 1e-4
_DTYPES: Mapping[str, str] = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(string)": "str",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(uint8)": "uint8",
}
Feeds = Mapping[str, NDArray[Any]]


def start_session(
    graph: str | bytes,
    threads: int,
    options: Mapping[str, Any] | None = None,
    providers: Any = None,
) -> Any:
    """Make what runs a graph.

    Args:
        graph: The graph, or the path of its file.
        threads: How many threads one call may use. What the model was saved with was for the
            machine of its author.
        options: MLflow's `onnx_session_options`.
        providers: What may run it by MLflow's `providers`, the best first; what is not here is
            left out, and the processor is what remains.

    Returns:
        A session of onnxruntime.
    """
    # Optional, and only this flavor needs it.
    import onnxruntime  # noqa: PLC0415

    options = options or {}
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.inter_op_num_threads = 1
    # Threads that spin use up the processor time that others on this machine, or this one, need.
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # What it would log it raises too, and that may hold a value of the input.
    chosen.log_severity_level = _FATAL
    mode = _MODES.get(str(options.get("execution_mode")).upper())
    if mode:
        chosen.execution_mode = getattr(onnxruntime.ExecutionMode, mode)
    if options.get("graph_optimization_level"):
        level = options["graph_optimization_level"]
        chosen.graph_optimization_level = onnxruntime.GraphOptimizationLevel(level)
    for key, value in (options.get("extra_session_config") or {}).items():
        chosen.add_session_config_entry(key, value)
    here = _providers(providers, onnxruntime.get_available_providers())
    return onnxruntime.InferenceSession(graph, sess_options=chosen, providers=here)


def _providers(saved: Any, here: Sequence[str]) -> list[Any]:
    listed = [saved] if isinstance(saved, str) else saved or []
    named = [tuple(one) if isinstance(one, list) else one for one in listed]
    return [one for one in named if (one[0] if isinstance(one, tuple) else one) in here] or [_CPU]


def refuse_misfits(inputs: Sequence[Any], feeds: Feeds, error: Exception) -> None:
    """Say which array the graph cannot take, if it is that what a run failed of.

    Args:
        inputs: Those of the graph, as onnxruntime describes them.
        feeds: What the graph was given.
        error: What the run raised.

    Raises:
        BadInputError: An array is missing, too many, or not of its type or shape.
    """
    names = [spec.name for spec in inputs]
    if not feeds.keys() <= set(names):
        raise BadInputError(
            f"The model's inputs are {', '.join(names)}; leave out what is none of them."
        ) from error
    for spec in inputs:
        words = _misfit(spec, feeds.get(spec.name))
        if words:
            raise BadInputError(f"The model's input '{spec.name}' {words}.", spec.name) from error


def _misfit(spec: Any, array: NDArray[Any] | None) -> str:
    if array is None:
        return "is missing"
    wanted = _DTYPES.get(spec.type)
    if wanted and array.dtype.name != wanted and not (wanted == "str" and array.dtype.kind in "OU"):
        # A dtype of text also says how long the longest of the caller's words is.
        return f"must hold {wanted}, not {'str' if array.dtype.kind in 'OU' else array.dtype.name}"
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    fits = len(shape) == array.ndim and all(
        size in (-1, given) for size, given in zip(shape, array.shape, strict=True)
    )
    return "" if fits else f"must have the shape {shape}, not {list(array.shape)}"


def is_rowwise(session: Any) -> bool:
    """Tell whether the rows of a graph are known not to see each other.

    A graph may do anything, so only those are asked that were converted from models of rows; and
    as a converter may be somebody's own, drawn rows have to come out the same alone and together.

    Args:
        session: What runs the graph.
    """
    inputs = session.get_inputs()
    is_table = all(
        spec.shape
        and not isinstance(spec.shape[0], int)
        and all(isinstance(size, int) for size in spec.shape[1:])
        and spec.type in _DTYPES
        for spec in inputs
    )
    if not is_table or session.get_modelmeta().producer_name not in _ROWWISE_PRODUCERS:
        return False
    random = np.random.default_rng(1)
    feeds = {spec.name: _draw(random, spec) for spec in inputs}
    try:
        together = session.run(None, feeds)
        alone = [
            session.run(None, {name: array[at : at + 1] for name, array in feeds.items()})
            for at in range(_DRAWN)
        ]
    except Exception:  # noqa: BLE001  # Whatever it is, then nothing is known.
        return False
    return all(map(_is_same, together, zip(*alone, strict=True)))


def _draw(random: np.random.Generator, spec: Any) -> NDArray[Any]:
    shape = (_DRAWN, *spec.shape[1:])
    dtype = _DTYPES[spec.type]
    if dtype == "str":
        return random.choice(["", "a", "never seen before"], shape).astype(object)
    if dtype.startswith("float"):
        return random.normal(scale=10.0, size=shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def _is_same(together: Any, parts: Sequence[Any]) -> bool:
    whole, pieces = (
        list(_leaves(to_json(together))),
        [leaf for part in parts for leaf in _leaves(to_json(part))],
    )
    if not all(isinstance(leaf, float) for leaf in (*whole, *pieces)):
        return whole == pieces
    return len(whole) == len(pieces) and np.allclose(
        whole, pieces, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
    )


def _leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for part in parts:
            yield from _leaves(part)
    else:
        yield value

"""Times the reading of bad bodies beside the same bodies without the mistake.

A body that is refused must not cost more than twice what it costs when it is good, or a caller
with a mistake takes the time of those without. Prints nanoseconds for each byte and their ratio;
ends with 1 if a ratio is above the limit. Long bodies are only read: no socket, no model. Of short
ones reading is the smallest part, and finding the words for a mistake takes longer than reading
three numbers, so those go the whole way of a request but the socket: a model predicts, an answer is
written.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastapi import FastAPI

from fairlead_serving.adapters.arrays import Arrays
from fairlead_serving.adapters.metrics import Metrics
from fairlead_serving.app.lane import Lane, Limits
from fairlead_serving.app.ports import ModelFolder, Predictor
from fairlead_serving.app.serving import Served
from fairlead_serving.domain.data import Data
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.reader import Reader
from fairlead_serving.domain.signature import ArrayOf, Column, Kind, Signature, Tensor
from fairlead_serving.domain.v2 import read_infer
from fairlead_serving.entrypoints.hot import HotPath
from fairlead_serving.entrypoints.settings import Settings
from fairlead_serving.entrypoints.state import State

LIMIT = 2.0
ROWS = 5000
TURNS = 15
SHORTEST = 20_000
"""Bodies of fewer bytes are read several times in a turn."""

FLAT = Signature(
    columns=(Column("hour", Kind.DOUBLE), Column("day", Kind.LONG), Column("gate", Kind.STRING))
)
OTHERS = Signature(
    columns=(
        Column("when", Kind.DATETIME),
        Column("photo", Kind.BINARY, required=False),
        Column("ids", ArrayOf(Kind.LONG)),
    )
)
NUMBERS = Signature(columns=(Column(None, Kind.DOUBLE), Column(None, Kind.LONG)))
MATRIX = Signature(tensors=(Tensor(None, "float64", (-1, 4)),))
BYTES = Signature(tensors=(Tensor("image", "uint8", (-1, 4)),))


class Pair(NamedTuple):
    """A good body and one with a mistake in it, both read in the same way."""

    name: str
    read: Callable[[bytes], object]
    good: bytes
    bad: bytes


def main() -> int:
    """Measure every pair.

    Returns:
        0 if every ratio is within the limit, else 1.
    """
    worst = 0.0
    say(f"{'':44} good ns/B  bad ns/B  ratio")
    for pair in pairs():
        good, bad = measure(pair)
        worst = max(worst, bad / good)
        say(f"{pair.name:44} {good:9.2f} {bad:9.2f} {bad / good:6.2f}")
    say(f"the worst is {worst:.2f}; the limit is {LIMIT}")
    return int(worst > LIMIT)


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def measure(pair: Pair) -> tuple[float, float]:
    """Give the nanoseconds for each byte of both bodies: the best of several turns."""
    pair.read(pair.good)
    if not is_refused(pair):
        raise SystemExit(f"{pair.name}: the bad body was taken")
    times: dict[bytes, list[float]] = {pair.good: [], pair.bad: []}
    again = max(1, SHORTEST // len(pair.good))
    for _ in range(TURNS):  # In turns, so that a busy machine slows both.
        for body, taken in times.items():
            tried = pair._replace(bad=body)
            started = time.thread_time()
            for _ in range(again):
                is_refused(tried)
            taken.append((time.thread_time() - started) / again)
    good, bad = (min(taken) / len(body) * 1e9 for body, taken in times.items())
    return good, bad


def is_refused(pair: Pair) -> bool:
    """Tell whether the bad body of a pair is refused."""
    try:
        pair.read(pair.bad)
    except BadInputError:
        return True
    return False


def pairs() -> Iterator[Pair]:
    """Give all pairs: each form, with each mistake at each end."""
    yield from _broken()
    yield from _records()
    yield from _lists()
    yield from _tensors()
    yield from _csv()
    yield from _infer()
    yield from _short()


class Linear:
    """As small as a model can be, so that it hides nothing."""

    is_rowwise = True
    predictor = Predictor.OWN

    def __init__(self) -> None:
        self._arrays = Arrays()

    def predict(self, data: Data, _params: object) -> object:
        """Add up each row."""
        built = self._arrays.build_plain(data, None)
        if isinstance(built, np.ndarray):
            return built.sum(axis=1)
        return built.iloc[:, 0].to_numpy()


class Answering:
    """Takes bodies the whole way of a short request, but the socket.

    Args:
        signature: The model's.
    """

    def __init__(self, signature: Signature) -> None:
        served = Served(Linear(), ModelFolder(path=Path(), flavors={}, signature=signature))
        metrics, state = Metrics("x", ""), State(served=served)
        self._hot = HotPath(Settings(model="x", name="x"), state, metrics, FastAPI())
        self._runner = asyncio.Runner()
        self._runner.run(self._open(state, served, metrics))

    async def _open(self, state: State, served: Served, metrics: Metrics) -> None:
        worker = ThreadPoolExecutor(1)
        state.lane = Lane(served.predict, worker, Limits(timeout=600), metrics, served.pace)

    def __call__(self, body: bytes) -> None:
        """Answer a body; raise `BadInputError` if it was refused."""
        answered = self._runner.run(self._answer(body))
        if answered.status != 200:
            raise BadInputError(answered.body.decode())

    async def _answer(self, body: bytes) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        headers = [(b"content-type", b"application/json")]
        self._hot.answer_short(self._hot.routes["/invocations"], headers, body, answer.set_result)
        return await answer


def _short() -> Iterator[Pair]:
    wrong = {"hour": "x", "day": 1.5, "gate": 1}
    read = Answering(FLAT)
    for count in (1, 3, 10):
        rows = [_flat(row) for row in range(count)]
        good = _json({"dataframe_records": rows})
        for name, value in wrong.items():
            bad = _json({"dataframe_records": [*rows[:-1], {**rows[-1], name: value}]})
            yield Pair(f"{count} records, {name} is wrong", read, good, bad)
        yield Pair(f"{count} records, cut off", read, good, good[:-2])
        lists, names = [list(row.values()) for row in rows], list(rows[0])
        good = _json({"dataframe_split": {"columns": names, "data": lists}})
        bad = _json({"dataframe_split": {"columns": names, "data": [*lists[:-1], ["x", 1, "a"]]}})
        yield Pair(f"split of {count}, hour is wrong", read, good, bad)
    read = Answering(MATRIX)
    good, bad = (_json({"inputs": [[0.5, 1.5, 2.5, last]]}) for last in (3.5, "x"))
    yield Pair("tensor of 1, the row is wrong", read, good, bad)


def _flat(row: int) -> dict[str, Any]:
    return {"hour": row + 0.5, "day": row, "gate": "AA"}


def _other(row: int) -> dict[str, Any]:
    return {"when": f"2020-01-02T03:04:{row % 60:02}", "photo": "AQI=", "ids": [row, row]}


def _json(document: object) -> bytes:
    return json.dumps(document).encode()


def _broken() -> Iterator[Pair]:
    read = Reader(FLAT).read_json
    good = _json({"dataframe_records": [_flat(row) for row in range(ROWS)]})
    yield Pair("JSON, cut off", read, good, good[:-2])
    words = good.replace(b'"AA"', b'"NaN"')
    yield Pair('JSON of strings with "NaN", cut off', read, words, words[:-2])
    yield Pair("JSON, no UTF-8 at the end", read, good, good[:-6] + b"\xff" + good[-5:])
    yield Pair("JSON, Infinity at the end", read, good, good.replace(b"4999.5", b"   Inf"))
    yield Pair("JSON, brackets", read, good, b"[" * len(good))
    yield Pair("JSON, deep", read, good, b'{"inputs":' * (len(good) // 10))
    yield Pair("JSON, one string", read, good, b'"' + b"x" * len(good) + b'"')
    yield Pair("JSON, a list of numbers", read, good, b"[" + b"1," * (len(good) // 2) + b"1]")
    yield Pair("JSON, no form", read, good, good.replace(b"dataframe_records", b"dataframe_record"))
    other = b'{"inputs": 1, ' + good[1:]
    yield Pair("JSON, two forms", read, good, other)
    yield Pair("JSON, an unknown parameter", read, good, good[:-1] + b', "params": {"x": 1}}')


def _records() -> Iterator[Pair]:
    for signature, make, wrong in (
        (FLAT, _flat, {"hour": "x", "day": 1.5, "gate": 1}),
        (OTHERS, _other, {"when": "x", "photo": "x", "ids": 1}),
    ):
        rows = [make(row) for row in range(ROWS)]
        read = Reader(signature).read_json
        good = _json({"dataframe_records": rows})
        for name, value in wrong.items():
            for at in (0, ROWS // 2, -1):
                bad = [*rows]
                bad[at] = {**bad[at], name: value}
                title = f"records, {name} is wrong in row {at}"
                yield Pair(title, read, good, _json({"dataframe_records": bad}))
        lacking = [*rows]
        lacking[-1] = {
            key: value for key, value in lacking[-1].items() if key not in {"day", "ids"}
        }
        yield Pair("records, one lacks a column", read, good, _json({"dataframe_records": lacking}))
        first = next(iter(rows[0]))
        without = [{key: row[key] for key in row if key != first} for row in rows]
        yield Pair("records, all lack a column", read, good, _json({"dataframe_records": without}))
        listed = [*rows[:-1], [1, 2]]
        yield Pair("records, one is a list", read, good, _json({"dataframe_records": listed}))


def _lists() -> Iterator[Pair]:
    read = Reader(FLAT).read_json
    rows = [list(_flat(row).values()) for row in range(ROWS)]
    names = list(_flat(0))
    for title, last in (("a wrong value", ["x", 1, "a"]), ("too short", [1, 2])):
        good, bad = (
            _json({"dataframe_split": {"columns": names, "data": [*rows[:-1], row]}})
            for row in (rows[-1], last)
        )
        yield Pair(f"split, the last row is {title}", read, good, bad)
    few = _json({"dataframe_split": {"columns": names[:2], "data": [row[:2] for row in rows]}})
    yield Pair("split, without a column", read, good, few)
    twice = _json({"dataframe_split": {"columns": [*names[:2], names[1]], "data": rows}})
    yield Pair("split, a column is named twice", read, good, twice)
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    good = _json({"inputs": columns})
    for name in names:
        wrong = {**columns, name: [*columns[name][:-1], {}]}
        yield Pair(f"lists, {name} is wrong at the end", read, good, _json({"inputs": wrong}))
    short = {**columns, "day": columns["day"][:-1]}
    yield Pair("lists, one is too short", read, good, _json({"inputs": short}))
    single = {**columns, "day": {}}
    yield Pair("lists, one is an object", read, good, _json({"inputs": single}))
    read = Reader(NUMBERS).read_json
    plain = [row[:2] for row in rows]
    good = _json({"inputs": plain})
    yield Pair("rows, the last is wrong", read, good, _json({"inputs": [*plain[:-1], [1, "x"]]}))
    yield Pair("rows, all are too short", read, good, _json({"inputs": [row[:1] for row in rows]}))


def _tensors() -> Iterator[Pair]:
    for signature, items in ((MATRIX, [0.5, 1.5, 2.5, 3.5]), (BYTES, [1, 2, 3, 255])):
        read = Reader(signature).read_json
        named = "named " if signature is BYTES else ""
        wrap = (lambda value: {"inputs": {"image": value}}) if named else (lambda v: {"inputs": v})
        good = _json(wrap([items] * ROWS))
        for title, last in (("wrong", [1, 2, 3, "x"]), ("short", [1, 2]), ("null", [1, 2, 3, {}])):
            bad = _json(wrap([*[items] * (ROWS - 1), last]))
            yield Pair(f"{named}tensor, the last row is {title}", read, good, bad)
        bad = _json(wrap([items[:3]] * ROWS))
        yield Pair(f"{named}tensor, of another shape", read, good, bad)
    bad = _json(wrap([*[items] * (ROWS - 1), [1, 2, 3, 256]]))
    yield Pair("named tensor, out of range at the end", read, good, bad)


def _csv() -> Iterator[Pair]:
    read = Reader(FLAT).read_csv
    lines = [f"{row}.5,{row},AA" for row in range(ROWS)]
    good = "\n".join(["hour,day,gate", *lines]).encode()
    for title, last in (
        ("hour is wrong", "x,1,AA"),
        ("day is wrong", "1.5,x,AA"),
        ("day is a fraction", "1.5,1.5,AA"),
        ("day is missing", "1.5,,AA"),
        ("a cell too few", "1.5,1"),
    ):
        bad = "\n".join(["hour,day,gate", *lines[:-1], last]).encode()
        yield Pair(f"CSV, in the last line {title}", read, good, bad)
    yield Pair("CSV, no UTF-8 at the end", read, good, good[:-2] + b"\xff\xff")
    yield Pair("CSV, without a column", read, good, good.replace(b"day", b"dax", 1))


def _infer() -> Iterator[Pair]:
    def request(last: object, shape: list[int], **more: Any) -> bytes:
        return _json(
            {
                "inputs": [
                    {"name": "hour", "datatype": "FP64", "shape": shape, "data": hours(last)},
                    {"name": "day", "datatype": "INT64", "shape": [ROWS], "data": [*range(ROWS)]},
                    {"name": "gate", "datatype": "BYTES", "shape": [ROWS], "data": ["A"] * ROWS},
                ],
                **more,
            }
        )

    def hours(last: object) -> list[object]:
        return [*(row + 0.5 for row in range(ROWS - 1)), last]

    read = partial(read_infer, json_length=None, signature=FLAT)
    good = request(1.5, [ROWS])
    yield Pair("infer, cut off", read, good, good[:-2])
    yield Pair("infer, text at the end", read, good, request("x", [ROWS]))
    yield Pair("infer, an object at the end", read, good, request({}, [ROWS]))
    yield Pair("infer, a list at the end", read, good, request([1], [ROWS]))
    yield Pair("infer, another shape", read, good, request(1.5, [ROWS - 1]))
    yield Pair("infer, an input is missing", read, good, good.replace(b'"day"', b'"dax"'))
    yield Pair("infer, an id that is no text", read, good, request(1.5, [ROWS], id=1))


if __name__ == "__main__":
    sys.exit(main())

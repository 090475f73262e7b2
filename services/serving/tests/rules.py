"""The rules of the page of input types: the tables, their signatures, and who is asked."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainly import plainly, types_of

from fairlead_serving.adapters.arrays import Arrays
from fairlead_serving.domain.errors import BadInputError
from fairlead_serving.domain.reader import Reader
from fairlead_serving.domain.signature import read_signature

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "input-types.md"
SCRIPT = Path(__file__).with_name("mlflow_rules.py")
JSON, CSV = "application/json", "text/csv"


@dataclass(frozen=True)
class Case:
    """One request to a model of one signature, both as MLflow has them."""

    inputs: Sequence[Mapping[str, Any]]
    body: str
    type: str = JSON
    params: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Rule:
    """One row of the page: what is sent, what either makes of it, and why they differ."""

    sent: tuple[str, str, str]
    theirs: str
    ours: str
    why: str

    @property
    def is_bold(self) -> bool:
        """Whether the page says that the two differ."""
        return self.ours.startswith("**")

    @property
    def case(self) -> Case:
        """The request."""
        header, first, second = self.sent
        value = second.removesuffix(" (rows)").strip("`")
        match header:
            case "type":
                return _column_case(first, value, several=second != f"`{value}`")
            case "CSV":
                return Case(read_inputs(first), json.loads(value), CSV)
            case "params":
                given = "" if value == "nothing" else f', "params": {value}'
                body = f'{{"inputs": [1]{given}}}'
                return Case(read_inputs("a: long"), body, JSON, read_param(first))
        return Case(read_inputs(first), value)

    def plain(self, answer: Any) -> str:
        """Write an answer down as the page does."""
        if answer == "refused":
            return "refused"
        header, _, second = self.sent
        if header == "params":
            return _quoted(answer["params"])
        if header != "type":
            return _quoted(answer["input"])
        if "c" not in answer["input"]:
            return "no column"
        cells = answer["input"]["c"]
        return _quoted(cells if second.endswith("(rows)") else cells[0])


def read_rules() -> tuple[list[Rule], list[str]]:
    """Read the page: its rules, and the words that say why two may differ."""
    rules, reasons, header = [], [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 2 and line.startswith("|") and "--" not in line:
            reasons.append(cells[0])
        elif len(cells) == 5 and cells[2] == "MLflow":
            header = cells[0] if cells[0] == "type" else cells[1]
        elif len(cells) == 5:
            rules.append(Rule((header, cells[0], cells[1]), *cells[2:]))
    return rules, reasons[1:]


def _column_case(kind: str, value: str, *, several: bool) -> Case:
    if value == "no column":
        records = [{"k": 1}]
    else:
        cells = json.loads(value) if several else [json.loads(value)]
        records = [{"c": cell, "k": 1} for cell in cells]
    return Case(read_inputs(f"c: {kind}, k: long"), json.dumps({"dataframe_records": records}))


def _quoted(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


@dataclass(frozen=True)
class Oracle:
    """MLflow's scoring server in a process."""

    process: subprocess.Popen[str]

    def ask(self, case: Case) -> Any:
        """Give what reaches the model there, or "refused"."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(vars(case)) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer if answer == "refused" else {**answer, "params": answer["params"] or None}


@contextmanager
def mlflow_oracle(*options: str) -> Iterator[Oracle]:
    """Start MLflow's side; it ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(SCRIPT), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    ) as process:
        yield Oracle(process)
        assert process.stdin is not None
        process.stdin.close()


def ask_fairlead(case: Case) -> Any:
    """Give what reaches the model here, or "refused"."""
    reader = Reader(read_signature({"inputs": case.inputs, "params": case.params}))
    try:
        read = reader.read_json if case.type == JSON else reader.read_csv
        request = read(case.body.encode())
        built = Arrays().build(request.data)
    except BadInputError:
        return "refused"
    params = json.loads(json.dumps(dict(request.params), default=str)) or None
    return {"input": plainly(built), "types": types_of(built), "params": params}


def read_inputs(text: str) -> list[dict[str, Any]]:
    """Read the page's words for a signature: `a: long, b: array(double)?`, `a: int8[-1, 2]`."""
    return _Words(text).fields()


def read_param(text: str) -> list[dict[str, Any]]:
    """Read the page's words for a parameter: `p: long = 1`, `p: long[] = [1]`."""
    described, _, default = text.partition(" = ")
    kind = read_inputs(described.removesuffix("[]"))[0]
    del kind["required"]
    shape = [-1] if described.endswith("[]") else None
    return [{**kind, "default": json.loads(default), "shape": shape}]


class _Words:
    """A reader of those words, from left to right."""

    def __init__(self, text: str) -> None:
        self._words = re.findall(r"datetime64\[ns\]|[A-Za-z_]\w*|-?\d+|[^\s\w]", text)

    def fields(self) -> list[dict[str, Any]]:
        found = [self._field()]
        while self._take(","):
            found.append(self._field())
        return found

    def _field(self) -> dict[str, Any]:
        name = None
        if self._words[1:2] == [":"]:
            name = self._words[0]
            del self._words[:2]
        kind = self._type()
        required = not self._take("?")
        named = {} if name is None else {"name": name}
        return (
            {**kind, **named} if "tensor-spec" in kind else {**kind, **named, "required": required}
        )

    def _type(self) -> dict[str, Any]:
        word = self._words.pop(0)
        if self._take("["):
            return {"type": "tensor", "tensor-spec": {"dtype": word, "shape": self._shape()}}
        if word == "array":
            return {"type": word, "items": self._inner()}
        if word == "map":
            return {"type": word, "values": self._inner()}
        if word == "object":
            self._expect("(")
            fields = {field.pop("name"): field for field in self.fields()}
            self._expect(")")
            return {"type": word, "properties": fields}
        return {"type": word}

    def _inner(self) -> dict[str, Any]:
        self._expect("(")
        kind = self._type()
        self._expect(")")
        return kind

    def _shape(self) -> list[int]:
        shape = []
        while not self._take("]"):
            shape.append(int(self._words.pop(0)))
            self._take(",")
        return shape

    def _take(self, word: str) -> bool:
        if self._words[:1] != [word]:
            return False
        del self._words[0]
        return True

    def _expect(self, word: str) -> None:
        assert self._take(word), f"{word} before {self._words}"

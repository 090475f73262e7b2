"""The documentation says what is there: links, commands, examples, reasons, fields."""

import argparse
import ast
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from fairlead_experiments.entrypoints.cli import _parser as experiments_parser
from fairlead_gateway.entrypoints.cli import _parser as gateway_parser
from fairlead_rollout.adapters.schema import read_spec, served_model_schema
from fairlead_rollout.domain.reasons import Reason
from fairlead_rollout.domain.status import ConditionType, RolloutState
from fairlead_rollout.entrypoints.cli import _parser as fairlead_parser
from fairlead_serving.adapters.metrics import SECONDS
from fairlead_serving.entrypoints.cli import _check_parser as serving_check_parser
from fairlead_serving.entrypoints.cli import _parser as serving_parser
from fairlead_training.entrypoints.cli import _parser as training_parser

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*/*/README.md")
    for path in ROOT.glob(pattern)
    if ".venv" not in path.parts
)
PARSERS: Mapping[str, Callable[[], argparse.ArgumentParser]] = {
    "fairlead": fairlead_parser,
    "fairlead-serving": serving_parser,
    "fairlead-serving check": serving_check_parser,
    "fairlead-gateway": gateway_parser,
    "fairlead-experiments": experiments_parser,
    "fairlead-training": training_parser,
}

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
TARGET = re.compile(r"^([a-z0-9-]+):.*## ", re.MULTILINE)
OUTSIDE = re.compile(r"(?:href|src|url)\W+\w+://|@import", re.IGNORECASE)
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users)/")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def name_of(path: Path) -> str:
    """Name a page in a test's id."""
    return str(path.relative_to(ROOT))


def blocks(*languages: str) -> list[Block]:
    """Find the fenced blocks of some languages."""
    return [
        Block(page, language, textwrap.dedent(text))
        for page in PAGES
        for _, language, text in FENCE.findall(page.read_text("utf-8"))
        if language in languages
    ]


def prose(page: Path) -> str:
    """Return a page's text without its code."""
    return CODE.sub("", FENCE.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """Return the anchors a page's headings make."""
    headings = HEADING.findall(FENCE.sub("", page.read_text("utf-8")))
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


def fields(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Name every field a schema knows, as the reference does."""
    root = served_model_schema()
    ref = schema.get("$ref", "").removeprefix("#/$defs/")
    whole = {**root["$defs"].get(ref, {}), **schema}
    for name, part in whole.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield here
        yield from fields(part, here)
    if "items" in whole:
        yield from fields(whole["items"], f"{path}[]")


def options(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, str]]:
    """Name every command and every long option below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield f"{path} {name}", name
                yield from options(command, f"{path} {name}")
        for option in action.option_strings:
            if option.startswith("--") and option != "--help":
                yield path, option


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """A relative link points to a file that is there, and to a heading of it if it names one."""
    lost = []
    for link in LINK.findall(prose(page)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)

    assert lost == []


def test_every_command_and_option_is_on_the_page_of_commands() -> None:
    """The page of commands names each command and each option of Fairlead's own programs."""
    page = (REFERENCE / "cli.md").read_text("utf-8")
    programs = {name: parser for name, parser in PARSERS.items() if name != "fairlead-training"}

    missing = [
        f"{path} {word}"
        for program, parser in programs.items()
        for path, word in options(parser(), program)
        if not re.search(
            rf"(?<![\w-]){re.escape(word)}(?![\w-])", section(page, program.split()[0])
        )
    ]

    assert missing == []


@pytest.mark.parametrize("program", sorted({name.split()[0] for name in PARSERS}))
def test_every_option_on_the_page_of_commands_is_one(program: str) -> None:
    """No row of the page's tables names an option that its program does not take."""
    page = (REFERENCE / "cli.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^|]*--.*?)` \|", section(page, program), re.MULTILINE)
    written = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
    parsers = [parser() for name, parser in PARSERS.items() if name.split()[0] == program]

    assert written - {one for parser in parsers for _, one in options(parser, "")} <= {"--help"}


SERVING_DEFAULTS: Mapping[str, str] = {
    "--name": "the model's own",
    "--version": "that of the URI",
    "--cache": "`fairlead/models` in the user's cache folder",
    "--tracking-uri": "`MLFLOW_TRACKING_URI`",
    "--experiments": "`FAIRLEAD_EXPERIMENTS_URL`",
    "--latency-buckets": "from 1 ms to 10 s",
}
"""Defaults that are said in words."""


def test_every_option_of_serving_has_its_default_and_its_choices_on_the_page() -> None:
    """The table of the serving command says of each option what the command itself does."""
    page = section((REFERENCE / "cli.md").read_text("utf-8"), "fairlead-serving")
    rows = re.findall(r"^\| `(--[a-z-]+) ?(.*?)` \| (.*?) ?\| (.*) \|$", page, re.MULTILINE)
    actions = {
        action.option_strings[0]: action
        for action in serving_parser()._actions
        if action.option_strings[0] != "-h"
    }

    assert sorted(option for option, *_ in rows) == sorted(actions)
    for option, value, default, meaning in rows:
        action = actions[option]
        assert default == written_default(action), option
        named = value.split("\\|") if "|" in value else re.findall(r"`(\w+)`", meaning)
        assert action.choices is None or set(named) == set(action.choices), option
    assert serving_parser().get_default("latency_buckets")[:: len(SECONDS) - 1] == (0.001, 10.0)


def written_default(action: argparse.Action) -> str:
    """Give an option's default as the page writes it."""
    option, default = action.option_strings[0], action.default
    if option in SERVING_DEFAULTS:
        return SERVING_DEFAULTS[option]
    if action.required:
        return "required"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, int | float):
        return f"{default:.15g}"
    return f"`{default}`" if default else ""


def section(page: str, title: str) -> str:
    """Return the part of a page below a heading of the second level."""
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_every_make_target_is_on_the_contributors_page() -> None:
    """CONTRIBUTING names each target that `make` lists."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    targets = TARGET.findall((ROOT / "Makefile").read_text("utf-8"))

    assert [t for t in targets if t != "help" and f"`make {t}`" not in page] == []


def test_every_served_model_example_is_accepted() -> None:
    """A YAML block that holds a ServedModel is accepted as `fairlead apply` would."""
    documents = [d for block in blocks("yaml") for d in yaml.safe_load_all(block.text)]
    examples = [d for d in documents if isinstance(d, dict) and d.get("kind") == "ServedModel"]

    assert [read_spec(example).model for example in examples]


def test_every_json_example_parses() -> None:
    """A JSON block is JSON."""
    assert [json.loads(block.text) for block in blocks("json")]


def test_every_python_example_parses() -> None:
    """A Python block is Python."""
    assert [ast.parse(block.text) for block in blocks("python")]


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_explained(reason: Reason) -> None:
    """The page of reasons has a row for each reason, with a meaning and a remedy."""
    page = (REFERENCE / "reasons.md").read_text("utf-8")

    assert re.search(rf"^\| `{reason}` \|.*\|.*\S.*\|$", page, re.MULTILINE)


def test_no_reason_is_explained_that_is_not_there() -> None:
    """Every row of the page of reasons is about a reason or a condition there is."""
    page = (REFERENCE / "reasons.md").read_text("utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))

    assert rows == {str(reason) for reason in Reason} | {str(kind) for kind in ConditionType}


def test_every_state_of_a_rollout_is_named() -> None:
    """The tutorial names each word that the tag `rollout.status` can hold."""
    page = (ROOT / "docs/tutorials/demo.md").read_text("utf-8")

    assert [state for state in RolloutState if f"`{state}`" not in page] == []


def test_every_field_is_in_the_reference() -> None:
    """The page of the ServedModel has a row for each field of its schema."""
    page = (REFERENCE / "served-model.md").read_text("utf-8")

    assert [f for f in fields(served_model_schema()) if f"| `{f}` |" not in page] == []


def test_every_decision_is_in_the_index() -> None:
    """The index of decisions links each one."""
    folder = ROOT / "docs/adr"
    index = (folder / "README.md").read_text("utf-8")

    assert [path.name for path in folder.glob("0*.md") if f"({path.name})" not in index] == []


def test_every_page_is_in_the_index() -> None:
    """The index of the documentation links each tutorial, how-to, reference and explanation."""
    folder = ROOT / "docs"
    pages = [
        str(page.relative_to(folder))
        for kind in ("tutorials", "how-to", "reference", "explanation")
        for page in sorted((folder / kind).glob("*.md"))
    ]
    linked = "".join(
        (folder / page).read_text("utf-8") for page in ("README.md", "../CONTRIBUTING.md")
    )

    assert [page for page in pages if f"({page}" not in linked.replace("(docs/", "(")] == []


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.svg")), ids=name_of)
def test_no_picture_loads_anything_from_elsewhere(picture: Path) -> None:
    """A picture shows without a request to another host."""
    assert OUTSIDE.findall(picture.read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_path_of_one_machine(page: Path) -> None:
    """A page holds for every machine."""
    assert MACHINE.findall(page.read_text("utf-8")) == []

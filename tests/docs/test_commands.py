"""Each command line of the pages is one that the program it names takes.

What Python can say is checked everywhere: syntax, make targets, Fairlead's own options, charts, value
keys, files, resources. Helm and kubectl say the rest where they are on PATH (see conftest).
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from fairlead_experiments.entrypoints.cli import _parser as experiments_parser
from fairlead_gateway.entrypoints.cli import _parser as gateway_parser
from fairlead_rollout.entrypoints.cli import _parser as fairlead_parser
from fairlead_serving.entrypoints.cli import _check_parser as serving_check_parser
from fairlead_serving.entrypoints.cli import _parser as serving_parser
from fairlead_training.entrypoints.cli import _parser as training_parser

ROOT = Path(__file__).parents[2]
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
OTHERS = {
    *(".", "cat", "cd", "curl", "cut", "echo", "export", "git", "grep", "tail", "tr"),
    *("argocd", "flux", "kind", "locust", "mlflow", "openapi-python-client", "openssl"),
    *("pip", "pytest", "python", "skaffold"),
}
"""Programs that are not ours; any other word at a command's start is a mistake."""

FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z][a-z0-9-]*):.*## ", re.MULTILINE)
HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1(.*?)\n(.*?)^\s*\2$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"# (\S+\.ya?ml)\n")
SEPARATORS = re.compile(r"[|;&()]+")

Object = dict[str, Any]


class Command(NamedTuple):
    """One simple command of a page: `a | b` are two."""

    page: Path
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        """The program's name."""
        return self.words[0].removeprefix(".venv/bin/")

    @property
    def id(self) -> str:
        """The page and the command, for a test's id."""
        return f"{self.page.relative_to(ROOT)}: {' '.join(self.words)}"


def blocks(page: Path, *languages: str) -> list[str]:
    """Find a page's fenced blocks, those inside lists too."""
    found = FENCE.findall(page.read_text("utf-8"))
    return [textwrap.dedent(text) for _, language, text in found if language in languages]


def scripts(page: Path) -> Iterator[str]:
    """Find what a reader is told to type, as the shell reads it."""
    yield from blocks(page, "sh", "bash")
    for text in blocks(page, "console"):
        lines = text.replace("\\\n", "\\\0").splitlines()
        typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        yield "\n".join(typed).replace("\0", "\n")


def commands(page: Path) -> Iterator[Command]:
    """Split a page's scripts into simple commands."""
    for script in scripts(page):
        for line in HEREDOC.sub(r"\3", script).replace("\\\n", " ").splitlines():
            yield from (Command(page, tuple(words)) for words in simple_commands(line))


def simple_commands(line: str) -> Iterator[list[str]]:
    """Split a line at pipes, lists and substitutions; redirections are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not SEPARATORS.fullmatch(token):
            words.append(token)
            continue
        words = without_redirections(words)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            yield words
        words = []


def without_redirections(words: Sequence[str]) -> list[str]:
    """Leave out `> FILE`, `2> FILE` and `< FILE`."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if set(word) <= set("<>"):
            next(rest, None)
            if kept and kept[-1] == "2":
                kept.pop()
        else:
            kept.append(word)
    return kept


COMMANDS = [command for page in PAGES for command in commands(page)]
HELM = [command for command in COMMANDS if command.program == "helm"]
KUBECTL = [c for c in COMMANDS if c.program == "kubectl" and "fairlead" not in c.words[1:2]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_script_is_shell(page: Path) -> None:
    """The shell reads what a reader is told to type."""
    for script in scripts(page):
        done = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{script}\n{done.stderr}"


def test_every_command_can_be_typed() -> None:
    """A command is one that make, or Fairlead's own parser, or a well-known program takes."""
    targets = set(TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
    wrong = [command.id for command in COMMANDS if not is_known(command, targets)]

    assert wrong == []


def is_known(command: Command, targets: set[str]) -> bool:
    """Say whether a command could be typed."""
    program, arguments = command.program, list(command.words[1:])
    if program == "kubectl" and arguments[0] == "fairlead":
        program, arguments = "fairlead", arguments[1:]
    if program == "make":
        return {word for word in arguments if "=" not in word} <= targets
    if program not in PARSERS:
        return program in OTHERS | {"helm", "kubectl"}
    if f"{program} {' '.join(arguments[:1])}" in PARSERS:
        program, arguments = f"{program} {arguments[0]}", arguments[1:]
    try:
        PARSERS[program]().parse_args(arguments)
    except SystemExit:
        return False
    return True


# --- helm ---------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(message)


def helm_parser() -> argparse.ArgumentParser:
    """What the pages use of helm; a new option is added here."""
    parser = _Parser(prog="helm", add_help=False)
    verbs = ("test", "uninstall", "rollback", "history", "get", "list", "status", "version")
    parser.add_argument("verb", choices=[*_RENDERS, *verbs])
    parser.add_argument("names", nargs="*")
    for option in ("--set", "--set-string", "--set-json"):
        parser.add_argument(option, action="append", default=[])
    parser.add_argument("-f", "--values", action="append", default=[])
    parser.add_argument("-n", "--namespace")
    for option in ("--timeout", "--output", "--kube-version", "--revision", "--show-only"):
        parser.add_argument(option)
    for option in ("--install", "--wait", "--create-namespace", "--reuse-values", "--reset-then-reuse-values", "--rollback-on-failure", "--logs", "--all-namespaces"):  # fmt: skip
        parser.add_argument(option, action="store_true")
    return parser


_RENDERS = ("install", "upgrade", "template")


def helm_arguments(command: Command) -> argparse.Namespace:
    """Read a helm command."""
    return helm_parser().parse_intermixed_args(list(command.words[1:]))


def chart_of(arguments: argparse.Namespace) -> Path | None:
    """Return the chart that a helm command renders."""
    return ROOT / arguments.names[1] if arguments.verb in _RENDERS else None


def written_on(page: Path) -> Mapping[str, str]:
    """The files that a page has its reader make: titled YAML blocks, and what a command writes."""
    titled = {}
    for text in blocks(page, "yaml"):
        if title := TITLE.match(text):
            titled[title[1]] = text
    redirected = re.findall(r"> *([\w./-]+\.\w+)\b", "\n".join(scripts(page)))
    return {**dict.fromkeys(redirected, "{}\n"), **titled}


def is_there(name: str, page: Path) -> bool:
    """Say whether a file that a command names is in the repository, or made on the page."""
    return name == "-" or "://" in name or (ROOT / name).is_file() or name in written_on(page)


def knows(schema: Mapping[str, Any], key: str, root: Mapping[str, Any]) -> bool:
    """Say whether a chart's schema has a value's key, as `--set` writes it."""
    while "$ref" in schema:
        part: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            part = part[step]
        schema = {**part, **{k: v for k, v in schema.items() if k != "$ref"}}
    if not key:
        return True
    head, _, rest = key.replace("[", ".[", 1).lstrip(".").partition(".")
    if head.startswith("["):
        return knows(schema.get("items", {}), rest, root)
    if head in schema.get("properties", {}):
        return knows(schema["properties"][head], rest, root)
    return schema.get("additionalProperties", True) is not False


@pytest.mark.parametrize("command", HELM, ids=lambda command: command.id)
def test_every_helm_command_names_what_is_there(command: Command) -> None:
    """Chart, files and value keys of a helm command are there."""
    arguments = helm_arguments(command)
    chart = chart_of(arguments)
    if chart is None:
        assert [name for name in arguments.names if "/" in name] == []
        return
    schema = json.loads((chart / "values.schema.json").read_text("utf-8"))
    settings = [*arguments.set, *arguments.set_string, *arguments.set_json]
    keys = re.findall(r"(?:^|,)([\w.\[\]-]+)=", ",".join(settings))

    assert [key for key in keys if not knows(schema, key, schema)] == []
    assert [name for name in arguments.values if not is_there(name, command.page)] == []


@pytest.mark.parametrize(
    "command",
    [c for c in HELM if c.words[1] in _RENDERS],
    ids=lambda command: command.id,
)
def test_every_helm_command_renders(command: Command, helm: Any, tmp_path: Path) -> None:
    """Helm renders a chart with the flags and the files of the page."""
    arguments = helm_arguments(command)
    for name in ("charts", "k8s", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, text in written_on(command.page).items():
        (tmp_path / name).write_text(text)
    code, text = helm.run("template", *arguments.names, *rendering(arguments), folder=tmp_path)

    assert code == 0, text


def rendering(arguments: argparse.Namespace) -> Iterator[str]:
    """The part of a helm command that decides what is rendered."""
    for option in ("set", "set_string", "set_json", "values"):
        for value in getattr(arguments, option):
            yield from (f"--{option.replace('_', '-')}", value)
    if arguments.namespace:
        yield from ("--namespace", arguments.namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_values_file_of_a_page_is_used(page: Path) -> None:
    """A YAML block that is a file for helm is given to helm on the same page."""
    used = {name for c in HELM if c.page == page for name in helm_arguments(c).values}
    written = {name for name in written_on(page) if name.endswith("values.yaml")}

    assert written - used == set()


# --- kubectl ------------------------------------------------------------------------------------------

KINDS = {
    "configmap": "cm",
    "cronjob": "cj",
    "customresourcedefinition": "crd",
    "deployment": "deploy",
    "endpointslice": "",
    "event": "ev",
    "gatewayclass": "",
    "horizontalpodautoscaler": "hpa",
    "job": "",
    "lease": "",
    "namespace": "ns",
    "networkpolicy": "netpol",
    "node": "no",
    "persistentvolumeclaim": "pvc",
    "pod": "po",
    "poddisruptionbudget": "pdb",
    "role": "",
    "secret": "",
    "service": "svc",
    "serviceaccount": "sa",
    "statefulset": "sts",
}
ON_RESOURCES = {
    *("annotate", "delete", "describe", "edit", "get", "label", "patch", "scale", "wait"),
    *("rollout", "exec", "logs", "port-forward", "create"),
}
ON_OTHERS = {
    "apply",
    "auth",
    "config",
    "cordon",
    "cp",
    "drain",
    "explain",
    "top",
    "uncordon",
    "version",
}
TAKES_VALUE = re.compile(
    r"-[nlofpc]|--(namespace|selector|output|filename|for|patch|container|field-selector|sort-by|type"
    r"|subresource|tail|replicas|timeout|from|from-literal|from-file|cert|key|docker-server|as"
    r"|docker-username|docker-password|context|since|to-revision)"
)


def resources() -> set[str]:
    """Every word that names a kind, the ServedModel's own from its CRD."""
    crd = yaml.safe_load((ROOT / "charts/fairlead/files/crd.yaml").read_text("utf-8"))
    names = crd["spec"]["names"]
    words = {names["plural"], names["singular"], *names["shortNames"], crd["metadata"]["name"]}
    for kind, short in KINDS.items():
        plural = kind[:-1] + "ies" if kind.endswith("y") else kind + "es" if kind.endswith("s") else kind + "s"  # fmt: skip
        words |= {kind, plural, *([short] if short else [])}
    return words


def positionals(words: Sequence[str]) -> list[str]:
    """Return the words of a kubectl command that are neither options nor their values."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            break
        if TAKES_VALUE.fullmatch(word):
            next(rest, None)
        elif not word.startswith("-"):
            found.append(word)
    return found


def targets_of(command: Command) -> list[tuple[str, str]]:
    """Return the (kind, name) pairs that a kubectl command is about; a name may be empty."""
    verb, *words = positionals(command.words[1:])
    if verb not in ON_RESOURCES or not words:
        return []
    if verb == "rollout":
        words = words[1:]
    if verb in {"exec", "logs", "port-forward"}:
        words = [words[0] if "/" in words[0] else f"pod/{words[0]}"]
    if verb == "create" and words[0] == "secret":
        words = ["secret", *words[2:]]
    if "/" in words[0]:
        pairs = [word.partition("/") for word in words if "/" in word]
        return [(kind, name) for kind, _, name in pairs]
    names = [word for word in words[1:] if "=" not in word]
    return [(kind, name) for kind in words[0].split(",") for name in names or [""]]


def files_of(command: Command) -> list[str]:
    """Return the files that a kubectl command reads."""
    pairs = zip(command.words, command.words[1:], strict=False)
    reads = {"--filename", "-f"} if command.words[1] in {"apply", "create", "delete"} else set()
    return [value for word, value in pairs if word in reads]


@pytest.mark.parametrize("command", KUBECTL, ids=lambda command: command.id)
def test_every_kubectl_command_names_what_is_there(command: Command) -> None:
    """Verb, kinds and files of a kubectl command are there."""
    verb = positionals(command.words[1:])[0]
    kinds = {kind for kind, _ in targets_of(command)}

    assert verb in ON_RESOURCES | ON_OTHERS
    assert kinds - resources() == set()
    assert [name for name in files_of(command) if not is_there(name, command.page)] == []


@pytest.mark.parametrize("command", KUBECTL, ids=lambda command: command.id)
def test_every_option_of_a_kubectl_command_is_one(command: Command, kubectl: Any) -> None:
    """Kubectl's own help has each option."""
    verb, *words = positionals(command.words[1:])
    nested = words[:1] if verb in {"auth", "config", "create", "rollout", "top"} else []
    nested += words[1:2] if nested == ["secret"] else []
    code, own = kubectl.run(verb, *nested, "--help")
    assert code == 0, own
    _, common = kubectl.run("options")
    before = command.words[: command.words.index("--")] if "--" in command.words else command.words
    used = {word.partition("=")[0] for word in before if word.startswith("--")}
    known = set(re.findall(r"--[a-z-]+", own + common))

    assert used - known == set()


SINGULAR = {"deploy": "deployment", "svc": "service", "sm": "servedmodel", "sts": "statefulset"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_object_of_a_kubectl_command_is_there(
    page: Path, release: Callable[..., Sequence[Object]]
) -> None:
    """An object is one of the releases', or one that the page makes; NAME stands for the reader's."""
    there = {named(document) for name in ("mlflow", "fairlead", "flight-delay") for document in release(name)}  # fmt: skip
    there |= {named(document) for document in made_on(page)}
    there |= {("namespace", name) for name in ("mlflow", "fairlead", "ml")}
    there |= {("service", "kubernetes"), ("crd", "servedmodels.fairlead.dev")}
    there |= {("lease", "fairlead-controller")}  # The controller makes it; its Role names it.
    missing = [
        (command.id, kind, name)
        for command in KUBECTL
        if command.page == page and positionals(command.words[1:])[0] != "create"
        for kind, name in targets_of(command)
        if name
        and name == name.lower()
        and "$" not in name
        and (SINGULAR.get(kind, kind.rstrip("s")), name) not in there
    ]

    assert missing == []


def named(document: Object) -> tuple[str, str]:
    """Return an object's kind and name."""
    return document["kind"].lower(), document["metadata"]["name"]


def made_on(page: Path) -> Iterator[Object]:
    """The objects that a page has its reader make: by YAML, or by `kubectl create`."""
    files = [
        (ROOT / name).read_text("utf-8")
        for c in KUBECTL
        if c.page == page
        for name in files_of(c)
        if (ROOT / name).is_file()
    ]
    for text in [*blocks(page, "yaml"), *files]:
        for document in yaml.safe_load_all(text):
            if isinstance(document, dict) and "kind" in document and "metadata" in document:
                yield document
    for command in KUBECTL:
        if command.page == page and positionals(command.words[1:])[0] == "create":
            for kind, name in targets_of(command):
                yield {"kind": kind, "metadata": {"name": name}}


def test_the_tests_find_the_commands() -> None:
    """The pages' commands are found, those in lists and after pipes too."""
    line = "A=1 kubectl get sm -w 2> /dev/null | grep x && helm test fairlead > out.txt # why"

    assert list(simple_commands(line)) == [
        ["kubectl", "get", "sm", "-w"],
        ["grep", "x"],
        ["helm", "test", "fairlead"],
    ]
    assert HELM
    assert KUBECTL
    assert os.path.commonpath([c.page for c in COMMANDS]) == str(ROOT)

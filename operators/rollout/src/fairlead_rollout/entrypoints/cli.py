"""The `fairlead` command."""

import argparse
import getpass
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from rich.console import Console
from rich.table import Table

from fairlead_rollout.adapters.clock import SystemClock
from fairlead_rollout.adapters.experiments_client import Comparison, ExperimentsClient
from fairlead_rollout.adapters.folder_store import FolderStore
from fairlead_rollout.adapters.home import DEFAULT_HOME, Home
from fairlead_rollout.adapters.http import client
from fairlead_rollout.adapters.stack import LISTENERS, read_addresses
from fairlead_rollout.app.ports import People, ServedModel
from fairlead_rollout.domain.durations import format_duration
from fairlead_rollout.domain.errors import (
    FairleadError,
    InvalidSpecError,
    NotFoundError,
    UnavailableError,
)
from fairlead_rollout.domain.explain import explain
from fairlead_rollout.domain.keys import KEY_BYTES, hash_key
from fairlead_rollout.domain.rollback import version_before
from fairlead_rollout.domain.snapshot import Analysis, Request, Verb
from fairlead_rollout.domain.spec import ServedModelSpec
from fairlead_rollout.domain.status import Rollout, Status, to_document
from fairlead_rollout.domain.summary import summary_of
from fairlead_rollout.entrypoints.controller import run_controller
from fairlead_rollout.entrypoints.demo.run import run_demo
from fairlead_rollout.entrypoints.generate import run_generate
from fairlead_rollout.entrypoints.up import run_down, run_up

HANDLED_WITHIN = 10.0  # seconds a person's request may take until the controller has seen it
DRAWN_WITHIN = 60.0  # seconds
Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 for an error, 2 for wrong use."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except FairleadError as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fairlead",
        description="Promote a version in MLflow; Fairlead decides whether it may replace the old one.",
    )
    home = Path(os.environ.get("FAIRLEAD_HOME", DEFAULT_HOME))
    parser.add_argument("--home", type=Path, default=home, help="folder of the local stack")
    _add_cluster_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_stack_commands(commands)
    _add_model_commands(commands)
    return parser


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes the command speak to a cluster; `kubectl fairlead` always does."""
    is_plugin = Path(sys.argv[0]).name == "kubectl-fairlead"
    parser.add_argument(
        "-n", "--namespace", help="speak to a cluster: the ServedModels of this namespace"
    )
    parser.add_argument("--context", help="speak to a cluster: the kubeconfig's context to use")
    parser.add_argument(
        "--experiments-url",
        default=os.environ.get("FAIRLEAD_EXPERIMENTS_URL", ""),
        help="with a cluster: where 'explain' gets decisions and numbers, and 'report' the page (FAIRLEAD_EXPERIMENTS_URL)",
    )
    parser.set_defaults(is_plugin=is_plugin)


def _add_stack_commands(commands: Any) -> None:
    up = commands.add_parser("up", help="start the local stack; Ctrl-C ends it")
    for listener in LISTENERS:
        up.add_argument(
            f"--{listener}-port", type=_port, default=0, help=f"{listener}'s port (any free one)"
        )
    up.add_argument("--mlflow", metavar="URL", help="use this MLflow instead of starting one")
    up.set_defaults(run=_up)
    down = commands.add_parser("down", help="end what a killed 'fairlead up' left running")
    down.set_defaults(run=lambda a: run_down(a.home))
    demo = commands.add_parser("demo", help="train real models and watch each be decided")
    demo.set_defaults(run=lambda a: run_demo(a.home / "demo"))
    controller = commands.add_parser("controller", help="the controller alone ('up' starts it)")
    controller.add_argument(
        "--settings", type=Path, help="in a cluster: the settings file that the chart writes"
    )
    controller.set_defaults(run=_controller)
    generate = commands.add_parser("generate", help="write the repository's generated files")
    generate.add_argument("--check", action="store_true", help="fail if one is out of date")
    generate.set_defaults(run=lambda a: run_generate(check=a.check))


def _add_model_commands(commands: Any) -> None:
    apply = commands.add_parser("apply", help="create or change a served model")
    apply.add_argument("-f", "--file", required=True, help="YAML file, or - for standard input")
    apply.set_defaults(run=_apply)
    get = commands.add_parser("get", help="list served models, or show one")
    get.add_argument("name", nargs="?")
    get.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table")
    get.set_defaults(run=_get)
    _add_named(commands, "explain", "say in plain words what goes on and why", _explain)
    key = commands.add_parser("key", help="make a key for a client of a served model")
    key.add_argument("client", help="the client's name")
    key.set_defaults(run=_key_for)
    report = commands.add_parser(
        "report", help="write the current or last rollout as a page of HTML"
    )
    report.add_argument("name", help="the served model")
    report.add_argument(
        "--output", metavar="FILE", help="where to, - for standard output (NAME-rollout.html)"
    )
    _add_candidate(report)
    report.set_defaults(run=_report)
    _add_named(commands, "history", "list the rollouts that were decided", _history)
    helps = {
        Verb.PROMOTE: "let the candidate take all traffic now",
        Verb.ABORT: "send all traffic back to stable now",
        Verb.PAUSE: "hold the weight",
        Verb.RESUME: "go on after a pause",
        Verb.RETRY: "put the aborted version on trial again",
        Verb.ROLLBACK: "have MLflow name the version that was stable before",
        Verb.APPROVE: "approve what the rollout waits for: the next step, or the promotion",
    }
    for verb, text in helps.items():
        command = _add_named(commands, verb.value, text, _ask(verb))
        if verb not in {Verb.RETRY, Verb.ROLLBACK}:
            _add_candidate(command)


def _add_named(commands: Any, name: str, text: str, run: Callable[[Arguments], int]) -> Any:
    command = commands.add_parser(name, help=text)
    command.add_argument("name", help="the served model")
    command.set_defaults(run=run)
    return command


def _add_candidate(command: Any) -> None:
    command.add_argument(
        "--candidate", metavar="VERSION", help="which one, where several versions are on trial"
    )


def _port(text: str) -> int:
    port = int(text) if text.isdigit() else -1
    if not 0 <= port <= 65535:  # noqa: PLR2004 -- the largest port there is
        raise argparse.ArgumentTypeError(f"{text!r} is not a port between 0 and 65535")
    return port


def _up(arguments: Arguments) -> int:
    ports = {name: getattr(arguments, f"{name}_port") for name in LISTENERS}
    return run_up(arguments.home, ports, arguments.mlflow)


def _controller(arguments: Arguments) -> int:
    if arguments.settings is None:
        return run_controller(arguments.home)
    # Only a cluster needs the Kubernetes libraries, which are slow to import.
    from fairlead_rollout.entrypoints.operator import run_operator  # noqa: PLC0415

    return run_operator(arguments.settings)


def _speaks_to_cluster(arguments: Arguments) -> bool:
    return bool(arguments.is_plugin or arguments.namespace or arguments.context)


def _store(arguments: Arguments) -> People:
    if not _speaks_to_cluster(arguments):
        return FolderStore(Home(arguments.home.resolve()))
    # Only a cluster needs the Kubernetes libraries, which are slow to import.
    from fairlead_rollout.adapters.k8s.api import (  # noqa: PLC0415
        KubeApi,
        connect,
        current_namespace,
    )
    from fairlead_rollout.adapters.k8s.store import KubernetesStore  # noqa: PLC0415

    arguments.namespace = arguments.namespace or current_namespace(arguments.context)
    api = KubeApi(connect(arguments.context))
    return KubernetesStore(api, namespace=arguments.namespace)


def _key(arguments: Arguments) -> str:
    name: str = arguments.name
    is_bare = _speaks_to_cluster(arguments) and "/" not in name
    return f"{arguments.namespace}/{name}" if is_bare else name


def _key_for(arguments: Arguments) -> int:
    key = secrets.token_urlsafe(KEY_BYTES)
    print(f"key:   {key}")
    print(f"entry: {hash_key(arguments.client, key)}")
    print("The entry goes into spec.traffic; the key goes to the client, and is not kept.")
    return 0


def _apply(arguments: Arguments) -> int:
    if _speaks_to_cluster(arguments):
        raise FairleadError("a cluster takes ServedModels by 'kubectl apply -f'")
    store = FolderStore(Home(arguments.home.resolve()))
    source = "standard input" if arguments.file == "-" else arguments.file
    for manifest in _read_documents(arguments.file):
        try:
            name, done = store.apply(manifest, SystemClock().now())
        except InvalidSpecError as error:
            raise InvalidSpecError(f"{source}: {error}") from error
        print(f"servedmodel/{name} {done}")
    return 0


def _read_documents(file: str) -> list[Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise FairleadError(f"{file}: {reason}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise FairleadError(f"{file}{where}: is not YAML") from error
    if not documents:
        raise FairleadError(f"{file}: holds no document")
    return documents


def _read(arguments: Arguments) -> ServedModel:
    store = _store(arguments)
    key = _key(arguments)
    store.manifest(key)
    served = store.read(key)
    if served is None:
        raise NotFoundError(f"{key}: has just gone")
    return served


def _get(arguments: Arguments) -> int:
    store = _store(arguments)
    names = (_key(arguments),) if arguments.name else store.names()
    if arguments.output != "table":
        documents = [_document(store, name) for name in names]
        return _dump(documents if arguments.name is None else documents[0], arguments.output)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NAME", "MODEL", "STABLE", "CANDIDATE", "WEIGHT", "STATE", "AGE"):
        table.add_column(column, overflow="fold")
    for name in names:
        arguments.name = name
        table.add_row(*_row(store, _read(arguments)))
    Console().print(table)
    return 0


def _document(store: People, name: str) -> dict[str, Any]:
    manifest = dict(store.manifest(name))
    served = store.read(name)
    status = served.status if served else None
    return {**manifest, "status": to_document(status) if status else {}}


def _dump(document: Any, output: str) -> int:
    if output == "json":
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        yaml.safe_dump(document, sys.stdout, sort_keys=False, allow_unicode=True)
    return 0


def _row(store: People, served: ServedModel) -> tuple[str, ...]:
    status = served.status or Status()
    summary = summary_of(status)
    age = format_duration(SystemClock().now() - store.created_at(served.key))
    model = served.spec.model if served.spec else "?"
    return (
        served.name,
        model,
        summary.stable or "-",
        summary.candidate or "-",
        summary.weight or "-",
        f"stalled: {served.problem}" if served.spec is None else summary.state,
        age,
    )


def _explain(arguments: Arguments) -> int:
    served = _read(arguments)
    if served.spec is None:
        print(f"{served.name} is stalled: {served.problem}. Mend it and run 'fairlead apply'.")
        return 0
    status, now = served.status or Status(), SystemClock().now()
    analysis, decisions = _from_experiments(arguments, status.rollout)
    beside = {r.id: _from_experiments(arguments, r) for r in status.beside}
    compared = _comparisons(arguments, served.name, served.spec, status)
    told: dict[str, Any] = {"decisions": decisions, "comparisons": compared, "beside": beside}
    print(explain(served.name, served.spec, status, analysis, now, **told))
    return 0


def _comparisons(
    arguments: Arguments, name: str, spec: ServedModelSpec, status: Status
) -> tuple[Comparison, ...]:
    url, guardrail = _experiments_url(arguments), spec.rollout.guardrails.shadow
    copies = (status.traffic or {}).get("shadow", ()) if url else ()
    if not copies:
        return ()
    tolerance = guardrail.tolerance if guardrail else 0.0
    with client(url) as http:
        experiments = ExperimentsClient(http)
        found = (experiments.comparisons(name, c["version"], tolerance) for c in copies)
        return tuple(one for each in found for one in each)


def _from_experiments(
    arguments: Arguments, rollout: Rollout | None
) -> tuple[Analysis | None, tuple[Mapping[str, Any], ...]]:
    """Return a rollout's analysis and decisions, or nothing while they cannot be had."""
    url = _experiments_url(arguments)
    if rollout is None or not url:
        return None, ()
    with client(url) as http:
        experiments = ExperimentsClient(http)
        try:
            return experiments.analysis(rollout.id), experiments.decisions(rollout.id)
        except (NotFoundError, UnavailableError):
            return None, ()


def _report(arguments: Arguments) -> int:
    status = _read(arguments).status or Status()
    rollout = _chosen(arguments, status, (*status.trials, *reversed(status.history)))
    if rollout is None:
        raise NotFoundError(f"{arguments.name}: there was no rollout yet")
    url = _experiments_url(arguments)
    if not url:
        raise FairleadError(
            "the experiments service draws the report: say where it is with --experiments-url"
        )
    with client(url) as http:
        page = ExperimentsClient(http).report(rollout.id, patience=DRAWN_WITHIN)
    if arguments.output == "-":
        sys.stdout.write(page)
        return 0
    return _write(Path(arguments.output or f"{Path(arguments.name).name}-rollout.html"), page)


def _write(file: Path, text: str) -> int:
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise FairleadError(f"{file}: {error.strerror}") from error
    print(file)
    return 0


def _experiments_url(arguments: Arguments) -> str:
    if _speaks_to_cluster(arguments):
        return str(arguments.experiments_url)
    try:
        return read_addresses(Home(arguments.home.resolve())).url("experiments")
    except NotFoundError:
        return ""


def _history(arguments: Arguments) -> int:
    status = _read(arguments).status or Status()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("DECIDED", "FROM", "TO", "VERDICT", "TOOK", "EFFECT", "INTERVAL", "WHY"):
        table.add_column(column, overflow="fold")
    for rollout in status.history:
        table.add_row(*_history_row(rollout))
    Console().print(table)
    return 0


def _history_row(rollout: Rollout) -> tuple[str, ...]:
    assert rollout.decided_at is not None
    numbers = rollout.numbers
    interval = "-"
    if numbers.ci_low is not None and numbers.ci_high is not None:
        interval = f"{numbers.ci_low:+.4f} to {numbers.ci_high:+.4f}"
    return (
        rollout.decided_at.isoformat(sep=" ", timespec="seconds"),
        rollout.baseline,
        rollout.candidate,
        rollout.state.value,
        format_duration(rollout.decided_at - rollout.started_at),
        f"{numbers.effect:+.4f}" if numbers.effect is not None else "-",
        interval,
        f"{rollout.reason}: {rollout.message}",
    )


def _ask(verb: Verb) -> Callable[[Arguments], int]:
    def run(arguments: Arguments) -> int:
        status = _read(arguments).status or Status()
        rollout = status.rollout
        if "candidate" in arguments:
            rollout = _chosen(arguments, status, status.trials)
        _check_possible(verb, arguments.name, replace(status, rollout=rollout))
        assert rollout is not None
        request = Request(
            id=str(uuid4()),
            verb=verb,
            rollout=rollout.id,
            by=_person(),
            step=rollout.step if verb is Verb.APPROVE else None,
        )
        _store(arguments).ask(_key(arguments), request)
        return _await_handled(arguments, request)

    return run


def _chosen(arguments: Arguments, status: Status, rollouts: Sequence[Rollout]) -> Rollout | None:
    """Return the rollout that a person means; the only one, or the last, if none is named.

    Raises:
        FairleadError: Several are on trial and none is named, or none has that candidate.
    """
    names = ", ".join(dict.fromkeys(r.candidate for r in rollouts))
    if arguments.candidate is not None:
        found = [r for r in rollouts if r.candidate == arguments.candidate]
        if not found:
            raise NotFoundError(
                f"{arguments.name}: version {arguments.candidate} is not one of: {names or 'none'}"
            )
        return found[0]
    if len(status.trials) > 1:
        raise FairleadError(
            f"{arguments.name}: several versions are on trial; say which by --candidate: {names}"
        )
    return status.rollout


def _check_possible(verb: Verb, name: str, status: Status) -> None:
    rollout = status.rollout
    active = rollout is not None and rollout.is_active
    if verb is Verb.ROLLBACK:
        if active:
            raise FairleadError(f"{name}: a rollout is running; 'fairlead abort' keeps stable")
        if version_before(status) is None:
            raise FairleadError(f"{name}: no version is known to have been stable before")
    elif verb is Verb.RETRY:
        if active:
            raise FairleadError(f"{name}: a rollout is running; there is nothing to retry")
        if rollout is None:
            raise FairleadError(f"{name}: there was no rollout yet; there is nothing to retry")
    elif not active:
        raise FairleadError(f"{name}: no version is on trial; there is nothing to {verb.value}")
    elif verb is Verb.APPROVE and rollout is not None:
        _check_awaiting(name, rollout)


def _check_awaiting(name: str, rollout: Rollout) -> None:
    if rollout.paused:
        raise FairleadError(f"{name}: the rollout is paused; 'fairlead resume' comes first")
    if not rollout.awaiting:
        raise FairleadError(
            f"{name}: nothing waits for an approval; 'fairlead explain' says what does"
        )


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _await_handled(arguments: Arguments, request: Request) -> int:
    """Wait until the controller has dealt with a request; it is kept if the controller is away."""
    deadline = time.monotonic() + HANDLED_WITHIN
    while time.monotonic() < deadline:
        status = _read(arguments).status or Status()
        if status.handled_request == request.id:
            return _explain(arguments)
        time.sleep(0.1)
    print("asked; the controller has not answered yet (does it run?)", file=sys.stderr)
    return 1

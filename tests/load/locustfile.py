"""Locust's way in: users, shape, thresholds.

    locust -f tests/load/locustfile.py --headless --host GATEWAY --experiments URL --direct URL
           --data FOLDER --shape steady --users 50 --seconds 60

`python -m fairlead_load.local` finds all of these for a stack on this machine.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import gevent
import locust.stats
from locust import LoadTestShape, constant_throughput, events
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastHttpSession, FastHttpUser, ResponseContextManager
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner
from locust.stats import RequestStats, StatsEntry

sys.path.insert(0, str(Path(__file__).parent))

from fairlead_load import shapes, thresholds
from fairlead_load.flights import Flights, FlightsError, squared_error
from fairlead_load.outcomes import Outcomes
from fairlead_load.promotion import PromotionError, Registry
from fairlead_load.stickiness import Stickiness
from fairlead_load.thresholds import DIRECT, GATEWAY, OUTCOMES, PROMOTION, Figures, Finding, Limits

_POST_EVERY = 0.5  # seconds
_DIRECT_SHARE = 4  # one user of so many sends past the gateway
_OK, _MODEL_RAISED = 200, 500


def _three_figures(milliseconds: float) -> float:
    """Round as a comparison of percentiles needs it; Locust's own whole milliseconds are coarse."""
    return round(milliseconds, 1 if milliseconds < 100 else 0 if milliseconds < 1000 else -1)


locust.stats.bucket_response_time = _three_figures  # As Locust's manual says.


@events.init_command_line_parser.add_listener
def _add_options(parser: LocustArgumentParser) -> None:
    add = parser.add_argument_group("Fairlead").add_argument
    add("--model", default="flight-delay", help="the served model's name")
    add(
        "--experiments",
        default="",
        metavar="URL",
        help="takes the outcomes; none are posted without",
    )
    add("--direct", default="", metavar="URL", help="a pod of the stable version, to compare with")
    add(
        "--data",
        env_var="FAIRLEAD_LOAD_DATA",
        default=".fairlead/data/heldout",
        help="folder of columns.json, requests.jsonl",
    )
    add("--shape", choices=shapes.KINDS, default="steady", help="how many users when")
    add("--seconds", type=float, default=60.0, help="how long the run takes")
    add("--rate", type=float, default=2.0, help="requests a second of each user")
    add("--outcome-delay", type=float, default=1.5, help="seconds until an outcome is known")
    add("--unit-header", default="x-unit-id", help="the header that holds the unit")
    add("--max-error-rate", type=float, default=0.0, help="share of the gateway's requests")
    add("--max-p99-multiple", type=float, default=3.0, help="of the p99 past the gateway")
    add("--allow-model-errors", action="store_true", help="an error of the model itself is none")
    add("--mlflow", default="", metavar="URL", help="where the shape 'promote' promotes")
    add("--registered-model", default="", help="MLflow's name of the model (default: --model)")
    add("--promote-version", type=int, default=0, help="default: the lowest not in production")
    add("--promote-alias", default="", help="move this alias instead of the stage Production")
    add("--verdict", default="", metavar="FILE", help="where the thresholds' JSON goes")


class _Run:
    """What the users of one process share in one run.

    Made when the run starts: a worker has the master's options only then.
    """

    def __init__(self, environment: Environment) -> None:
        self.options = environment.parsed_options
        self.environment = environment
        self.flights: Flights = environment.fairlead_flights
        self.stickiness = Stickiness()
        self.outcomes = Outcomes(self.options.outcome_delay)
        self.pace = constant_throughput(self.options.rate)
        self._users = 0
        self._began = time.monotonic()
        # What a post counts for is known only once it is known whether it is sent again.
        self._session = FastHttpSession(self.options.experiments, EventHook(), user=None)
        self._posting: gevent.Greenlet | None = None

    def has_promoted(self) -> bool:
        """Tell whether the promotion is due, by this process's own clock."""
        since = time.monotonic() - self._began
        return shapes.is_time_to_promote(self.options.shape, since, self.options.seconds)

    def seed(self) -> int:
        """Answer a number for each user, another one on each worker."""
        self._users += 1
        return self._users + 100_003 * getattr(self.environment.runner, "worker_index", 0)

    def start(self) -> None:
        """Begin to post outcomes."""
        if self.options.experiments:
            self._posting = gevent.spawn(self._post)

    def finish(self) -> None:
        """Post the last outcomes."""
        if self._posting is not None:
            self._posting.kill()
        while len(self.outcomes):
            self._post_once(is_last=True)

    def _post(self) -> None:
        while True:
            gevent.sleep(_POST_EVERY)
            self._post_once()

    def _post_once(self, *, is_last: bool = False) -> None:
        meta: dict[str, Any] = {}

        def send(body: bytes) -> tuple[int, bytes]:
            headers = {"content-type": "application/json"}
            with self._session.request(
                "POST",
                "/v1/outcomes",
                name=OUTCOMES,
                data=body,
                headers=headers,
                catch_response=True,
            ) as answer:
                meta.update(answer.request_meta)
                return answer.status_code or 0, answer.content or b""

        posted = self.outcomes.post(send, time.monotonic(), is_last=is_last)
        if posted is not None:
            meta["exception"] = RuntimeError(posted.complaint) if posted.complaint else None
            self.environment.events.request.fire(**meta)


class _Asking(FastHttpUser):
    """Asks about one plane after the other; never tries again."""

    abstract = True
    host = "http://127.0.0.1"  # Locust wants one; --host replaces it.
    connection_timeout = 10.0
    network_timeout = 30.0
    max_retries = 0

    def on_start(self) -> None:
        """Take a place in the flights."""
        self.run_: _Run = self.environment.fairlead_run
        self.requests = self.run_.flights.from_anywhere(self.run_.seed())

    def wait_time(self) -> float:
        """Keep the pace."""
        return float(self.run_.pace(self))


class GatewayUser(_Asking):
    """Sends flights through the gateway, and later what came of them."""

    weight = _DIRECT_SHARE - 1

    @locust.task
    def ask(self) -> None:
        """Send one request; an answer that is not the gateway's is a failure."""
        request, options = next(self.requests), self.run_.options
        headers = {"content-type": "application/json", options.unit_header: request.unit}
        path = f"/models/{options.model}/invocations"
        with self.client.post(
            path,
            data=request.body,
            headers=headers,
            name=f"{GATEWAY} (no version)",
            catch_response=True,
        ) as answer:
            told = answer.headers or {}
            if version := told.get("x-model-version"):
                answer.request_meta["name"] = f"{GATEWAY} v{version}"
            if answer.status_code != _OK:
                self._note_failure(answer)
                return
            try:
                self._note_answer(answer, request)
            except (FlightsError, KeyError) as error:
                answer.failure(f"{type(error).__name__}: {error}")

    def _note_failure(self, answer: ResponseContextManager) -> None:
        is_models = answer.status_code == _MODEL_RAISED and b"MODEL_ERROR" in (
            answer.content or b""
        )
        if is_models and self.run_.options.allow_model_errors:
            answer.request_meta["name"] += " (model error)"
            answer.success()

    def _note_answer(self, answer: ResponseContextManager, request: Any) -> None:
        told, now = answer.headers, time.monotonic()
        rollout, arm = told.get("x-rollout-id", ""), told["x-rollout-arm"]
        if complaint := self.run_.stickiness.note(rollout, request.unit, arm, now):
            answer.failure(complaint)
        error = squared_error(answer.content, request.late)
        if self.run_.options.experiments:
            self.run_.outcomes.add(told["x-inference-id"], error, now)


class DirectUser(_Asking):
    """Sends the same flights to a pod of the stable version, for comparison."""

    weight = 1

    @locust.task
    def ask(self) -> None:
        """Send one request past the gateway, until the version there may go away."""
        if self.run_.has_promoted():
            raise StopUser
        request = next(self.requests)
        headers = {"content-type": "application/json"}
        url = f"{self.run_.options.direct.rstrip('/')}/invocations"
        self.client.post(url, data=request.body, headers=headers, name=DIRECT)


class Shape(LoadTestShape):
    """Follows the stages of `--shape`, and promotes when that is its part."""

    use_common_options = True
    _both: ClassVar[list[type]] = [GatewayUser, DirectUser]

    def reset_time(self) -> None:
        """Begin: nothing is promoted yet."""
        super().reset_time()
        self._has_promoted = False

    def tick(self) -> Any:
        """Answer users, spawn rate and kinds of users; None at the end."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        now = self.get_run_time()
        users = options.num_users or 1
        stage = shapes.stage_at(shapes.stages(options.shape, users, options.seconds), now)
        if stage is None:
            return None
        if not self._has_promoted and shapes.is_time_to_promote(
            options.shape, now, options.seconds
        ):
            self._has_promoted = True
            gevent.spawn(_promote, self.runner.environment)
        return stage.users, stage.spawn_rate, self._both if options.direct else [GatewayUser]


def _promote(environment: Environment) -> None:
    options, began, problem = environment.parsed_options, time.perf_counter(), None
    registry = Registry(options.mlflow, options.registered_model or options.model)
    try:
        number = registry.promote(options.promote_version or None, options.promote_alias)
        print(f"promoted version {number}")  # noqa: T201
    except PromotionError as error:
        problem = error
    environment.events.request.fire(
        request_type="POST",
        name=PROMOTION,
        response_time=(time.perf_counter() - began) * 1000,
        response_length=0,
        exception=problem,
        context={},
    )


@events.init.add_listener
def _check(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    if options.shape == "promote" and not options.mlflow:
        raise SystemExit("the shape 'promote' needs --mlflow")
    if not isinstance(environment.runner, MasterRunner):
        try:
            environment.fairlead_flights = Flights(Path(options.data))
        except FlightsError as error:
            raise SystemExit(str(error)) from error


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        environment.fairlead_run = _Run(environment)
        environment.fairlead_run.start()


@events.test_stop.add_listener
def _finish(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        environment.fairlead_run.finish()
    if not isinstance(environment.runner, WorkerRunner) and not environment.parsed_options.headless:
        _print(_findings(environment))


@events.quitting.add_listener
def _judge(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        environment.process_exit_code = 0  # The master judges.
        return
    findings = _findings(environment)
    _print(findings)
    passed = thresholds.is_passed(findings)
    if path := environment.parsed_options.verdict:
        found = [
            {"threshold": f.threshold, "kept": f.is_kept, "sentence": f.sentence} for f in findings
        ]
        document = {"passed": passed, "findings": found}
        Path(path).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    environment.process_exit_code = 0 if passed else 1


def _findings(environment: Environment) -> tuple[Finding, ...]:
    options, runner = environment.parsed_options, environment.runner
    limits = Limits(
        error_rate=options.max_error_rate,
        p99_multiple=options.max_p99_multiple if options.direct else None,
        versions=2 if options.shape == "promote" else 1,
        lost_workers=len(runner.clients.missing) if isinstance(runner, MasterRunner) else 0,
        exceptions=sum(found["count"] for found in runner.exceptions.values()),
    )
    return thresholds.judge(*_read(environment.stats), limits)


def _print(findings: tuple[Finding, ...]) -> None:
    for finding in findings:
        print(f"{'kept  ' if finding.is_kept else 'BROKEN'} {finding.sentence}")  # noqa: T201


def _read(stats: RequestStats) -> tuple[dict[str, Figures], dict[str, int]]:
    """Answer the figures of each kind, and the requests of each version."""
    kinds: dict[str, StatsEntry] = {}
    versions: dict[str, int] = {}
    for (name, method), entry in stats.entries.items():
        kind, _, rest = name.partition(" ")
        kinds.setdefault(kind, StatsEntry(stats, kind, method)).extend(entry)
        if kind == GATEWAY and rest.startswith("v"):
            versions[rest.split()[0][1:]] = (
                versions.get(rest.split()[0][1:], 0) + entry.num_requests
            )
    figures = {
        kind: Figures(e.num_requests, e.num_failures, float(e.get_response_time_percentile(0.99)))
        for kind, e in kinds.items()
    }
    return figures, versions

"""The parts of the load test that need no stack: shapes, thresholds, flights, outcomes, promotion."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fairlead_load import shapes, thresholds
from fairlead_load.flights import Flights, FlightsError, squared_error
from fairlead_load.outcomes import PATIENCE, Outcomes, Posted
from fairlead_load.promotion import PromotionError, Registry, Version, choose
from fairlead_load.stickiness import SETTLES, Stickiness
from fairlead_load.thresholds import Figures, Limits

GOOD = {
    "gateway": Figures(1000, 0, 20.0),
    "direct": Figures(300, 0, 10.0),
    "outcomes": Figures(50, 0, 5.0),
}


def broken(kinds: dict[str, Figures], versions: dict[str, int], limits: Limits) -> list[str]:
    """The thresholds that were not kept."""
    return [f.threshold for f in thresholds.judge(kinds, versions, limits) if not f.is_kept]


# --- shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", shapes.KINDS)
@pytest.mark.parametrize("users", [1, 7, 100])
def test_a_shape_lasts_as_long_as_it_is_told_and_never_exceeds_its_users(
    kind: str, users: int
) -> None:
    """Every shape has users at each moment, reaches all of them, and ends on time."""
    plan = shapes.stages(kind, users, 60)
    counts = [shapes.stage_at(plan, t / 10) for t in range(600)]

    assert all(stage and 1 <= stage.users <= users for stage in counts)
    assert max(stage.users for stage in plan) == users
    assert shapes.stage_at(plan, 60) is None


def test_a_ramp_only_rises_and_a_spike_comes_and_goes() -> None:
    """The shapes are what they are called."""
    ramp = [stage.users for stage in shapes.stages("ramp", 100, 60)]
    spike = [stage.users for stage in shapes.stages("spike", 100, 60)]

    assert ramp == sorted(set(ramp))
    assert spike == [20, 100, 20]


def test_only_one_shape_promotes_and_not_at_the_start() -> None:
    """`promote` waits until there are figures of the version before."""
    assert not shapes.is_time_to_promote("promote", 14.9, 60)
    assert shapes.is_time_to_promote("promote", 15.0, 60)
    assert not any(shapes.is_time_to_promote(kind, 59, 60) for kind in ("steady", "ramp", "spike"))


@pytest.mark.parametrize(
    ("kind", "users", "seconds"), [("x", 1, 1), ("ramp", 0, 1), ("ramp", 1, 0)]
)
def test_a_shape_that_makes_no_sense_is_refused(kind: str, users: int, seconds: float) -> None:
    """An unknown shape, nobody, or no time at all."""
    with pytest.raises(ValueError, match=r"shape|user"):
        shapes.stages(kind, users, seconds)


# --- thresholds -----------------------------------------------------------------------------


def test_a_good_run_passes() -> None:
    """No failure, enough requests, and a p99 within the multiple."""
    assert broken(GOOD, {"1": 1000}, Limits()) == []
    assert thresholds.is_passed(thresholds.judge(GOOD, {"1": 1000}, Limits()))


@pytest.mark.parametrize(
    ("changes", "threshold"),
    [
        pytest.param({"gateway": Figures(1000, 1, 20.0)}, "gateway errors", id="one failure"),
        pytest.param({"gateway": Figures(99, 0, 20.0)}, "gateway requests", id="too few"),
        pytest.param({"direct": Figures(99, 0, 10.0)}, "direct requests", id="too few direct"),
        pytest.param({"direct": Figures(300, 1, 10.0)}, "direct errors", id="direct failure"),
        pytest.param({"gateway": Figures(1000, 0, 30.1)}, "p99", id="slow"),
        pytest.param({"direct": Figures(300, 0, 0.0)}, "p99", id="nothing to compare with"),
        pytest.param({"outcomes": Figures(50, 1, 5.0)}, "outcomes errors", id="outcomes lost"),
        pytest.param({"promotion": Figures(1, 1, 5.0)}, "promotion errors", id="not promoted"),
    ],
)
def test_each_fault_breaks_its_threshold(changes: dict[str, Figures], threshold: str) -> None:
    """A run that is bad in one way fails, and says in which."""
    assert broken({**GOOD, **changes}, {"1": 1000}, Limits()) == [threshold]


def test_a_run_without_requests_does_not_pass() -> None:
    """Nothing sent is no success."""
    assert "gateway requests" in broken({}, {}, Limits(p99_multiple=None))


def test_limits_are_what_the_caller_says() -> None:
    """Without a direct pod nothing is compared; a lost worker or user and a version count."""
    alone = {"gateway": Figures(1000, 5, 900.0)}
    limits = Limits(error_rate=0.005, p99_multiple=None)

    assert broken(alone, {"1": 1000}, limits) == []
    assert broken(GOOD, {"1": 900, "2": 100}, Limits(versions=2)) == []
    assert broken(GOOD, {"1": 1000, "2": 0}, Limits(versions=2)) == ["versions"]
    assert broken(GOOD, {"1": 1000}, Limits(lost_workers=1)) == ["workers"]
    assert broken(GOOD, {"1": 1000}, Limits(exceptions=1)) == ["users"]


# --- flights --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two planes."""
    lines = [
        {"unit": "N1", "month": 7, "rows": [["UA", 1.5], ["UA", None]], "late": [0, 1]},
        {"unit": "N2", "month": 7, "rows": [["B6", 2.0]], "late": [1]},
    ]
    (tmp_path / "columns.json").write_text(json.dumps({"columns": ["carrier", "temp"]}))
    (tmp_path / "requests.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def test_a_line_is_a_request(folder: Path) -> None:
    """The unit is the plane, and the body is MLflow's, with nothing lost."""
    request = Flights(folder).request(0)

    assert (request.unit, request.late) == ("N1", (0, 1))
    assert json.loads(request.body) == {
        "dataframe_split": {"columns": ["carrier", "temp"], "data": [["UA", 1.5], ["UA", None]]}
    }


def test_users_go_around_all_flights(folder: Path) -> None:
    """From wherever a user starts, it meets every plane, over and over."""
    flights = Flights(folder)
    for seed in range(5):
        user = flights.from_anywhere(seed)
        met = [next(user).unit for _ in range(4)]
        assert set(met[:2]) == {"N1", "N2"}
        assert met[:2] == met[2:]


def test_a_folder_without_flights_is_named(tmp_path: Path) -> None:
    """The message says which folder, and what makes it."""
    with pytest.raises(FlightsError, match="fairlead-training prepare"):
        Flights(tmp_path)


def test_an_answer_is_scored_and_a_wrong_one_is_refused() -> None:
    """Mean squared error of the second probability; anything else is no answer to these flights."""
    assert squared_error(b'{"predictions": [[0.5, 0.5], [0, 1.0]]}', (0, 1)) == 0.125
    for answer in (b"", b"[]", b'{"predictions": [[0.5, 0.5]]}', b'{"predictions": [1, 2]}'):
        with pytest.raises(FlightsError):
            squared_error(answer, (0, 1))


# --- stickiness -----------------------------------------------------------------------------


def test_a_unit_may_enter_the_candidate_and_not_leave_it() -> None:
    """Within one rollout; another rollout, or none, is another matter."""
    watch = Stickiness()
    assert watch.note("r1", "N1", "stable", 0) is None
    assert watch.note("r1", "N1", "candidate", 1) is None
    assert watch.note("r1", "N1", "stable", 1 + SETTLES) is None
    assert watch.note("r1", "N1", "stable", 1.1 + SETTLES)
    assert watch.note("r2", "N1", "stable", 100) is None
    assert watch.note("", "N1", "stable", 100) is None


# --- outcomes -------------------------------------------------------------------------------


class Service:
    """Answers with a status, and remembers what it was sent."""

    def __init__(self, status: int = 200, body: bytes = b'{"rejected": []}') -> None:
        self.status, self.body = status, body
        self.values: list[float] = []

    def __call__(self, body: bytes) -> tuple[int, bytes]:
        """Take a batch."""
        self.values += [outcome["value"] for outcome in json.loads(body)["outcomes"]]
        return self.status, self.body


def test_outcomes_are_posted_when_they_are_due() -> None:
    """Those that are known by now, the others later, and all at the end."""
    outcomes, service = Outcomes(delay=2), Service()
    for n in range(3):
        outcomes.add(f"i{n}", n, now=n)

    assert outcomes.post(service, now=1.9) is None
    assert outcomes.post(service, now=3) == Posted(2)
    assert outcomes.post(service, now=3, is_last=True) == Posted(1)
    assert service.values == [0, 1, 2]


@pytest.mark.parametrize("status", [503, 0])
def test_outcomes_wait_for_a_service_that_is_away_but_not_for_ever(status: int) -> None:
    """The same outcomes are sent again, in their order; after a while they count as lost."""
    outcomes, away = Outcomes(delay=0), Service(status)
    outcomes.add("i1", 1, now=0)
    outcomes.add("i2", 2, now=0)

    assert outcomes.post(away, now=0) is None
    assert outcomes.post(away, now=PATIENCE) is None
    assert away.values == [1, 2, 1, 2]
    lost = outcomes.post(away, now=PATIENCE + 1)
    assert lost
    assert lost.complaint
    assert len(outcomes) == 0


@pytest.mark.parametrize(
    "service",
    [
        pytest.param(Service(422), id="refused"),
        pytest.param(Service(body=b'{"rejected": [{"field": "value"}]}'), id="rejected"),
        pytest.param(Service(body=b"<html>"), id="another service"),
    ],
)
def test_outcomes_that_are_not_taken_are_a_failure(service: Service) -> None:
    """A refusal, an item rejected, or an answer that is no receipt."""
    outcomes = Outcomes(delay=0)
    outcomes.add("i1", 1, now=0)

    posted = outcomes.post(service, now=0)

    assert posted
    assert posted.complaint


# --- promotion ------------------------------------------------------------------------------


def test_the_lowest_version_not_in_production_is_promoted() -> None:
    """By stage, or by where the alias points; with one version there is nothing to promote."""
    versions = [Version(1, "Production"), Version(3, "None"), Version(2, "Staging")]

    assert choose(versions, None) == 2
    assert choose(versions, 2) == 1
    with pytest.raises(PromotionError, match="second"):
        choose(versions[:1], None)


class Mlflow(BaseHTTPRequestHandler):
    """The few calls of MLflow that promote; it asks for an account."""

    calls: list[tuple[str, str, Any]]

    def do_GET(self) -> None:
        """Answer two versions."""
        found = [{"version": "1", "current_stage": "Production"}, {"version": "2"}]
        self._answer({"model_versions": found})

    def do_POST(self) -> None:
        """Remember what was asked."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).calls.append((self.path, self.headers["authorization"], body))
        self._answer({})

    def _answer(self, document: object) -> None:
        is_known = self.headers["authorization"] == "Basic YW5uOnMzY3IzdA=="
        self.send_response(200 if is_known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def mlflow() -> Iterator[str]:
    """An MLflow's address."""
    Mlflow.calls = []
    server = HTTPServer(("127.0.0.1", 0), Mlflow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ACCOUNT = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "s3cr3t"}


def test_a_promotion_is_mlflows_own_call_with_its_account(mlflow: str) -> None:
    """The stage is moved, or the alias, with the account from the environment."""
    registry = Registry(mlflow, "flights", ACCOUNT)

    assert registry.promote() == 2
    assert registry.promote(7, "champion") == 7

    bodies = [(path, body) for path, _, body in Mlflow.calls]
    assert bodies == [
        (
            "/api/2.0/mlflow/model-versions/transition-stage",
            {
                "name": "flights",
                "version": "2",
                "stage": "Production",
                "archive_existing_versions": True,
            },
        ),
        (
            "/api/2.0/mlflow/registered-models/alias",
            {"name": "flights", "version": "7", "alias": "champion"},
        ),
    ]


def test_a_refused_promotion_says_so_without_the_account(mlflow: str) -> None:
    """A wrong account is an HTTP status; a server that is away is named by its kind."""
    wrong = {**ACCOUNT, "MLFLOW_TRACKING_PASSWORD": "s3cr3t-guess"}
    with pytest.raises(PromotionError, match="401") as refused:
        Registry(mlflow, "flights", wrong).promote(1)
    with pytest.raises(PromotionError, match="ConnectionRefusedError"):
        Registry("http://127.0.0.1:1", "flights", ACCOUNT).promote(1)

    assert "s3cr3t" not in str(refused.value)

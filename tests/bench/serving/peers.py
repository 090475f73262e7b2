"""The servers that are compared: how each is started and what it is sent."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

APPS = Path(__file__).parent / "apps"
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DO_NOT_TRACK": "true",
    "PYTHONUNBUFFERED": "1",
    # As in an image: else a start is the time that compiling everybody's imports takes.
    "PYTHONDONTWRITEBYTECODE": "",
}
MOST_ROWS, MOST_SECONDS = 64, 0.001
BATCHES = {"BENCH_MOST_ROWS": str(MOST_ROWS), "BENCH_MOST_SECONDS": str(MOST_SECONDS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a server starts.

    Attributes:
        model: The folder of its model.
        tools: The folder of its environment's commands.
        ports: Three free ports.
        scratch: A folder for files that it needs.
    """

    model: Path
    tools: Path
    ports: tuple[int, int, int]
    scratch: Path

    def tool(self, name: str) -> str:
        """Give a command of its environment."""
        return str(self.tools / name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How a server is started.

    Attributes:
        command: The command.
        port: Where it listens.
        path: Where it predicts.
        dialect: In which form of `models.DIALECTS`.
        environment: More environment variables.
    """

    command: tuple[str, ...]
    port: int
    path: str
    dialect: str = "mlflow"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A server, and how it is measured.

    Attributes:
        launch: How it is started.
        about: The same for a reader, as one sentence.
        packages: Whose versions matter.
        environment: Whose pinned requirements it runs on; "" are ours.
        models: The models it can serve; none are all.
        alone: It must not be stopped while others are measured, so it meets none but the baseline.
    """

    launch: Callable[[Place], Launch]
    about: str
    packages: tuple[str, ...]
    environment: str = ""
    models: frozenset[str] = frozenset()
    alone: bool = False


def _plain(place: Place) -> Launch:
    command = (place.tool("uvicorn"), "plain:app", "--app-dir", str(APPS))
    return Launch(
        command=(*command, "--port", str(place.ports[0]), "--no-access-log"),
        port=place.ports[0],
        path="/predict",
        dialect="plain",
        environment={"BENCH_MODEL": str(place.model)},
    )


def _floor(place: Place) -> Launch:
    command = (place.tool("uvicorn"), "floor:app", "--app-dir", str(APPS))
    options = ("--port", str(place.ports[0]), "--no-access-log", "--lifespan", "off")
    return Launch(command=(*command, *options), port=place.ports[0], path="/invocations")


def _mlflow(place: Place) -> Launch:
    command = (place.tool("mlflow"), "models", "serve", "-m", str(place.model / "mlflow"))
    options = ("--env-manager", "local", "-h", "127.0.0.1", "-p", str(place.ports[0]), "-w", "1")
    return Launch(command=(*command, *options), port=place.ports[0], path="/invocations")


def _fairlead(*options: str) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        command = (place.tool("fairlead-serving"), "--model", str(place.model / "mlflow"))
        return Launch(
            command=(*command, "--name", "m", "--port", str(place.ports[0]), *options),
            port=place.ports[0],
            path="/invocations",
        )

    return launch


def _mlserver(**batches: float) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        http, grpc, metrics = place.ports
        settings = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": http,
            "grpc_port": grpc,
            "metrics_port": metrics,
            "parallel_workers": 0,
        }
        served = {
            "name": "m",
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(place.model / "model.joblib")},
            **batches,
        }
        (place.scratch / "settings.json").write_text(json.dumps(settings))
        (place.scratch / "model-settings.json").write_text(json.dumps(served))
        return Launch(
            command=(place.tool("mlserver"), "start", str(place.scratch)),
            port=http,
            path="/v2/models/m/infer",
            dialect="v2",
        )

    return launch


def _kserve(place: Place) -> Launch:
    options = ("--http_port", str(place.ports[0]), "--enable_grpc", "false")
    return Launch(
        command=(place.tool("python"), str(APPS / "kserve_app.py"), *options),
        port=place.ports[0],
        path="/v2/models/m/infer",
        dialect="v2",
        environment={"BENCH_MODEL": str(place.model)},
    )


def _bentoml(batches: Mapping[str, str]) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        command = (place.tool("bentoml"), "serve", "bentoml_app:Bench", "--working-dir", str(APPS))
        return Launch(
            command=(*command, "--host", "127.0.0.1", "--port", str(place.ports[0])),
            port=place.ports[0],
            path="/predict",
            dialect="plain",
            environment={
                "BENCH_MODEL": str(place.model),
                "BENTOML_HOME": str(place.scratch),
                **batches,
            },
        )

    return launch


def _script(name: str, batches: Mapping[str, str]) -> Callable[[Place], Launch]:
    def launch(place: Place) -> Launch:
        return Launch(
            command=(place.tool("python"), str(APPS / name)),
            port=place.ports[0],
            path="/predict",
            dialect="plain",
            environment={
                "BENCH_MODEL": str(place.model),
                "BENCH_PORT": str(place.ports[0]),
                "RAY_TMPDIR": str(place.scratch),
                **batches,
            },
        )

    return launch


_TOGETHER = f"at most {MOST_ROWS} requests, waiting at most {MOST_SECONDS * 1e3:g} ms"
USUAL: Mapping[str, Peer] = {
    "plain": Peer(
        launch=_plain,
        about="FastAPI with pydantic models for body and answer, uvicorn without access log.",
        packages=("fastapi", "pydantic", "uvicorn"),
    ),
    "floor": Peer(
        launch=_floor,
        about="A bare ASGI function that decodes the body and answers a constant, on uvicorn.",
        packages=("uvicorn", "orjson"),
        models=frozenset({"m0"}),
    ),
    "mlflow": Peer(
        launch=_mlflow,
        about="`mlflow models serve --env-manager local`, one worker.",
        packages=("mlflow", "uvicorn"),
    ),
    "fairlead": Peer(
        launch=_fairlead("--predictor", "exact"),
        about="`fairlead-serving --predictor exact`: the model's own `predict`.",
        packages=("fairlead-serving", "uvicorn"),
    ),
    "fairlead-compiled": Peer(
        launch=_fairlead(),
        about="`fairlead-serving` as it starts by itself: compiles what it can.",
        packages=("fairlead-serving", "uvicorn"),
    ),
}
OTHERS: Mapping[str, Peer] = {
    "mlserver": Peer(
        launch=_mlserver(),
        about="MLServer's scikit-learn runtime in one process (`parallel_workers` 0: its default of 1 "
        "costs more on one processor), version 2 of the protocol over REST.",
        packages=("mlserver", "uvicorn"),
        environment="mlserver",
    ),
    "bentoml": Peer(
        launch=_bentoml({}),
        about="A BentoML service with one worker, array or frame as argument.",
        packages=("bentoml", "uvicorn"),
        environment="bentoml",
    ),
    "litserve": Peer(
        launch=_script("litserve_app.py", {}),
        about="LitServe with one worker and one API server, without access log.",
        packages=("litserve", "uvicorn"),
        environment="litserve",
    ),
    "kserve": Peer(
        launch=_kserve,
        about="`kserve.Model` with the calls of KServe's own server for scikit-learn, without "
        "gRPC, version 2 of the protocol over REST; its pins ask for pandas 2.",
        packages=("kserve", "uvicorn"),
        environment="kserve",
    ),
    "ray": Peer(
        launch=_script("ray_app.py", {}),
        about="Ray Serve with one replica on a local cluster of one processor, without access log.",
        packages=("ray", "uvicorn"),
        environment="ray",
        alone=True,
    ),
}
BATCHING: Mapping[str, Peer] = {
    "mlserver-batch": Peer(
        launch=_mlserver(max_batch_size=MOST_ROWS, max_batch_time=MOST_SECONDS),
        about=f"`mlserver` with adaptive batching: {_TOGETHER}.",
        packages=("mlserver", "uvicorn"),
        environment="mlserver",
    ),
    "bentoml-batch": Peer(
        launch=_bentoml(BATCHES),
        about="`bentoml` with adaptive batching, at its defaults.",
        packages=("bentoml", "uvicorn"),
        environment="bentoml",
        alone=True,
    ),
    "litserve-batch": Peer(
        launch=_script("litserve_app.py", BATCHES),
        about=f"`litserve` with batches: {_TOGETHER}.",
        packages=("litserve", "uvicorn"),
        environment="litserve",
    ),
    "ray-batch": Peer(
        launch=_script("ray_app.py", BATCHES),
        about=f"`ray` with `@serve.batch`: {_TOGETHER}.",
        packages=("ray", "uvicorn"),
        environment="ray",
        alone=True,
    ),
}
GROUPS: Mapping[str, Mapping[str, Peer]] = {
    "usual": USUAL,
    "others": OTHERS,
    "batching": BATCHING,
}
PEERS: Mapping[str, Peer] = {**USUAL, **OTHERS, **BATCHING}

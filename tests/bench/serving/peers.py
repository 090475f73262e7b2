"""The servers that are compared: how each is started and what it is sent."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "PYTHONUNBUFFERED": "1",
}


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


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _plain(model: Path, port: int) -> Launch:
    command = (_tool("uvicorn"), "plain:app", "--app-dir", str(HERE), "--port", str(port))
    return Launch(
        command=(*command, "--no-access-log"),
        port=port,
        path="/predict",
        dialect="plain",
        environment={"BENCH_MODEL": str(model)},
    )


def _floor(model: Path, port: int) -> Launch:
    del model
    command = (_tool("uvicorn"), "floor:app", "--app-dir", str(HERE), "--port", str(port))
    options = ("--no-access-log", "--lifespan", "off")
    return Launch(command=(*command, *options), port=port, path="/invocations")


def _mlflow(model: Path, port: int) -> Launch:
    command = (_tool("mlflow"), "models", "serve", "-m", str(model / "mlflow"))
    options = ("--env-manager", "local", "-h", "127.0.0.1", "-p", str(port), "-w", "1")
    return Launch(command=(*command, *options), port=port, path="/invocations")


def _fairlead(*options: str, v2: bool = False) -> Callable[[Path, int], Launch]:
    def launch(model: Path, port: int) -> Launch:
        command = (_tool("fairlead-serving"), "--model", str(model / "mlflow"), "--name", "m")
        path = "/v2/models/m/infer" if v2 else "/invocations"
        return Launch(
            command=(*command, "--port", str(port), *options),
            port=port,
            path=path,
            dialect="v2" if v2 else "mlflow",
        )

    return launch


PEERS: Mapping[str, Callable[[Path, int], Launch]] = {
    "plain": _plain,
    "floor": _floor,
    "mlflow": _mlflow,
    "fairlead": _fairlead("--predictor", "exact"),
    "fairlead-compiled": _fairlead(),
}

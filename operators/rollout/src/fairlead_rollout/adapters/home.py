"""The folder that holds everything of a local stack: who writes which file."""

from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOME = Path(".fairlead")


@dataclass(frozen=True)
class Home:
    """The layout of the folder.

    Attributes:
        root: The folder itself.
    """

    root: Path

    @property
    def served_models(self) -> Path:
        """ServedModels: manifests written by people's commands, status by the controller."""
        return self.root / "served-models"

    @property
    def workloads(self) -> Path:
        """Workloads: `spec.json` by the controller, `status.json` by `fairlead up`."""
        return self.root / "workloads"

    @property
    def ports(self) -> Path:
        """The listeners' ports, kept so that addresses survive a restart."""
        return self.root / "ports.json"

    @property
    def lock(self) -> Path:
        """Held by the one `fairlead up` of this folder."""
        return self.root / "up.lock"

    @property
    def logs(self) -> Path:
        """What each process printed."""
        return self.root / "logs"

    @property
    def mlflow(self) -> Path:
        """MLflow's database and artifacts."""
        return self.root / "mlflow"

    @property
    def cache(self) -> Path:
        """Downloaded model versions."""
        return self.root / "models"

    @property
    def experiments(self) -> Path:
        """The experiments service's database."""
        return self.root / "experiments.db"

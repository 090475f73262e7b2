"""Puts the adapters together: from settings to a model that is ready."""

import logging
from pathlib import Path

from fairlead_serving.adapters.environment import unmet_requirements
from fairlead_serving.adapters.lightgbm import LightgbmLoader
from fairlead_serving.adapters.mlmodel import read_folder
from fairlead_serving.adapters.onnx import OnnxLoader
from fairlead_serving.adapters.pyfunc import PyfuncLoader
from fairlead_serving.adapters.pytorch import PytorchLoader
from fairlead_serving.adapters.sklearn import SklearnLoader
from fairlead_serving.adapters.xgboost import XgboostLoader
from fairlead_serving.app.ports import FlavorLoader, ModelFolder
from fairlead_serving.app.serving import Served, load
from fairlead_serving.domain.errors import CannotLoadError
from fairlead_serving.domain.source import parse_model
from fairlead_serving.entrypoints.settings import Settings

_log = logging.getLogger(__name__)


def fetch_and_load(settings: Settings) -> Served:
    """Fetch the model if need be, load it, warm it up.

    Args:
        settings: The settings of the process.

    Returns:
        The model, ready to predict.

    Raises:
        CannotLoadError: It will never be served like this.
        CannotFetchError: The registry did not give it just now.
    """
    loaders = (
        SklearnLoader(settings.predictor, settings.trusted_types, settings.threads),
        XgboostLoader(settings.threads),
        LightgbmLoader(settings.threads, settings.trusted_types),
        OnnxLoader(settings.threads),
        PytorchLoader(settings.threads),
        PyfuncLoader(),
    )

    def check_environment(folder: ModelFolder, loader: FlavorLoader) -> None:
        native = not isinstance(loader, PyfuncLoader)
        _check(unmet_requirements(folder, without_mlflow=native), settings.environment)

    return load(read_folder(_folder(settings)), loaders, check_environment)


def _folder(settings: Settings) -> Path:
    version = parse_model(settings.model)
    if version is None:
        return Path(settings.model)
    # Slow to import, and a folder does not need it.
    from fairlead_serving.adapters.registry import Registry  # noqa: PLC0415

    with Registry(settings.tracking_uri, settings.cache) as registry:
        return registry.fetch(version)


def _check(unmet: list[str], environment: str) -> None:
    if not unmet:
        return
    sentence = f"This environment does not meet the model's requirements: {', '.join(unmet)}"
    if environment == "ignore":
        _log.warning("%s", sentence)
        return
    raise CannotLoadError(
        f"{sentence}; serve it from an image that does, or pass --environment ignore."
    )

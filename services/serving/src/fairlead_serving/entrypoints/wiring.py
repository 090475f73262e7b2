"""Puts the adapters together: from settings to a model that is ready."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead_serving.adapters.environment import read_environment
from fairlead_serving.adapters.lightgbm import LightgbmLoader
from fairlead_serving.adapters.mlmodel import read_folder
from fairlead_serving.adapters.onnx import OnnxLoader
from fairlead_serving.adapters.pyfunc import PyfuncLoader
from fairlead_serving.adapters.pytorch import PytorchLoader
from fairlead_serving.adapters.sklearn import SklearnLoader
from fairlead_serving.adapters.xgboost import XgboostLoader
from fairlead_serving.app.ports import FlavorLoader, ModelFolder, Progress
from fairlead_serving.app.serving import Served, choose_loader, load
from fairlead_serving.domain.environment import Environment, say_unmet
from fairlead_serving.domain.errors import CannotLoadError
from fairlead_serving.domain.source import parse_model
from fairlead_serving.entrypoints.settings import Settings

_log = logging.getLogger(__name__)


LAYER_VARIABLE = "FAIRLEAD_LAYER"
"""The layer that this process was started again with; see `entrypoints.restart`."""


class LayerNeededError(Exception):
    """The model needs packages that this process can only find when it starts again.

    Attributes:
        layer: The folder they are in.
    """

    def __init__(self, layer: Path) -> None:
        super().__init__(f"The model needs the layer '{layer}'.")
        self.layer = layer


@dataclass(frozen=True, slots=True)
class Inspected:
    """What can be told of a model without loading it.

    Attributes:
        folder: Where it is, and what that says of it.
        flavor: What would load it.
        environment: What it asks for, and what there is.
    """

    folder: ModelFolder
    flavor: str
    environment: Environment


def fetch_and_load(settings: Settings) -> Served:
    """Fetch the model if need be, load it, warm it up.

    Args:
        settings: The settings of the process.

    Returns:
        The model, ready to predict.

    Raises:
        CannotLoadError: It will never be served like this.
        CannotFetchError: The registry did not give it just now.
        LayerNeededError: The process has to be started again, with more on its import path.
    """

    def check_environment(folder: ModelFolder, loader: FlavorLoader) -> None:
        settle_environment(settings, folder.path, _environment(folder, loader))

    return load(read_folder(fetch(settings)), _loaders(settings), check_environment)


def inspect(settings: Settings, folder: Path) -> Inspected:
    """Tell what a model is and what it asks for; nothing of it is loaded.

    Args:
        settings: The settings of the process.
        folder: The model's.

    Returns:
        What was found.

    Raises:
        CannotLoadError: It will never be served.
    """
    read = read_folder(folder)
    loader = choose_loader(read, _loaders(settings))
    return Inspected(read, loader.flavor, _environment(read, loader))


def _loaders(settings: Settings) -> Sequence[FlavorLoader]:
    return (
        SklearnLoader(settings.predictor, settings.trusted_types, settings.threads),
        XgboostLoader(settings.threads),
        LightgbmLoader(settings.threads, settings.trusted_types),
        OnnxLoader(settings.threads),
        PytorchLoader(settings.threads),
        PyfuncLoader(),
    )


def _environment(folder: ModelFolder, loader: FlavorLoader) -> Environment:
    return read_environment(folder, without_mlflow=not isinstance(loader, PyfuncLoader))


def fetch(settings: Settings, progress: Progress | None = None) -> Path:
    """Fetch the model, if it is not a folder here already.

    Args:
        settings: The settings of the process.
        progress: Hears how far a download is; the log does if None.

    Returns:
        Its folder.

    Raises:
        CannotLoadError: It is not there, or not what was recorded.
        CannotFetchError: The registry did not give it just now.
    """
    version = parse_model(settings.model)
    if version is None:
        return Path(settings.model)
    # Slow to import, and a folder does not need it.
    from fairlead_serving.adapters.registry import Registry  # noqa: PLC0415

    with Registry(settings.tracking_uri, settings.cache, progress) as registry:
        return registry.fetch(version)


def settle_environment(settings: Settings, folder: Path, environment: Environment) -> None:
    """Do about what is not met what the settings say.

    Args:
        settings: The settings of the process.
        folder: The model's.
        environment: What it asks for, and what there is.

    Raises:
        CannotLoadError: Something is not met, and stays so.
        CannotFetchError: It could not be installed just now.
        LayerNeededError: It is installed where a process that starts again will find it.
    """
    if environment.is_other_python and environment.is_python_met:
        _log.warning(
            "The model was saved by Python %s, and this is %s",
            environment.made_with,
            environment.python,
        )
    unmet = say_unmet(environment)
    if not unmet:
        return
    if settings.environment == "ignore":
        _log.warning("%s", unmet)
        return
    if settings.environment == "resolve" and environment.is_python_met:
        raise LayerNeededError(_layer(settings, folder, environment, unmet))
    raise CannotLoadError(
        f"{unmet}; serve it from an image that does, or pass --environment {_others(environment)}."
    )


def _others(environment: Environment) -> str:
    return "resolve or ignore" if environment.is_python_met else "ignore"


def _layer(settings: Settings, folder: Path, environment: Environment, unmet: str) -> Path:
    if LAYER_VARIABLE in os.environ:
        raise CannotLoadError(f"{unmet}; '{os.environ[LAYER_VARIABLE]}' does not change that.")
    # Only this needs it.
    from fairlead_serving.adapters.layers import Layers  # noqa: PLC0415

    return Layers(settings.cache).provide(environment, folder)

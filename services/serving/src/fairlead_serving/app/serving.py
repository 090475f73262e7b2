"""The use cases: load a model and warm it up, predict with it."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fairlead_serving.app.lane import Pace
from fairlead_serving.app.ports import FlavorLoader, Model, ModelFolder
from fairlead_serving.domain.data import Request
from fairlead_serving.domain.decode import decode
from fairlead_serving.domain.errors import BadInputError, CannotLoadError, ModelRaisedError
from fairlead_serving.domain.reader import Reader
from fairlead_serving.domain.signature import Signature

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A model that is loaded and warm.

    Attributes:
        model: The model.
        folder: Where it came from, and what that says of it.
        pace: How long its calls have taken so far.
    """

    model: Model
    folder: ModelFolder
    pace: Pace = field(default_factory=Pace)

    @property
    def signature(self) -> Signature:
        """The signature that requests are checked against."""
        signature = self.folder.signature
        return Signature(params=signature.params) if self.folder.takes_anything else signature

    @cached_property
    def reader(self) -> Reader:
        """What reads the bodies of requests."""
        return Reader(self.signature)

    def predict(self, request: Request) -> object:
        """Predict on a checked request.

        Args:
            request: What the reader gave.

        Returns:
            The predictions.

        Raises:
            BadInputError: The model cannot take this input.
            ModelRaisedError: The model failed.
        """
        try:
            return self.model.predict(request.data, request.params)
        except BadInputError:
            raise
        except (Exception, SystemExit) as error:  # A model may call `exit`; the process stays.
            _log.warning("The model raised %s", type(error).__name__)
            _log.debug("The traceback", exc_info=True)
            raise ModelRaisedError(type(error).__name__) from error


def load(
    folder: ModelFolder,
    loaders: Sequence[FlavorLoader],
    check_environment: Callable[[ModelFolder, FlavorLoader], None],
) -> Served:
    """Load a model with the first loader that can, and warm it up.

    Args:
        folder: What to load.
        loaders: The most specific first.
        check_environment: Raises `CannotLoadError` when the model's requirements are not met.

    Returns:
        The model, ready to predict.

    Raises:
        CannotLoadError: It will not load, however often it is tried.
    """
    loader = choose_loader(folder, loaders)
    check_environment(folder, loader)
    served = Served(_load(folder, loader), folder)
    warm_up(served)
    _ = served.reader  # Compiled now, lest the first callers wait for it.
    return served


def choose_loader(folder: ModelFolder, loaders: Sequence[FlavorLoader]) -> FlavorLoader:
    """Choose what loads a model.

    Args:
        folder: The model.
        loaders: The most specific first.

    Returns:
        The first that can.

    Raises:
        CannotLoadError: None can.
    """
    loader = next((loader for loader in loaders if loader.can_load(folder)), None)
    if loader is None:
        raise CannotLoadError("The model has no python_function flavor, so it cannot be served.")
    return loader


def warm_up(served: Served) -> None:
    """Predict once on the model's own input example, so that no caller waits for first imports.

    An example may be stale, so a failure only warns; but a module that is not installed would
    fail every request.

    Args:
        served: The model.

    Raises:
        CannotLoadError: Predicting needs a module that is not installed.
    """
    if served.folder.example is None:
        return
    try:
        request = decode(served.folder.example, served.signature)
        served.predict(request)
        started = time.perf_counter()
        served.predict(request)  # The second call is as fast as all that follow.
        served.pace.note(request.data.rows, time.perf_counter() - started)
    except BadInputError as error:
        _log.warning("The model's input example is not of its signature: %s", error.message)
    except ModelRaisedError as error:
        if isinstance(error.__cause__, ImportError):
            raise CannotLoadError(_missing(error.__cause__)) from error
        _log.warning("The model raised %s on its own input example", error.exception_class)


def _load(folder: ModelFolder, loader: FlavorLoader) -> Model:
    try:
        return loader.load(folder)
    except CannotLoadError:
        raise
    except ImportError as error:
        raise CannotLoadError(_missing(error)) from error
    except (Exception, SystemExit) as error:
        # Reading a model runs its own code, so anything may come; what matters is that it will
        # come again on every start.
        raise CannotLoadError(
            f"The model cannot be loaded: {type(error).__name__}: {_one_line(error)}"
        ) from error


def _missing(error: ImportError) -> str:
    what = f"the module '{error.name}'" if error.name else _one_line(error)
    return (
        f"The model needs {what}, which is not installed here; "
        "use an image that has it, or list it in the model's requirements and build one."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no message"

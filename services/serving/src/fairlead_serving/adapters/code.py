"""The code that a model brings with it, and its folder on the import path."""

import sys

from fairlead_serving.app.ports import ModelFolder
from fairlead_serving.domain.errors import CannotLoadError


def add_code(folder: ModelFolder, flavor: str) -> None:
    """Put the code saved with a model on the import path, as MLflow does.

    Args:
        folder: The model.
        flavor: Which flavor's settings may name the code.
    """
    code = folder.pyfunc.get("code") or folder.flavors.get(flavor, {}).get("code")
    if code:
        sys.path.insert(0, str(folder.path / str(code)))


def data_path(folder: ModelFolder, name: object) -> str:
    """Find the file that holds a model.

    Args:
        folder: The model.
        name: Its path in the folder.

    Returns:
        The path of the file.

    Raises:
        CannotLoadError: It is not there, or not in the folder.
    """
    path = (folder.path / str(name)).resolve()
    if not path.is_relative_to(folder.path.resolve()) or not path.exists():
        raise CannotLoadError(f"The model folder lacks the file '{name}' that its MLmodel names.")
    return str(path)

"""Starts the command again in the same process, with more on its import path."""

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from fairlead_serving.entrypoints.wiring import LAYER_VARIABLE

LISTENER_VARIABLE = "FAIRLEAD_LISTENER"
"""The descriptor of the socket that went on listening."""


def start_again(layer: Path, listener: socket.socket) -> NoReturn:
    """Replace this process by the same command, which finds the packages of a layer first.

    What is imported already cannot be exchanged: numpy and scikit-learn are there before it is
    known what the model needs.

    Args:
        layer: The folder of the packages.
        listener: The socket to go on listening on.
    """
    paths = (str(layer), *filter(None, [os.environ.get("PYTHONPATH")]))
    listener.set_inheritable(True)
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        LAYER_VARIABLE: str(layer),
        LISTENER_VARIABLE: str(listener.fileno()),
    }
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], variables)  # noqa: S606


def inherited_listener() -> socket.socket | None:
    """Give the socket that the process before left open, if there was one."""
    descriptor = os.environ.pop(LISTENER_VARIABLE, None)
    if descriptor is None:
        return None
    listener = socket.socket(fileno=int(descriptor))
    listener.set_inheritable(False)
    return listener

"""What can go wrong, told apart by who has to act.

BadInputError        the caller: the request is answered with a 400
NoSuchPathError      the caller: with a 404
UnknownModelError    the caller: with a 404
WrongMethodError     the caller: with a 405
TooSlowError         the caller: with a 408
TooLargeError        the caller: with a 413
UnsupportedTypeError the caller: with a 415
ClientLeftError      nobody: it is counted as a 499
NotReadyError        nobody: with a 503, and it may be sent again
OverloadedError      nobody: the same
ModelRaisedError     the model: with a 500
CannotStartError     who wrote the options: the process ends with 1
CannotLoadError      the model's owner: the process ends with 3 and stays down
CannotFetchError     nobody yet: the process ends with 4 and may be started again
"""

from typing import ClassVar


class RequestError(Exception):
    """A request that gets no predictions; the message never repeats what was sent.

    Attributes:
        status: The HTTP status code.
        code: What kind of error it is, for a program.
        message: One sentence for the caller.
        field: The column, parameter or format key the message is about, if one is.
    """

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class BadInputError(RequestError):
    """The request cannot be understood."""

    status = 400
    code = "BAD_REQUEST"


class TooLargeError(RequestError):
    """The request is larger than this process takes."""

    status = 413
    code = "PAYLOAD_TOO_LARGE"


class UnsupportedTypeError(RequestError):
    """The content type is none that is read, or the body is compressed."""

    status = 415
    code = "UNSUPPORTED_MEDIA_TYPE"


class TooSlowError(RequestError):
    """The request takes too long to arrive."""

    status = 408
    code = "REQUEST_TIMEOUT"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request did not arrive within {seconds:g} seconds.")


class ClientLeftError(RequestError):
    """The caller has closed the connection; nobody reads the answer, which is counted all the same."""

    status = 499  # As nginx logs it; HTTP has no code for it.
    code = "CLIENT_LEFT"

    def __init__(self) -> None:
        super().__init__("The caller has left.")


class OverloadedError(RequestError):
    """The queue is full, or the request has waited for too long."""

    status = 503
    code = "OVERLOADED"


class NotReadyError(RequestError):
    """The model is not loaded yet."""

    status = 503
    code = "UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("The model is still being loaded.")


class NoSuchPathError(RequestError):
    """There is nothing at a path."""

    status = 404
    code = "NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("There is nothing at this path; /docs lists the paths.")


class WrongMethodError(RequestError):
    """A path takes another method."""

    status = 405
    code = "METHOD_NOT_ALLOWED"

    def __init__(self) -> None:
        super().__init__("This path takes another method; the header Allow names it.")


class UnknownModelError(RequestError):
    """The request is for a model, or a version, that another process serves."""

    status = 404
    code = "NOT_FOUND"

    def __init__(self, name: str, version: str) -> None:
        super().__init__(f"This process serves version {version} of '{name}' alone.")


class ModelRaisedError(RequestError):
    """The model itself failed on an input that its signature allows.

    Attributes:
        exception_class: The class of what it raised; its text may hold the input.
    """

    status = 500
    code = "MODEL_ERROR"

    def __init__(self, exception_class: str) -> None:
        super().__init__(f"The model raised {exception_class}.")
        self.exception_class = exception_class


class CannotStartError(Exception):
    """The process cannot serve as it was told to."""


class CannotLoadError(Exception):
    """This model can never be served by this process, however often it is started."""


class CannotFetchError(Exception):
    """The model could not be fetched just now; trying again may help."""

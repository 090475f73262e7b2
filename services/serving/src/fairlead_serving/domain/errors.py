"""What can go wrong, told apart by who has to act.

BadInputError        the caller: the request is answered with a 4xx
ModelRaisedError     the model: the request is answered with a 500
CannotLoadError      the model's owner: the process ends with 3 and stays down
CannotFetchError     nobody yet: the process ends with 4 and may be started again
"""


class BadInputError(Exception):
    """The request cannot be understood; the message never repeats what was sent.

    Attributes:
        message: One sentence for the caller.
        field: The column, parameter or format key the message is about, if one is.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class ModelRaisedError(Exception):
    """The model itself failed on an input that its signature allows.

    Attributes:
        exception_class: The class of what it raised; its text may hold the input.
    """

    def __init__(self, exception_class: str) -> None:
        super().__init__(f"The model raised {exception_class}.")
        self.exception_class = exception_class


class CannotLoadError(Exception):
    """This model can never be served by this process, however often it is started."""


class CannotFetchError(Exception):
    """The model could not be fetched just now; trying again may help."""

"""What can go wrong, for those who call.

ExperimentsError
├── BadRequestError        the caller's: has a code and names the field
├── NotFoundError          the caller's: no such record
└── StoreUnavailableError  ours, passing: the database did not answer; try again
"""


class ExperimentsError(Exception):
    """Anything this service raises on purpose."""


class BadRequestError(ExperimentsError):
    """The request cannot be understood; says which field and why, never repeats it."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class NotFoundError(ExperimentsError):
    """There is no such record."""


class StoreUnavailableError(ExperimentsError):
    """The database did not answer; `reason` says why, for those who operate it."""

    def __init__(self, reason: str) -> None:
        super().__init__("the database did not answer")
        self.reason = reason

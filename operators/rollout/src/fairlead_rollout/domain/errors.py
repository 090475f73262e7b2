"""The errors of the controller.

FairleadError
├── InvalidSpecError      a person must change the ServedModel
├── NotFoundError         there is no such thing
└── UnavailableError      another system does not answer; trying again may help
"""


class FairleadError(Exception):
    """Base of every error Fairlead raises on purpose; its text is for people."""


class InvalidSpecError(FairleadError):
    """The ServedModel is wrong; the message names the field, what it holds and the remedy."""


class NotFoundError(FairleadError):
    """There is no such thing; the message names it."""


class UnavailableError(FairleadError):
    """A system the controller needs does not answer; trying again may help."""

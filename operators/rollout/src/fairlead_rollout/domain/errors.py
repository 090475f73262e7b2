"""The errors of the controller.

FairleadError
├── InvalidSpecError      a person must change the ServedModel
├── InvalidSettingsError  a person must change the installation's settings
├── NotFoundError         there is no such thing
├── ConflictError         somebody else has changed it meanwhile
├── RefusedError          another system will not have it as it is; a person must act
├── NotLookedYetError     another system is about to be asked
└── UnavailableError      another system does not answer; trying again may help
"""


class FairleadError(Exception):
    """Base of every error Fairlead raises on purpose; its text is for people."""


class InvalidSpecError(FairleadError):
    """The ServedModel is wrong; the message names the field, what it holds and the remedy."""


class InvalidSettingsError(FairleadError):
    """The controller's settings are wrong; the message names the setting."""


class NotFoundError(FairleadError):
    """There is no such thing; the message names it."""


class ConflictError(FairleadError):
    """Somebody else has changed it meanwhile; look again."""


class RefusedError(FairleadError):
    """Another system will not have it as it is; the message says what a person must mend."""


class NotLookedYetError(FairleadError):
    """Another system is about to be asked; nothing can be said of it yet."""


class UnavailableError(FairleadError):
    """A system the controller needs does not answer; trying again may help."""

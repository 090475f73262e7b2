"""Why a model is not compiled, or a request not taken by what was compiled of it."""


class CannotCompileError(Exception):
    """A part of the model is not known; the message names it."""


class NotTakenError(Exception):
    """This request is for the model's own `predict`, which knows what to make of it."""

"""What a model asks of the packages and of the Python it runs in, and what there is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Need:
    """One requirement of a model.

    Attributes:
        line: As it stands in the model's `requirements.txt`, options included.
        name: The distribution, with its extras.
        wanted: Which versions will do, such as `>=2,<3`; empty if any will.
        installed: The version that is installed, if one is.
        is_met: Whether that one will do.
    """

    line: str
    name: str
    wanted: str
    installed: str | None
    is_met: bool

    def __str__(self) -> str:
        """Name the requirement, without the address that a line may hold."""
        return f"{self.name}{self.wanted}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """All that a model asks for.

    Attributes:
        needs: Its requirements.
        options: The lines of `requirements.txt` that tell an installer where and how to look.
        python: The version of Python that runs here.
        made_with: The version that saved the model; empty if it is not known.
        holds_bytecode: Whether the model's files hold code compiled by that version, which no
            other minor version can run.
    """

    needs: tuple[Need, ...]
    options: tuple[str, ...]
    python: str
    made_with: str
    holds_bytecode: bool

    @property
    def unmet(self) -> tuple[Need, ...]:
        """The requirements that what is installed does not meet."""
        return tuple(need for need in self.needs if not need.is_met)

    @property
    def is_other_python(self) -> bool:
        """Whether the model was saved by another minor version of Python."""
        return bool(self.made_with) and _minor(self.made_with) != _minor(self.python)

    @property
    def is_python_met(self) -> bool:
        """Whether this Python can read the model; other data than bytecode mostly loads."""
        return not (self.is_other_python and self.holds_bytecode)


def say_unmet(environment: Environment) -> str:
    """Say in one clause what is not met; empty if all is."""
    phrases = [f"{need} ({need.installed or 'nothing'} is installed)" for need in environment.unmet]
    if not environment.is_python_met:
        phrases.append(
            f"Python {_minor(environment.made_with)}, which compiled code in the model's files "
            f"(this is {environment.python})"
        )
    if not phrases:
        return ""
    return f"This environment does not meet the model's requirements: {', '.join(phrases)}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])

"""A line of the access log, and the exposure it tells of."""

from dataclasses import dataclass

_CLIENT_CLOSED = 499
_NO_ANSWER = 0
_GATEWAY_TIMEOUT = 504


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One request to a served model, as Envoy logged it.

    Attributes:
        id: The inference id.
        model: The served model; None for a path no model has.
        rollout: The rollout, for a prediction while one is running.
        step: The rollout's step.
        override: Whether a person has chosen the arm.
        outside: Why its unit is kept out of the rollout, if it is.
        arm: The assigned arm; None if the request was answered before one was.
        cluster: The cluster the route chose.
        version: The version tried last.
        unit: What was assigned; None without a unit.
        start: Milliseconds since the epoch.
        code: The status code; 0 if the client left first.
        flags: Envoy's response flags.
        details: Who answered, and why.
        attempts: How often the request was sent.
        duration: Milliseconds.
    """

    id: str | None = None
    model: str | None = None
    rollout: str | None = None
    step: int | None = None
    override: bool | None = None
    outside: str | None = None
    arm: str | None = None
    cluster: str | None = None
    version: str | None = None
    unit: str | None = None
    start: str | int | None = None
    code: int | None = None
    flags: str | None = None
    details: str | None = None
    attempts: int | None = None
    duration: float | None = None

    @property
    def answered_by(self) -> str | None:
        """The version that answered; None if Envoy did."""
        return self.version if self.details == "via_upstream" else None

    @property
    def status(self) -> int:
        """The status code, 499 where the client left before there was one, 0 for half an answer."""
        if not self.code:
            return _CLIENT_CLOSED
        return _NO_ANSWER if self._broke_off else self.code

    @property
    def _broke_off(self) -> bool:
        """Whether the answer had begun, and ended too early without the client's doing.

        Envoy logs the code that went out with the headers, whatever became of the body. A timeout
        before the headers is Envoy's own 504.
        """
        if "DC" in (self.flags or "").split(","):
            return False
        details = self.details or ""
        too_late = details == "response_timeout" and self.code != _GATEWAY_TIMEOUT
        return too_late or details.startswith("upstream_reset_after_response_started")

    @property
    def retries(self) -> int:
        """How often the request was sent again."""
        return max((self.attempts or 0) - 1, 0)

    @property
    def is_fallback(self) -> bool:
        """Whether another version than the assigned arm's answered."""
        assigned = (self.cluster or "").rpartition("-v")[2]
        return self.answered_by is not None and self.answered_by != assigned


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One unit met one arm; see the contract for the fields."""

    inference_id: str
    rollout: str
    step: int
    arm: str
    version: str | None
    unit: str | None
    at_milliseconds: int
    code: int
    attempts: int
    duration_milliseconds: float


def exposure_of(line: LogLine) -> Exposure | None:
    """Return the exposure a line tells of, if it does.

    Args:
        line: The line of the log.
    """
    if line.id is None or line.rollout is None or line.step is None:
        return None
    if line.arm is None or line.start is None:
        return None
    return Exposure(
        inference_id=line.id,
        rollout=line.rollout,
        step=line.step,
        arm=line.arm,
        version=line.answered_by,
        unit=line.unit,
        at_milliseconds=int(line.start),
        code=line.status,
        attempts=max(line.attempts or 0, 1),
        duration_milliseconds=line.duration or 0.0,
    )

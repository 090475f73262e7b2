"""What a run must keep to, and whether it did."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

ENOUGH: Final = 100
"""Below so many requests there is no 99th percentile to speak of."""

GATEWAY: Final = "gateway"
DIRECT: Final = "direct"
OUTCOMES: Final = "outcomes"
PROMOTION: Final = "promotion"


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests of one kind: how many, how many failed, and their 99th percentile in ms."""

    requests: int = 0
    failures: int = 0
    p99: float = 0.0

    @property
    def error_rate(self) -> float:
        """The failed share."""
        return self.failures / self.requests if self.requests else 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run must keep to.

    Attributes:
        error_rate: The largest share of requests that may fail.
        p99_multiple: The gateway's 99th percentile is at most so many times the direct one's; None
            where nothing is sent past the gateway.
        versions: So many versions must have answered.
        lost_workers: How many workers went away before the end: none may.
        exceptions: How often a user broke down: never, for then it sent less than it says.
    """

    error_rate: float = 0.0
    p99_multiple: float | None = 3.0
    versions: int = 1
    lost_workers: int = 0
    exceptions: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """One threshold, whether it was kept, and the sentence with the numbers."""

    threshold: str
    is_kept: bool
    sentence: str


def judge(
    kinds: Mapping[str, Figures], by_version: Mapping[str, int], limits: Limits
) -> tuple[Finding, ...]:
    """Answer a finding for each threshold.

    Args:
        kinds: The figures of `gateway`, `direct`, `outcomes` and `promotion`.
        by_version: How many requests each version answered.
        limits: What to keep to.
    """
    gateway = kinds.get(GATEWAY, Figures())
    found = [_is_enough(GATEWAY, gateway), _errors(GATEWAY, gateway, limits.error_rate)]
    found += [_errors(kind, kinds[kind], 0.0) for kind in (OUTCOMES, PROMOTION) if kind in kinds]
    if limits.p99_multiple is not None:
        direct = kinds.get(DIRECT, Figures())
        found += [_is_enough(DIRECT, direct), _errors(DIRECT, direct, 0.0)]
        found.append(_latency(gateway, direct, limits.p99_multiple))
    found.append(_versions(by_version, limits.versions))
    lost = f"{limits.lost_workers} workers went away before the end"
    broken = f"{limits.exceptions} exceptions in users"
    found.append(Finding("workers", limits.lost_workers == 0, lost))
    found.append(Finding("users", limits.exceptions == 0, broken))
    return tuple(found)


def is_passed(findings: tuple[Finding, ...]) -> bool:
    """Tell whether all thresholds were kept."""
    return all(finding.is_kept for finding in findings)


def _is_enough(kind: str, figures: Figures) -> Finding:
    sentence = f"{figures.requests:,} {kind} requests, at least {ENOUGH} make a percentile"
    return Finding(f"{kind} requests", figures.requests >= ENOUGH, sentence)


def _errors(kind: str, figures: Figures, most: float) -> Finding:
    rate, whole = figures.error_rate, f"{figures.requests:,} {kind} requests"
    sentence = f"{figures.failures:,} of {whole} failed ({rate:.3%}, at most {most:.3%})"
    return Finding(f"{kind} errors", rate <= most, sentence)


def _latency(gateway: Figures, direct: Figures, most: float) -> Finding:
    if not direct.p99:
        return Finding("p99", is_kept=False, sentence="there is no direct p99 to compare with")
    multiple = gateway.p99 / direct.p99
    figures = f"p99 is {gateway.p99:.1f} ms by the gateway, {direct.p99:.1f} ms past it"
    return Finding("p99", multiple <= most, f"{figures}: {multiple:.2f} times, at most {most:g}")


def _versions(by_version: Mapping[str, int], least: int) -> Finding:
    told = ", ".join(f"version {v}: {n:,}" for v, n in sorted(by_version.items())) or "none"
    sentence = f"answered by {told}; at least {least} must have answered"
    return Finding("versions", sum(1 for n in by_version.values() if n) >= least, sentence)

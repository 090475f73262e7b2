"""What serving processes report of compared requests, and how two reports make a pair."""

from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one version said to one request. Times are microseconds since 1970, UTC.

    Attributes:
        is_shadow: Whether the request was a copy, whose answer nobody got.
        code: The HTTP status code of the answer, 499 when the caller had left.
        rows: How many rows were predicted on; 0 without predictions.
        value: What was predicted for one of them, as JSON; None if that could not be read.
    """

    inference_id: str
    model: str
    version: str
    is_shadow: bool
    at: int
    code: int
    duration_ms: float
    rows: int
    value: str | None


@dataclass(frozen=True, slots=True)
class Side:
    """One version's half of a pair."""

    code: int
    duration_ms: float
    rows: int
    value: str | None


@dataclass(frozen=True, slots=True)
class Pair:
    """What the version that answered and the shadow said to the same request."""

    stable: Side
    shadow: Side


@dataclass(frozen=True, slots=True)
class Unpaired:
    """Reports whose other half has not come.

    Attributes:
        stable: Answers without a report of their copy.
        shadow: Copies without a report of their answer.
        paired: Answers that have found their copy, of the same minutes.
    """

    stable: int = 0
    shadow: int = 0
    paired: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is kept of one version beside another.

    Attributes:
        pairs: A uniform sample of all pairs, or all where they are few.
        total: How many pairs there were.
        first_at: When the first request of a pair was made.
        last_at: When the last one was.
    """

    model: str
    stable: str
    shadow: str
    pairs: tuple[Pair, ...] = ()
    total: int = 0
    first_at: datetime | None = None
    last_at: datetime | None = None
    unpaired: Unpaired = Unpaired()


def place_of(inference_id: str) -> int:
    """Answer a pair's place among all: the first so many places are a uniform sample.

    It depends on the id alone, so that a report that comes twice, late or in another order changes
    nothing. (A bottom-k sample: Cohen and Kaplan, "Summarizing data using bottom-k sketches",
    PODC 2007.)

    Returns:
        A whole number from 0, below 2**63.
    """
    digest = blake2b(inference_id.encode(), digest_size=8, person=b"fl-place").digest()
    return int.from_bytes(digest) >> 1

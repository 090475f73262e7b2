"""The tables.

`exposures` and `outcomes` are what was sent, each row once; everything else is counted from them
and kept in the same transaction. Times are microseconds since 1970 (UTC): the same integer on
every database. The counted tables are kept in the order of their keys (on SQLite: without a rowid).
On PostgreSQL what was sent lies in partitions by time (`adapters.partitions`): the time is part of
the key, and the one writer sees to it that an id is there once.

On PostgreSQL text is compared byte by byte, as on SQLite: faster than by a language's rules, and an
index stays right when the machine's rules change with its C library.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

METADATA = MetaData()


def text(length: int) -> TypeEngine[str]:
    """Answer the type of a short text."""
    bytewise = postgresql.VARCHAR(length, collation="C")
    return String(length).with_variant(bytewise, "postgresql")


ROLLOUTS = Table(
    "rollouts",
    METADATA,
    Column("id", text(64), primary_key=True),
    Column("model", text(63), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("stable", text(64), nullable=False),
    Column("candidate", text(64), nullable=False),
    Column("slower_than", Double, nullable=True),
    Column("document", Text, nullable=False),
    Column("counted_by", Integer, nullable=False, server_default="0"),
    Column("decided_at", BigInteger, nullable=True),
    Column("closed_at", BigInteger, nullable=True),
    Column("last_analysis", Text, nullable=True),
    Column("is_emptied", Integer, nullable=False, server_default="0"),
    Column("due_until", BigInteger, nullable=False, server_default="0"),
    Column("counted_to", text(256), nullable=True),
    Index("ix_rollouts_model", "model"),
)
"""The controller's records; what tells a bad request is copied out of the document.

A rollout is open, then closed (`closed_at`: nothing more is taken), then concluded
(`last_analysis`), then emptied: its rows are gone (`adapters.retention`). `due_until` is the time
as of which windows are counted as over or not (`adapters.details`). While units are counted afresh
`counted_to` is the last one that is; else it is null (`adapters.ledger`).
"""

DECISIONS = Table(
    "decisions",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("id", text(64), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    Index("ix_decisions_at", "rollout", "at"),
)
"""What the controller decided and on which numbers; some hundreds of rows a rollout."""

EXPOSURES = Table(
    "exposures",
    METADATA,
    Column("inference_id", text(64), primary_key=True),
    Column("rollout", text(64), nullable=False),
    Column("step", Integer, nullable=False),
    Column("arm", text(9), nullable=False),
    Column("version", text(64), nullable=True),
    Column("unit", text(256), nullable=True),
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    Column("code", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Index("ix_exposures_unit", "unit", "rollout", "at"),
    Index("ix_exposures_rollout", "rollout"),
    postgresql_partition_by="RANGE (at)",
)

OUTCOMES = Table(
    "outcomes",
    METADATA,
    Column("subject", text(384), primary_key=True),
    Column("outcome", text(64), primary_key=True),
    Column("moment", BigInteger, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),
    Column("observed_at", BigInteger, primary_key=True, autoincrement=False),
    Column("inference_id", text(64), nullable=True),
    Column("model", text(63), nullable=True),
    Column("unit", text(256), nullable=True),
    Index("ix_outcomes_inference", "inference_id"),
    Index("ix_outcomes_unit", "unit", "model"),
    postgresql_partition_by="RANGE (observed_at)",
)
"""`inference_id` is the exposure an outcome belongs to: given, or found for a unit's outcome."""

UNITS = Table(
    "units",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("unit", text(256), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("arm", text(9), primary_key=True),
    sqlite_with_rowid=False,
)
"""Who met what: one row per rollout, unit, step and arm."""

UNIT_OUTCOMES = Table(
    "unit_outcomes",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("unit", text(256), primary_key=True),
    Column("outcome", text(64), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("arm", text(9), primary_key=True),
    Column("n", Integer, nullable=False),
    Column("total", Double, nullable=False),
    sqlite_with_rowid=False,
)
"""A unit's outcomes in a step and arm: their number and their sum."""

DETAILS = Table(
    "details",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("unit", text(256), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("arm", text(9), primary_key=True),
    Column("first_at", BigInteger, nullable=False),
    Column("n", Integer, nullable=False),
    Column("total", Double, nullable=False),
    Column("denominator", Double, nullable=False),
    Column("refused", Integer, nullable=False),
    Column("covariate", Double, nullable=True),
    Index("ix_details_first", "rollout", "first_at"),
    sqlite_with_rowid=False,
)
"""What a unit's single outcomes say in a step and arm (`domain.counting.Detail`), and its covariate.

Only of rollouts whose objective asks for the time or the value of each.
"""

COUNTERS = Table(
    "counters",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("kind", text(16), primary_key=True),
    Column("name", text(256), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("arm", text(9), primary_key=True),
    Column("n", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""What `domain.counting.counts` says of all units of a rollout, and its bad units by kind."""

MOMENTS = Table(
    "moments",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("arm", text(9), primary_key=True),
    Column("other_step", Integer, primary_key=True, autoincrement=False),
    Column("other_arm", text(9), primary_key=True),
    Column("n", BigInteger, nullable=False),
    Column("sums", Text, nullable=False),
    sqlite_with_rowid=False,
)
"""Exact sums over the units measured in one cell or in two (`domain.counting.Sums`)."""

REQUESTS = Table(
    "requests",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("arm", text(9), primary_key=True),
    Column("assigned", Integer, primary_key=True, autoincrement=False),
    Column("requests", BigInteger, nullable=False),
    Column("answered", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("slow", BigInteger, nullable=False),
    Column("fallbacks", BigInteger, nullable=False),
    Column("retried", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""Requests per step and arm. `assigned` is 0 for requests without a unit."""

BAD_UNITS = Table(
    "bad_units",
    METADATA,
    Column("rollout", text(64), primary_key=True),
    Column("kind", text(6), primary_key=True),
    Column("unit", text(256), primary_key=True),
    Column("step", Integer, nullable=False),
    Column("arm", text(9), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("inference_id", text(64), nullable=False),
    sqlite_with_rowid=False,
)
"""Each unit's first bad request, of the kinds `errors` and `slow`: one row, however many follow."""

PREDICTIONS = Table(
    "predictions",
    METADATA,
    Column("model", text(63), primary_key=True),
    Column("inference_id", text(64), primary_key=True),
    Column("version", text(64), primary_key=True),
    Column("is_shadow", Integer, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("is_paired", Integer, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("code", Integer, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("value", Text, nullable=True),
    Index("ix_predictions_received", "received_at"),
    Index("ix_predictions_inference", "inference_id"),
)
"""Predictions of compared requests, for the minutes in which their other half may come."""

COMPARISONS = Table(
    "comparisons",
    METADATA,
    Column("model", text(63), primary_key=True),
    Column("stable", text(64), primary_key=True),
    Column("shadow", text(64), primary_key=True),
    Column("total", BigInteger, nullable=False),
    Column("kept", Integer, nullable=False),
    Column("last_place", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""A shadow beside the version that answers; a pair whose place is behind `last_place` is not kept."""

PAIRS = Table(
    "pairs",
    METADATA,
    Column("model", text(63), primary_key=True),
    Column("stable", text(64), primary_key=True),
    Column("shadow", text(64), primary_key=True),
    Column("place", BigInteger, primary_key=True, autoincrement=False),
    Column("inference_id", text(64), primary_key=True),
    Column("stable_code", Integer, nullable=False),
    Column("stable_duration_ms", Double, nullable=False),
    Column("stable_rows", Integer, nullable=False),
    Column("stable_value", Text, nullable=True),
    Column("shadow_code", Integer, nullable=False),
    Column("shadow_duration_ms", Double, nullable=False),
    Column("shadow_rows", Integer, nullable=False),
    Column("shadow_value", Text, nullable=True),
    sqlite_with_rowid=False,
)
"""A sample of the pairs: of each comparison those with the first places."""

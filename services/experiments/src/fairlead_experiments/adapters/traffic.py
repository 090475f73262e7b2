"""Counts requests, and the units that had a bad one."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
)

from fairlead_experiments.adapters.bulk import add_rows, replace_rows
from fairlead_experiments.adapters.database import among
from fairlead_experiments.adapters.ledger import add_counts
from fairlead_experiments.adapters.schema import BAD_UNITS, COUNTERS, EXPOSURES, REQUESTS, ROLLOUTS
from fairlead_experiments.domain.counting import CountKey, is_bad, judge_request
from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.records import Exposure, Kind, Requests, Rollout

_NO_ANSWER = 0
_CLIENT_LEFT = 499
_SERVER_ERROR = 500

BadKey = tuple[str, str]
"""A kind and a unit."""

BadRequest = tuple[int, str, int, str]
"""A step, an arm, when, and the inference id."""


def add_requests(
    connection: Connection, exposures: Sequence[Exposure], records: Mapping[str, Rollout]
) -> None:
    """Count new requests; those of a rollout without a record are counted when it comes."""
    counted: defaultdict[tuple[Any, ...], Requests] = defaultdict(Requests)
    bad: defaultdict[str, dict[BadKey, BadRequest]] = defaultdict(dict)
    for exposure in exposures:
        if record := records.get(exposure.rollout):
            judged = judge_request(exposure, record)
            is_assigned = int(exposure.unit is not None)
            key = exposure.rollout, exposure.step, exposure.arm, is_assigned
            counted[key] = counted[key].plus(judged)
            _note(bad[exposure.rollout], exposure, judged)
    add_rows(connection, REQUESTS, sorted((*key, *astuple(sum_)) for key, sum_ in counted.items()))
    for rollout, found in bad.items():
        _keep_first(connection, rollout, found)


def _note(bad: dict[BadKey, BadRequest], exposure: Exposure, judged: Requests) -> None:
    if exposure.unit is None:
        return
    request = exposure.step, exposure.arm, exposure.at, exposure.inference_id
    for kind in Kind:
        key = str(kind), exposure.unit
        if is_bad(judged, kind) and (key not in bad or request[2:] < bad[key][2:]):
            bad[key] = request


def _keep_first(connection: Connection, rollout: str, found: dict[BadKey, BadRequest]) -> None:
    """Keep each unit's first bad request, by the time it was made, whenever it arrives."""
    if not found:
        return
    mine = BAD_UNITS.c.rollout == rollout
    kinds = BAD_UNITS.c.kind.in_([str(kind) for kind in Kind])
    units = among(connection, BAD_UNITS.c.unit, sorted({unit for _, unit in found}))
    rows = connection.execute(select(BAD_UNITS).where(mine, kinds, units))
    known: dict[BadKey, BadRequest] = {(row.kind, row.unit): tuple(row[3:]) for row in rows}
    earlier = {
        key: request
        for key, request in found.items()
        if key not in known or request[2:] < known[key][2:]
    }
    counted: Counter[CountKey] = Counter()
    for (kind, unit), (step, arm, _, _) in earlier.items():
        counted[kind, "", step, arm] += 1
        if before := known.get((kind, unit)):
            counted[kind, "", before[0], before[1]] -= 1
    replace_rows(connection, BAD_UNITS, [(rollout, *key, *earlier[key]) for key in sorted(earlier)])
    add_counts(connection, rollout, counted)


# --- afresh ---------------------------------------------------------------------------------

# What `domain.counting.judge_request` says, for all requests of a rollout in one sweep of the
# database. A property test holds the two to each other.

_STAYED = EXPOSURES.c.code != _CLIENT_LEFT
_ANSWERED = EXPOSURES.c.code.not_in([_NO_ANSWER, _CLIENT_LEFT])
_FAILED = or_(EXPOSURES.c.code == _NO_ANSWER, EXPOSURES.c.code >= _SERVER_ERROR)
_RETRIED = and_(_STAYED, EXPOSURES.c.attempts > 1)
_OWN = case((EXPOSURES.c.arm == str(Arm.CANDIDATE), ROLLOUTS.c.candidate), else_=ROLLOUTS.c.stable)
_STOOD_IN = and_(_STAYED, EXPOSURES.c.version != "", EXPOSURES.c.version != _OWN)
_BAD: dict[Kind, ColumnElement[bool]] = {
    Kind.ERRORS: or_(_FAILED, _RETRIED, _STOOD_IN),
    Kind.SLOW: and_(_ANSWERED, EXPOSURES.c.duration_ms > ROLLOUTS.c.slower_than * 1000.0),
}
_RECORDED = EXPOSURES.join(ROLLOUTS, ROLLOUTS.c.id == EXPOSURES.c.rollout)


def count_requests_afresh(connection: Connection, rollout: str) -> None:
    """Count a rollout's requests from the rows: what makes them bad came or changed."""
    for table in (REQUESTS, BAD_UNITS):
        connection.execute(delete(table).where(table.c.rollout == rollout))
    kinds = COUNTERS.c.kind.in_([str(kind) for kind in Kind])
    connection.execute(delete(COUNTERS).where(COUNTERS.c.rollout == rollout, kinds))
    _sweep_requests(connection, rollout)
    for kind in Kind:
        _sweep_bad_units(connection, rollout, kind)
    key = BAD_UNITS.c.rollout, BAD_UNITS.c.kind, literal(""), BAD_UNITS.c.step, BAD_UNITS.c.arm
    counted = select(*key, func.count()).where(BAD_UNITS.c.rollout == rollout)
    names = [column.name for column in COUNTERS.columns]
    by_cell = counted.group_by(
        BAD_UNITS.c.rollout, BAD_UNITS.c.kind, BAD_UNITS.c.step, BAD_UNITS.c.arm
    )
    connection.execute(insert(COUNTERS).from_select(names, by_cell))


def _sweep_requests(connection: Connection, rollout: str) -> None:
    key = {
        "rollout": EXPOSURES.c.rollout,
        "step": EXPOSURES.c.step,
        "arm": EXPOSURES.c.arm,
        "assigned": case(
            (EXPOSURES.c.unit.is_(None), literal_column("0")), else_=literal_column("1")
        ),
    }
    counters: dict[str, ColumnElement[Any]] = {
        "requests": func.count(),
        "answered": _number_of(_ANSWERED),
        "errors": _number_of(_BAD[Kind.ERRORS]),
        "slow": _number_of(_BAD[Kind.SLOW]),
        "fallbacks": _number_of(_STOOD_IN),
        "retried": _number_of(_RETRIED),
    }
    named = [column.label(name) for name, column in {**key, **counters}.items()]
    counted = select(*named).select_from(_RECORDED).where(EXPOSURES.c.rollout == rollout)
    grouped = counted.group_by(*key.values())
    connection.execute(insert(REQUESTS).from_select([*key, *counters], grouped))


def _number_of(what: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((what, 1), else_=0))


def _sweep_bad_units(connection: Connection, rollout: str, kind: Kind) -> None:
    order = EXPOSURES.c.at, EXPOSURES.c.inference_id
    place = func.row_number().over(partition_by=EXPOSURES.c.unit, order_by=order)
    names = ("rollout", "unit", "step", "arm", "at", "inference_id")
    bad = (
        select(*(EXPOSURES.c[name] for name in names), place.label("place"))
        .select_from(_RECORDED)
        .where(EXPOSURES.c.rollout == rollout, EXPOSURES.c.unit.is_not(None), _BAD[kind])
        .subquery()
    )
    first = select(literal(str(kind)), *(bad.c[name] for name in names)).where(bad.c.place == 1)
    connection.execute(insert(BAD_UNITS).from_select(["kind", *names], first))

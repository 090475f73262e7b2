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
    false,
    func,
    insert,
    literal,
    or_,
    select,
)

from fairlead_experiments.adapters.bulk import add_rows, replace_rows
from fairlead_experiments.adapters.database import among
from fairlead_experiments.adapters.ledger import add_counts
from fairlead_experiments.adapters.progress import counted_to, is_counted
from fairlead_experiments.adapters.schema import BAD_UNITS, EXPOSURES, REQUESTS
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
    ends = {rollout: counted_to(connection, rollout) for rollout in records}
    for exposure in exposures:
        end = ends.get(exposure.rollout)
        record = records.get(exposure.rollout)
        if record and (exposure.unit is None or is_counted(exposure.unit, end)):
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

# What `domain.counting.judge_request` says, for many requests of a rollout in a statement. A
# property test holds the two to each other.

_STAYED = EXPOSURES.c.code != _CLIENT_LEFT
_ANSWERED = EXPOSURES.c.code.not_in([_NO_ANSWER, _CLIENT_LEFT])
_FAILED = or_(EXPOSURES.c.code == _NO_ANSWER, EXPOSURES.c.code >= _SERVER_ERROR)
_RETRIED = and_(_STAYED, EXPOSURES.c.attempts > 1)


def count_unassigned(connection: Connection, rollout: Rollout) -> None:
    """Count the requests without a unit, of which none is counted."""
    mine = and_(EXPOSURES.c.rollout == rollout.id, EXPOSURES.c.unit.is_(None))
    _count(connection, rollout, mine, is_assigned=0)


def count_requests(connection: Connection, rollout: Rollout, units: Sequence[str]) -> None:
    """Count the requests of units of which none is counted.

    Args:
        connection: A writing transaction.
        rollout: Whose requests.
        units: All of the rollout's units from the first of them to the last, in their order.
    """
    mine = _requests_of(connection, rollout, units)
    _count(connection, rollout, mine, is_assigned=1)
    for kind, is_bad_ in _bad(rollout).items():
        known = and_(
            BAD_UNITS.c.rollout == rollout.id,
            BAD_UNITS.c.kind == str(kind),
            BAD_UNITS.c.unit.between(units[0], units[-1]),
        )
        connection.execute(delete(BAD_UNITS).where(known))
        _find_first(connection, and_(mine, is_bad_), kind)
        key = BAD_UNITS.c.step, BAD_UNITS.c.arm
        found = select(*key, func.count()).where(known).group_by(*key)
        counted = {(str(kind), "", *row[:2]): row[2] for row in connection.execute(found)}
        add_counts(connection, rollout.id, counted)


def _requests_of(
    connection: Connection, rollout: Rollout, units: Sequence[str]
) -> ColumnElement[bool]:
    """The requests of units, by the index of these.

    The rollout is asked for in a way that no index is for: a database without figures would go
    through all of the rollout for each few units.
    """
    of_rollout = func.coalesce(EXPOSURES.c.rollout, "") == rollout.id
    return and_(of_rollout, among(connection, EXPOSURES.c.unit, units))


def _stood_in(rollout: Rollout) -> ColumnElement[bool]:
    versions = {str(Arm.CANDIDATE): rollout.candidate, str(Arm.STABLE): rollout.stable}
    own = case(versions, value=EXPOSURES.c.arm)
    return and_(_STAYED, EXPOSURES.c.version != "", EXPOSURES.c.version != own)


def _bad(rollout: Rollout) -> dict[Kind, ColumnElement[bool]]:
    bound = rollout.latency.slower_than if rollout.latency else None
    is_slow = false() if bound is None else EXPOSURES.c.duration_ms > bound * 1000.0
    return {
        Kind.ERRORS: or_(_FAILED, _RETRIED, _stood_in(rollout)),
        Kind.SLOW: and_(_ANSWERED, is_slow),
    }


def _count(
    connection: Connection, rollout: Rollout, mine: ColumnElement[bool], *, is_assigned: int
) -> None:
    bad = _bad(rollout)
    numbers = (_ANSWERED, bad[Kind.ERRORS], bad[Kind.SLOW], _stood_in(rollout), _RETRIED)
    key = EXPOSURES.c.step, EXPOSURES.c.arm
    counted = select(*key, func.count(), *map(_number_of, numbers)).where(mine).group_by(*key)
    rows = connection.execute(counted)
    add_rows(connection, REQUESTS, sorted((rollout.id, *r[:2], is_assigned, *r[2:]) for r in rows))


def _number_of(what: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((what, 1), else_=0))


def _find_first(connection: Connection, mine: ColumnElement[bool], kind: Kind) -> None:
    """Keep the first bad request of each unit."""
    order = EXPOSURES.c.at, EXPOSURES.c.inference_id
    place = func.row_number().over(partition_by=EXPOSURES.c.unit, order_by=order)
    names = ("rollout", "unit", "step", "arm", "at", "inference_id")
    rows = select(*(EXPOSURES.c[name] for name in names), place.label("place"))
    bad = rows.where(mine).subquery()
    first = select(literal(str(kind)), *(bad.c[name] for name in names)).where(bad.c.place == 1)
    connection.execute(insert(BAD_UNITS).from_select(["kind", *names], first))

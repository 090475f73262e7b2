"""What the units of a rollout say about its objective, summed by the database in one sweep.

The oracle of the counts that follow (`adapters.ledger`): the rules, told as queries over the rows.

One query, the *ledger*, answers a row for each unit, step and arm that is no mixed unit's:

    unit, step, arm, due, found, y, m, x

`due` is 1 when the unit's window in the step is over (without a window: when it has an outcome),
`found` is 1 when it has an outcome, `y` and `m` are its value and denominator (null unless it is
measured), `x` its covariate (null without one). All numbers are sums over ledgers; a store that
keeps those sums up to date answers the same.

Values are summed as distances from their common mean, so that a large offset does not cancel.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations_with_replacement, product
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    Select,
    and_,
    case,
    cast,
    exists,
    func,
    literal_column,
    null,
    select,
)

from fairlead_experiments.adapters.schema import EXPOSURES, OUTCOMES, UNIT_OUTCOMES, UNITS
from fairlead_experiments.domain.effect import Arm
from fairlead_experiments.domain.linear import (
    NOTHING,
    Matrix,
    Moments,
    Shared,
    StepMoments,
    Vector,
    entered_steps,
)
from fairlead_experiments.domain.records import (
    Missing,
    Objective,
    ObjectiveKind,
    Rollout,
    Standing,
)
from fairlead_experiments.domain.times import microseconds

_SMALLEST = 1e-150
"""Smaller distances are none: PostgreSQL refuses a product that a double cannot hold."""

_PLACES = {"y": 0, "m": 1, "x": 2}

_Cell = tuple[int, str]


def read(
    connection: Connection, rollout: Rollout, at: datetime, *, has_mixed: bool
) -> dict[str, Any]:
    """Answer the parts of `Aggregates` that are about the objective, by name."""
    objective = rollout.objective
    if objective is None:
        return {}
    ledger = _Ledger(rollout, objective, microseconds(at), has_mixed)
    centre = _centre(connection, ledger)
    cells, standing = _cells(connection, ledger, centre)
    moments = _steps(cells, centre)
    entered = entered_steps(moments, is_ratio=objective.is_ratio)
    return {
        "moments": moments,
        "shared": _shared(connection, ledger, centre, cells) if len(moments) > 1 else (),
        "standing": standing,
        "standing_distinct": _distinct(connection, ledger, entered, standing),
        "refused": _refused(connection, rollout.id, objective),
    }


def crossed(rollout: str) -> Select[Any]:
    """Answer (unit, since) of mixed units: the first step in which one met stable too late.

    Too late is in the step in which it met the candidate first, or after it.
    """
    met = (
        select(UNITS.c.unit, func.min(UNITS.c.step).label("step"))
        .where(UNITS.c.rollout == rollout, UNITS.c.arm == str(Arm.CANDIDATE))
        .group_by(UNITS.c.unit)
        .subquery("met")
    )
    back = UNITS.alias("back")
    return (
        select(back.c.unit, func.min(back.c.step).label("since"))
        .join(met, met.c.unit == back.c.unit)
        .where(
            back.c.rollout == rollout,
            back.c.arm == str(Arm.STABLE),
            back.c.step >= met.c.step,
        )
        .group_by(back.c.unit)
    )


# --- the ledger -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ledger:
    """Whose values are asked for, and as of when (microseconds since 1970)."""

    rollout: Rollout
    objective: Objective
    at: int
    has_mixed: bool

    @property
    def components(self) -> tuple[str, ...]:
        """The columns of a unit's vector that the objective has."""
        found = ["y"]
        if self.objective.is_ratio:
            found.append("m")
        if self.objective.covariate is not None:
            found.append("x")
        return tuple(found)

    def query(self) -> CTE:
        """Answer the ledger."""
        met, sums = self._met().subquery("met_step"), self._sums().subquery("sums")
        found = case((sums.c.unit.is_(None), 0), else_=1)
        due = found if self.objective.window is None else met.c.is_due
        value, denominator = self._values(sums)
        enters = and_(due == 1, value.is_not(None))
        rows = select(
            met.c.unit,
            met.c.step,
            met.c.arm,
            due.label("due"),
            found.label("found"),
            case((enters, self._capped(value)), else_=null()).label("y"),
            case((enters, denominator), else_=null()).label("m"),
            case((and_(enters, self._is_beyond(value)), 1), else_=0).label("capped"),
        ).join_from(met, sums, _same_cell(met, sums), isouter=True)
        if self.has_mixed:
            gone = crossed(self.rollout.id).subquery("crossed")
            rows = rows.where(
                ~exists().where(gone.c.unit == met.c.unit, gone.c.since <= met.c.step)
            )
        return self._with_covariate(rows).cte("ledger")

    def _met(self) -> Select[Any]:
        """Units by step and arm; with a window, whether it is over."""
        if self.objective.window is None:
            key = UNITS.c.unit, UNITS.c.step, UNITS.c.arm
            return select(*key).where(UNITS.c.rollout == self.rollout.id)
        key = EXPOSURES.c.unit, EXPOSURES.c.step, EXPOSURES.c.arm
        is_due = case((func.min(EXPOSURES.c.at) <= self.at - self._window, 1), else_=0)
        return (
            select(*key, is_due.label("is_due"))
            .where(EXPOSURES.c.rollout == self.rollout.id, EXPOSURES.c.unit.is_not(None))
            .group_by(*key)
        )

    @property
    def _window(self) -> int:
        """The window in microseconds."""
        return round((self.objective.window or 0.0) * 1e6)

    def _sums(self) -> Select[Any]:
        """Number and sum of outcomes, and sum of denominators, by unit, step and arm."""
        needs_rows = (
            self.objective.window is not None or self.objective.kind is ObjectiveKind.BINARY
        )
        rows = (self._outcome_rows() if needs_rows else self._counted_rows()).subquery("rows")
        is_own = rows.c.outcome == self.objective.outcome
        key = rows.c.unit, rows.c.step, rows.c.arm
        zero = literal_column("0.0", Double)
        return select(
            *key,
            func.sum(case((is_own, rows.c.n), else_=0)).label("n"),
            func.sum(case((is_own, rows.c.total), else_=zero)).label("total"),
            func.sum(case((is_own, zero), else_=rows.c.total)).label("denominator"),
        ).group_by(*key)

    def _counted_rows(self) -> Select[Any]:
        names = [name for name in (self.objective.outcome, self.objective.denominator) if name]
        columns = [UNIT_OUTCOMES.c[c] for c in ("unit", "step", "arm", "outcome", "n", "total")]
        return select(*columns).where(
            UNIT_OUTCOMES.c.rollout == self.rollout.id, UNIT_OUTCOMES.c.outcome.in_(names)
        )

    def _outcome_rows(self) -> Select[Any]:
        """Every outcome that counts: within its unit's window, and 0 or 1 where it must be."""
        names = [name for name in (self.objective.outcome, self.objective.denominator) if name]
        key = EXPOSURES.c.unit, EXPOSURES.c.step, EXPOSURES.c.arm
        rows = (
            select(
                *key,
                OUTCOMES.c.outcome,
                literal_column("1").label("n"),
                OUTCOMES.c.value.label("total"),
            )
            .join(OUTCOMES, OUTCOMES.c.inference_id == EXPOSURES.c.inference_id)
            .where(
                EXPOSURES.c.rollout == self.rollout.id,
                EXPOSURES.c.unit.is_not(None),
                OUTCOMES.c.outcome.in_(names),
            )
        )
        if self.objective.kind is ObjectiveKind.BINARY:
            rows = rows.where(OUTCOMES.c.value.in_([0.0, 1.0]))
        if self.objective.window is None:
            return rows
        first = (
            select(*key, func.min(EXPOSURES.c.at).label("at"))
            .where(EXPOSURES.c.rollout == self.rollout.id, EXPOSURES.c.unit.is_not(None))
            .group_by(*key)
            .subquery("first_request")
        )
        return rows.join(first, _same_cell(first, EXPOSURES)).where(
            OUTCOMES.c.observed_at <= first.c.at + cast(self._window, BigInteger)
        )

    def _values(self, sums: Any) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
        """A unit's value and denominator, before any cap."""
        if self.objective.is_ratio:
            return sums.c.total, sums.c.denominator
        mean = _distance(sums.c.total) / cast(sums.c.n, Double)
        if self.objective.missing is Missing.ZERO:
            return func.coalesce(mean, 0.0), cast(null(), Double)
        return mean, cast(null(), Double)

    def _capped(self, value: ColumnElement[Any]) -> ColumnElement[Any]:
        cap = self.objective.cap
        if cap is None:
            return value
        return case((value > cap, cap), (value < -cap, -cap), else_=value)

    def _is_beyond(self, value: ColumnElement[Any]) -> ColumnElement[bool]:
        cap = self.objective.cap
        return func.abs(value) > cap if cap is not None else literal_column("1") == 0

    def _with_covariate(self, rows: Select[Any]) -> Select[Any]:
        if self.objective.covariate is None:
            return rows.add_columns(cast(null(), Double).label("x"))
        met = rows.subquery("rows_met")
        before = self._covariates().subquery("before")
        return select(*met.c, before.c.x).join_from(
            met, before, before.c.unit == met.c.unit, isouter=True
        )

    def _covariates(self) -> Select[Any]:
        """Each unit's mean covariate before its first request in the rollout."""
        first = (
            select(EXPOSURES.c.unit, func.min(EXPOSURES.c.at).label("at"))
            .where(EXPOSURES.c.rollout == self.rollout.id, EXPOSURES.c.unit.is_not(None))
            .group_by(EXPOSURES.c.unit)
            .subquery("first_ever")
        )
        mean = _distance(func.sum(OUTCOMES.c.value)) / cast(func.count(), Double)
        is_own = self.objective.covariate == self.objective.outcome
        return (
            select(first.c.unit, (self._capped(mean) if is_own else mean).label("x"))
            .join(OUTCOMES, OUTCOMES.c.unit == first.c.unit)
            .where(
                OUTCOMES.c.model == self.rollout.model,
                OUTCOMES.c.outcome == self.objective.covariate,
                OUTCOMES.c.observed_at < first.c.at,
            )
            .group_by(first.c.unit)
        )


def _same_cell(a: Any, b: Any) -> ColumnElement[bool]:
    return and_(a.c.unit == b.c.unit, a.c.step == b.c.step, a.c.arm == b.c.arm)


def _distance(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return case((func.abs(value) < _SMALLEST, 0.0), else_=value)


# --- sums -----------------------------------------------------------------------------------


def _centre(connection: Connection, ledger: _Ledger) -> dict[str, float]:
    """The mean of each component over all measured units."""
    rows = ledger.query()
    means = [func.avg(rows.c[name]).label(name) for name in ledger.components]
    found = connection.execute(select(*means).where(rows.c.y.is_not(None))).one()
    return {name: getattr(found, name) or 0.0 for name in ledger.components}


def _distances(rows: Any, centre: Mapping[str, float]) -> dict[str, ColumnElement[Any]]:
    """Each component's distance from its mean; a unit without a covariate is at the mean."""
    return {
        name: func.coalesce(_distance(rows.c[name] - mean), 0.0) for name, mean in centre.items()
    }


def _cells(
    connection: Connection, ledger: _Ledger, centre: Mapping[str, float]
) -> tuple[dict[_Cell, Moments], dict[_Cell, Standing]]:
    """Moments about the cell's own mean (measured from the centre), and how the units stand."""
    rows = ledger.query()
    is_in = rows.c.y.is_not(None)
    at = _distances(rows, centre)
    pairs = list(combinations_with_replacement(centre, 2))
    zero = literal_column("0.0", Double)
    key = rows.c.step, rows.c.arm
    summed = select(
        *key,
        func.count(rows.c.y).label("n"),
        *(func.sum(case((is_in, at[a]), else_=zero)).label(a) for a in centre),
        *(func.sum(case((is_in, at[a] * at[b]), else_=zero)).label(a + b) for a, b in pairs),
        _number_of(rows.c.due == 0).label("waiting"),
        _number_of(and_(rows.c.due == 1, rows.c.found == 0)).label("missing"),
        func.sum(rows.c.capped).label("capped"),
        _number_of(and_(is_in, rows.c.x.is_not(None))).label("covered"),
    ).group_by(*key)
    cells: dict[_Cell, Moments] = {}
    standing: dict[_Cell, Standing] = {}
    for row in connection.execute(summed):
        cells[row.step, row.arm] = _moments(row, centre)
        standing[row.step, row.arm] = Standing(
            row.n, row.waiting, row.missing, row.capped, row.covered
        )
    return cells, standing


def _moments(row: Any, components: Iterable[str]) -> Moments:
    if not row.n:
        return Moments()
    names = list(components)
    sums = {name: getattr(row, name) for name in names}
    mean = _vector({name: total / row.n for name, total in sums.items()})
    found = [[0.0] * 3 for _ in range(3)]
    for a, b in combinations_with_replacement(names, 2):
        comoment = getattr(row, a + b) - sums[a] * sums[b] / row.n
        found[_PLACES[a]][_PLACES[b]] = max(0.0, comoment) if a == b else comoment
        found[_PLACES[b]][_PLACES[a]] = found[_PLACES[a]][_PLACES[b]]
    return Moments(row.n, mean, _matrix(found))


def _shared(
    connection: Connection,
    ledger: _Ledger,
    centre: Mapping[str, float],
    cells: Mapping[_Cell, Moments],
) -> tuple[Shared, ...]:
    """Products across steps, by pairing each unit's steps in the database."""
    rows = ledger.query()
    one, other = rows.alias("one"), rows.alias("other")
    a, b = _distances(one, centre), _distances(other, centre)
    key = one.c.step, one.c.arm, other.c.step, other.c.arm
    paired = (
        select(
            one.c.step,
            one.c.arm,
            other.c.step.label("other_step"),
            other.c.arm.label("other_arm"),
            func.count().label("n"),
            *(func.sum(a[i]).label(f"first_{i}") for i in centre),
            *(func.sum(b[i]).label(f"second_{i}") for i in centre),
            *(func.sum(a[i] * b[j]).label(i + j) for i, j in product(centre, repeat=2)),
        )
        .where(
            one.c.unit == other.c.unit,
            one.c.step < other.c.step,
            one.c.y.is_not(None),
            other.c.y.is_not(None),
        )
        .group_by(*key)
        .order_by(*key)
    )
    return tuple(_pair(row, centre, cells) for row in connection.execute(paired))


def _pair(row: Any, components: Iterable[str], cells: Mapping[_Cell, Moments]) -> Shared:
    """Sums of (a - mean a)(b - mean b) over the shared units, about the whole cells' means."""
    first = cells[row.step, row.arm].mean
    second = cells[row.other_step, row.other_arm].mean
    found = [[0.0] * 3 for _ in range(3)]
    for i, j in product(components, repeat=2):
        a, b = first[_PLACES[i]], second[_PLACES[j]]
        left, right = getattr(row, f"first_{i}"), getattr(row, f"second_{j}")
        found[_PLACES[i]][_PLACES[j]] = float(
            getattr(row, i + j) - b * left - a * right + row.n * a * b
        )
    return Shared(row.step, Arm(row.arm), row.other_step, Arm(row.other_arm), _matrix(found))


def _steps(cells: Mapping[_Cell, Moments], centre: Mapping[str, float]) -> tuple[StepMoments, ...]:
    """The steps with measured units; means without the centre, but for the covariate's."""
    offset = _vector({name: mean for name, mean in centre.items() if name != "x"})

    def cell(step: int, arm: Arm) -> Moments:
        found = cells.get((step, arm), Moments())
        if not found.n:
            return found
        y, m, x = (a + b for a, b in zip(found.mean, offset, strict=True))
        return Moments(found.n, (y, m, x), found.comoments)

    return tuple(
        StepMoments(step, cell(step, Arm.STABLE), cell(step, Arm.CANDIDATE))
        for step in sorted({step for (step, _), found in cells.items() if found.n})
    )


def _distinct(
    connection: Connection,
    ledger: _Ledger,
    entered: frozenset[int],
    standing: Mapping[_Cell, Standing],
) -> dict[str, Standing]:
    """How each arm's units stand over all steps."""
    rows = ledger.query()
    is_in = and_(rows.c.y.is_not(None), rows.c.step.in_(sorted(entered)))
    units = (
        select(
            rows.c.arm,
            func.max(case((is_in, 1), else_=0)).label("measured"),
            func.max(case((and_(is_in, rows.c.x.is_not(None)), 1), else_=0)).label("covered"),
            func.max(rows.c.found).label("found"),
            func.min(rows.c.due).label("due"),
        )
        .group_by(rows.c.unit, rows.c.arm)
        .subquery("by_unit")
    )
    counted = select(
        units.c.arm,
        func.sum(units.c.measured).label("measured"),
        _number_of(and_(units.c.found == 0, units.c.due == 0)).label("waiting"),
        _number_of(and_(units.c.found == 0, units.c.due == 1)).label("missing"),
        func.sum(units.c.covered).label("covered"),
    ).group_by(units.c.arm)
    return {
        row.arm: Standing(
            row.measured,
            row.waiting,
            row.missing,
            sum(part.capped for (_, arm), part in standing.items() if arm == row.arm),
            row.covered,
        )
        for row in connection.execute(counted)
    }


def _refused(connection: Connection, rollout: str, objective: Objective) -> dict[str, int]:
    """Outcomes of a binary objective that are neither 0 nor 1, per arm."""
    if objective.kind is not ObjectiveKind.BINARY:
        return {}
    counted = (
        select(EXPOSURES.c.arm, func.count())
        .join(OUTCOMES, OUTCOMES.c.inference_id == EXPOSURES.c.inference_id)
        .where(
            EXPOSURES.c.rollout == rollout,
            EXPOSURES.c.unit.is_not(None),
            OUTCOMES.c.outcome == objective.outcome,
            OUTCOMES.c.value.not_in([0.0, 1.0]),
        )
        .group_by(EXPOSURES.c.arm)
    )
    return {row[0]: row[1] for row in connection.execute(counted)}


def _number_of(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _vector(parts: Mapping[str, float]) -> Vector:
    found = list(NOTHING)
    for name, value in parts.items():
        found[_PLACES[name]] = float(value)
    return found[0], found[1], found[2]


def _matrix(rows: list[list[float]]) -> Matrix:
    a, b, c = ((float(row[0]), float(row[1]), float(row[2])) for row in rows)
    return a, b, c

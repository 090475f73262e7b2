"""Keeps predictions until both halves of a pair are there, and a bounded sample of the pairs."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from fairlead_experiments.adapters.database import among, insert_new
from fairlead_experiments.adapters.schema import COMPARISONS, PAIRS, PREDICTIONS
from fairlead_experiments.domain.predictions import (
    Pair,
    Prediction,
    Seen,
    Side,
    Unpaired,
    place_of,
)
from fairlead_experiments.domain.times import moment

KEPT = 10_000
"""How many pairs of a comparison are kept: a share of 5 % is known to a percentage point by then."""

WAITING = timedelta(minutes=5)
"""How long the first half of a pair waits for the second."""

_LATE = timedelta(seconds=30)
_SLACK = KEPT // 10
_EVERY_PLACE = 2**63 - 1
_CHUNK = 5_000
_MICROSECOND = timedelta(microseconds=1)
_LISTED = 5

Versions = tuple[str, str, str]
"""A model, the version that answered and its shadow."""


@dataclass(frozen=True, slots=True)
class _Match:
    answer: Prediction
    copy: Prediction

    @property
    def versions(self) -> Versions:
        return self.answer.model, self.answer.version, self.copy.version


@dataclass(frozen=True, slots=True)
class _Tally:
    """A row of `comparisons`, without its key."""

    total: int
    kept: int
    last_place: int
    first_at: int
    last_at: int
    received_at: int


def add(connection: Connection, predictions: Sequence[Prediction], received_at: int) -> int:
    """Keep what is new, pair it, and let go what has waited for too long for its other half.

    Args:
        connection: In a transaction with no other writer beside it.
        predictions: What came.
        received_at: When, in microseconds since 1970.

    Returns:
        How many were new.
    """
    _forget(connection, received_at)
    first = {_key(p): p for p in reversed(predictions)}
    known = {_key(p): p for p in _known(connection, {p.inference_id for p in first.values()})}
    new = {key: p for key, p in first.items() if key not in known}
    if new:
        rows = [_row(p, received_at) for p in new.values()]
        connection.execute(insert(PREDICTIONS), rows)
        _pair(connection, [*_matches(known, new)], received_at)
    return len(new)


def read(
    connection: Connection, model: str, stable: str | None, shadow: str | None, now: int
) -> list[Seen]:
    """Answer what is kept of a model's comparisons, the latest first, five at most.

    Args:
        connection: In a transaction.
        model: The served model.
        stable: The version that answered; None for any.
        shadow: The version that got the copies; None for any.
        now: The time, in microseconds since 1970.
    """
    found = select(COMPARISONS).where(COMPARISONS.c.model == model)
    if stable is not None:
        found = found.where(COMPARISONS.c.stable == stable)
    if shadow is not None:
        found = found.where(COMPARISONS.c.shadow == shadow)
    latest = found.order_by(COMPARISONS.c.received_at.desc(), COMPARISONS.c.shadow.desc())
    return [
        Seen(
            model=model,
            stable=row.stable,
            shadow=row.shadow,
            pairs=_sample(connection, (model, row.stable, row.shadow)),
            total=row.total,
            first_at=moment(row.first_at),
            last_at=moment(row.last_at),
            unpaired=_unpaired(connection, (model, row.stable, row.shadow), now),
        )
        for row in connection.execute(latest.limit(_LISTED)).all()
    ]


# --- taking ---------------------------------------------------------------------------------


def _forget(connection: Connection, now: int) -> None:
    gone = PREDICTIONS.c.received_at < now - WAITING // _MICROSECOND
    connection.execute(delete(PREDICTIONS).where(gone))


def remove_comparisons(connection: Connection, before: int) -> int:
    """Remove the comparisons whose last pair came before a time; answer how many."""
    old = connection.execute(select(COMPARISONS).where(COMPARISONS.c.received_at < before)).all()
    for row in old:
        versions = row.model, row.stable, row.shadow
        for table in (PAIRS, COMPARISONS):
            connection.execute(delete(table).where(*_are(table, versions)))
    return len(old)


def _key(prediction: Prediction) -> tuple[str, str, str]:
    return prediction.model, prediction.inference_id, prediction.version


def _known(connection: Connection, inference_ids: set[str]) -> Iterator[Prediction]:
    ids = sorted(inference_ids)
    for start in range(0, len(ids), _CHUNK):
        wanted = among(connection, PREDICTIONS.c.inference_id, ids[start : start + _CHUNK])
        for row in connection.execute(select(PREDICTIONS).where(wanted)):
            yield Prediction(
                inference_id=row.inference_id,
                model=row.model,
                version=row.version,
                is_shadow=bool(row.is_shadow),
                at=row.at,
                code=row.code,
                duration_ms=row.duration_ms,
                rows=row.rows,
                value=row.value,
            )


def _row(prediction: Prediction, received_at: int) -> dict[str, object]:
    return {
        "model": prediction.model,
        "inference_id": prediction.inference_id,
        "version": prediction.version,
        "is_shadow": int(prediction.is_shadow),
        "received_at": received_at,
        "is_paired": 0,
        "at": prediction.at,
        "code": prediction.code,
        "duration_ms": prediction.duration_ms,
        "rows": prediction.rows,
        "value": prediction.value,
    }


def _matches(
    known: dict[tuple[str, str, str], Prediction], new: dict[tuple[str, str, str], Prediction]
) -> Iterator[_Match]:
    """Answer each copy with each answer to the same request, if one of the two is new."""
    requests: defaultdict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for prediction in (*known.values(), *new.values()):
        requests[prediction.model, prediction.inference_id].append(prediction)
    for halves in requests.values():
        for answer in (p for p in halves if not p.is_shadow):
            for copy in (p for p in halves if p.is_shadow):
                if _key(answer) in new or _key(copy) in new:
                    yield _Match(answer, copy)


def _pair(connection: Connection, matches: Sequence[_Match], received_at: int) -> None:
    by_versions: defaultdict[Versions, list[_Match]] = defaultdict(list)
    for match in matches:
        by_versions[match.versions].append(match)
    for versions, found in sorted(by_versions.items()):
        _keep(connection, versions, found, received_at)
        _note_paired(connection, found)


def _note_paired(connection: Connection, matches: Sequence[_Match]) -> None:
    ids = sorted({match.answer.inference_id for match in matches})
    versions = {match.versions for match in matches}
    for start in range(0, len(ids), _CHUNK):
        for model, stable, shadow in versions:
            connection.execute(
                update(PREDICTIONS)
                .where(
                    PREDICTIONS.c.model == model,
                    among(connection, PREDICTIONS.c.inference_id, ids[start : start + _CHUNK]),
                    PREDICTIONS.c.version.in_([stable, shadow]),
                )
                .values(is_paired=1)
            )


def _keep(
    connection: Connection, versions: Versions, matches: Sequence[_Match], received_at: int
) -> None:
    row = connection.execute(select(COMPARISONS).where(*_are(COMPARISONS, versions))).one_or_none()
    times = [match.answer.at for match in matches]
    before = (
        _Tally(row.total, row.kept, row.last_place, row.first_at, row.last_at, row.received_at)
        if row
        else _Tally(0, 0, _EVERY_PLACE, min(times), max(times), received_at)
    )
    rows = [_pair_row(match) for match in matches]
    near = [pair for pair in rows if pair["place"] <= before.last_place]
    if near:
        connection.execute(insert_new(connection, PAIRS), near)
    after = _Tally(
        total=before.total + len(matches),
        kept=before.kept + len(near),
        last_place=before.last_place,
        first_at=min(before.first_at, *times),
        last_at=max(before.last_at, *times),
        received_at=received_at,
    )
    _write(connection, versions, _trimmed(connection, versions, after), is_new=row is None)


def _pair_row(match: _Match) -> dict[str, Any]:
    model, stable, shadow = match.versions
    return {
        "model": model,
        "stable": stable,
        "shadow": shadow,
        "place": place_of(match.answer.inference_id),
        "inference_id": match.answer.inference_id,
        **_side_columns("stable", match.answer),
        **_side_columns("shadow", match.copy),
    }


def _side_columns(side: str, prediction: Prediction) -> dict[str, object]:
    return {
        f"{side}_code": prediction.code,
        f"{side}_duration_ms": prediction.duration_ms,
        f"{side}_rows": prediction.rows,
        f"{side}_value": prediction.value,
    }


def _trimmed(connection: Connection, versions: Versions, tally: _Tally) -> _Tally:
    """Let go the pairs behind the last place once there are so many that it pays."""
    if tally.kept <= KEPT + _SLACK:
        return tally
    same = _are(PAIRS, versions)
    ordered = select(PAIRS.c.place).where(*same).order_by(PAIRS.c.place)
    last = connection.scalar(ordered.offset(KEPT - 1).limit(1))
    if last is not None:
        connection.execute(delete(PAIRS).where(*same, PAIRS.c.place > last))
    kept = connection.scalar(select(func.count()).select_from(PAIRS).where(*same)) or 0
    return replace(tally, kept=kept, last_place=last if last is not None else _EVERY_PLACE)


def _write(connection: Connection, versions: Versions, tally: _Tally, *, is_new: bool) -> None:
    values = {name: getattr(tally, name) for name in _Tally.__slots__}
    if is_new:
        names = dict(zip(("model", "stable", "shadow"), versions, strict=True))
        connection.execute(insert(COMPARISONS).values(**names, **values))
    else:
        same = _are(COMPARISONS, versions)
        connection.execute(update(COMPARISONS).where(*same).values(**values))


def _are(table: Any, versions: Versions) -> tuple[Any, ...]:
    model, stable, shadow = versions
    return table.c.model == model, table.c.stable == stable, table.c.shadow == shadow


# --- reading --------------------------------------------------------------------------------


def _sample(connection: Connection, versions: Versions) -> tuple[Pair, ...]:
    found = select(PAIRS).where(*_are(PAIRS, versions)).order_by(PAIRS.c.place).limit(KEPT)
    return tuple(
        Pair(
            Side(row.stable_code, row.stable_duration_ms, row.stable_rows, row.stable_value),
            Side(row.shadow_code, row.shadow_duration_ms, row.shadow_rows, row.shadow_value),
        )
        for row in connection.execute(found)
    )


def _unpaired(connection: Connection, versions: Versions, now: int) -> Unpaired:
    """Count the reports old enough to have found their other half, and not yet let go."""
    model, stable, shadow = versions
    key = PREDICTIONS.c.is_shadow, PREDICTIONS.c.version, PREDICTIONS.c.is_paired
    counted = (
        select(*key, func.count())
        .where(
            PREDICTIONS.c.model == model,
            PREDICTIONS.c.received_at <= now - _LATE // _MICROSECOND,
            PREDICTIONS.c.received_at >= now - WAITING // _MICROSECOND,
        )
        .group_by(*key)
    )
    found = {tuple(row[:3]): row[3] for row in connection.execute(counted)}
    return Unpaired(
        stable=found.get((0, stable, 0), 0),
        shadow=found.get((1, shadow, 0), 0),
        paired=found.get((0, stable, 1), 0),
    )

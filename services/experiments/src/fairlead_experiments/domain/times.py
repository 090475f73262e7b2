"""Times as the database keeps them: whole microseconds since 1970."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Answer the microseconds since 1970 of a time with a zone."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """Answer the time, in UTC, of microseconds since 1970."""
    return _EPOCH + microseconds * _MICROSECOND

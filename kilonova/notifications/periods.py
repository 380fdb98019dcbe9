"""Periods of usage: hours, days, months or years, which may begin later than the calendar's.

`month@15` begins on the 15th; the number is a minute of the hour, an hour of the day, a day of the month or a month of
the year. Everything is UTC.
"""

from __future__ import annotations

import calendar
import datetime

PERIOD = (
    r"^(hour(@[0-5]?[0-9])?|day(@([01]?[0-9]|2[0-3]))?|month(@(0?[1-9]|[12][0-9]|3[01]))?"
    r"|year(@(0?[1-9]|1[0-2]))?)$"
)
"""What names a period."""


def last_completed(now: float, period: str) -> tuple[float, float]:
    """Beginning and end, in seconds since the epoch, of the last period that was complete then.

    Args:
        period: see PERIOD. A day that a month does not have is its last one.
    """
    unit, _, offset = period.partition("@")
    at = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(second=0, microsecond=0)
    end = _begun(at, unit, int(offset) if offset else None)
    begin = _begun(end - datetime.timedelta(seconds=1), unit, int(offset) if offset else None)
    return begin.timestamp(), end.timestamp()


def current(now: float, period: str) -> tuple[float, float]:
    """Beginning and end of what the current period has seen so far."""
    return last_completed(now, period)[1], now


def _begun(at: datetime.datetime, unit: str, offset: int | None) -> datetime.datetime:
    """When the period began to which a moment belongs."""
    if unit == "hour":
        begin = at.replace(minute=offset or 0, second=0)
        return begin if begin <= at else begin - datetime.timedelta(hours=1)
    if unit == "day":
        begin = at.replace(hour=offset or 0, minute=0, second=0)
        return begin if begin <= at else begin - datetime.timedelta(days=1)
    midnight = at.replace(hour=0, minute=0, second=0)
    if unit == "year":
        begin = midnight.replace(month=offset or 1, day=1)
        return begin if begin <= at else begin.replace(year=begin.year - 1)
    begin = _day_of_month(midnight, offset or 1)
    if begin <= at:
        return begin
    return _day_of_month(midnight.replace(day=1) - datetime.timedelta(days=1), offset or 1)


def _day_of_month(at: datetime.datetime, day: int) -> datetime.datetime:
    return at.replace(day=min(day, calendar.monthrange(at.year, at.month)[1]))

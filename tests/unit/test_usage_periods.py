"""Periods of usage."""

import re
from datetime import UTC, datetime

import msgspec
import pytest

from kilonova.notifications.options import NotificationOptions
from kilonova.notifications.periods import PERIOD, current, last_completed


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(("period", "now", "begin", "end"), [
    ("hour", "2023-11-14 22:13:20", "2023-11-14 21:00:00", "2023-11-14 22:00:00"),
    ("hour@30", "2023-11-14 22:13:20", "2023-11-14 20:30:00", "2023-11-14 21:30:00"),
    ("hour@10", "2023-11-14 22:13:20", "2023-11-14 21:10:00", "2023-11-14 22:10:00"),
    ("day", "2023-03-01 00:00:00", "2023-02-28 00:00:00", "2023-03-01 00:00:00"),
    ("day@23", "2023-11-14 22:13:20", "2023-11-12 23:00:00", "2023-11-13 23:00:00"),
    ("month", "2023-01-31 10:00:00", "2022-12-01 00:00:00", "2023-01-01 00:00:00"),
    ("month@15", "2023-03-14 23:59:59", "2023-01-15 00:00:00", "2023-02-15 00:00:00"),
    ("month@31", "2023-03-05 00:00:00", "2023-01-31 00:00:00", "2023-02-28 00:00:00"),
    ("year", "2023-11-14 22:13:20", "2022-01-01 00:00:00", "2023-01-01 00:00:00"),
    ("year@12", "2023-11-14 22:13:20", "2021-12-01 00:00:00", "2022-12-01 00:00:00"),
])
def test_the_last_period_that_is_complete(period: str, now: str, begin: str, end: str) -> None:
    assert re.match(PERIOD, period)
    assert last_completed(at(now), period) == (at(begin), at(end))
    assert current(at(now), period) == (at(end), at(now))


def test_periods_follow_each_other_without_a_gap() -> None:
    for period in ("hour@59", "day@7", "month@31", "month@30", "year@2"):
        end = at("2025-06-01 00:00:00")
        for _ in range(30):
            begin, ended = last_completed(end, period)
            assert begin < ended <= end
            assert last_completed(begin, period)[1] == begin
            end = begin


@pytest.mark.parametrize("period", ["week", "month@32", "month@0", "hour@60", "day@24", "year@13", "hour@", "", "day "])
def test_what_is_no_period_is_refused(period: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"instance_usage_audit_period": period}, NotificationOptions)

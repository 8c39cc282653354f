"""Goal: every time has a zone, and its text loses nothing and sorts as the times do."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from app.core.clock import from_unix, rfc3339, utc_now


def test_the_present_is_aware_and_utc() -> None:
    assert utc_now().tzinfo is UTC
    assert abs(utc_now() - datetime.now(UTC)) < timedelta(seconds=5)


def test_a_time_is_written_in_utc_with_six_decimals_and_z() -> None:
    east = datetime(2026, 11, 20, 14, 2, 3, 450, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(east) == "2026-11-20T12:02:03.000450Z"
    assert rfc3339(from_unix(0)) == "1970-01-01T00:00:00.000000Z"


def test_a_written_time_is_read_back_exactly() -> None:
    now = utc_now()
    assert datetime.fromisoformat(rfc3339(now)) == now


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError):
        rfc3339(datetime(2026, 11, 20))  # noqa: DTZ001

"""Time: aware UTC datetimes inside, RFC 3339 text outside, Unix seconds from chains."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The present, aware, in UTC, to the microsecond."""
    return datetime.now(UTC)


def rfc3339(moment: datetime) -> str:
    """`moment` in UTC as `2026-11-20T12:02:03.000450Z`.

    Always six decimals: the text then sorts as the times do, and a time echoed into `created_after` has lost nothing.
    Raises ValueError for a naive datetime, whose zone nobody knows.
    """
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be told to anyone")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def from_unix(seconds: int) -> datetime:
    """A block's timestamp (Unix seconds) as aware UTC."""
    return datetime.fromtimestamp(seconds, UTC)

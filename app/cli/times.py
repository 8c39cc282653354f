"""Times on the command line."""

from datetime import UTC, datetime

import typer


def parse_time(text: str) -> datetime:
    """RFC 3339, or a day; without a zone it is UTC. For `typer`, which shows BadParameter and exits with 2."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("a time such as 2026-11-21T14:00:00Z, or a day such as 2026-11-21") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

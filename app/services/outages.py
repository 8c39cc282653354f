"""What a database that is away, or too busy, raises, told apart from our own mistakes."""

from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

# An outage is among these.
OUTAGES: Final = (SQLAlchemyError, OSError, TimeoutError)

_KINDS: Final = ("OperationalError", "InterfaceError", "InternalError")
# Classes of SQLSTATE (PostgreSQL, appendix A): connection, deadlock, resources, lock, an operator's hand, the system.
_STATES: Final = ("08", "40", "53", "55", "57", "58")


def is_outage(error: Exception) -> bool:
    """Whether trying again later may help. A statement that the database refused is our mistake."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeoutError | OSError | TimeoutError)
    state = str(getattr(error.orig, "sqlstate", None) or "")
    return error.connection_invalidated or type(error).__name__ in _KINDS or state.startswith(_STATES)

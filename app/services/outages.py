"""What a database that is away, or too busy, raises, told apart from our own mistakes."""

from typing import Final

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.blockchain.errors import NodeError

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


def outage_line(error: Exception) -> str | None:
    """What an outage is, for a terminal: neither the statement nor its rows. None where trying again does not help."""
    if isinstance(error, NodeError):  # it holds no URL
        return f"a node failed: {error}"
    if not is_outage(error):
        return None
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    said = str(error.orig if isinstance(error, DBAPIError) else error).partition("\n")[0]
    reason = said.partition(">: ")[2] if said.startswith("<class") else said
    return f"the database is away or too busy: {reason or type(error).__name__}; see what was done, and try again"

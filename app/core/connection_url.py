"""Whether the URL of a database or of Redis is read as it was meant.

The libraries each cut a password with an unescaped `@`, `:` or `/` elsewhere, take the rest of it for a host, a port or
a database, and show that in their errors. So such a URL is refused before any of them has it.
"""

import re
from typing import Final
from urllib.parse import urlsplit

_PORT_MAX: Final = 65_535
_AUTHORITY_ENDS: Final = re.compile(r"[/?#]")
# RFC 3986 section 3.2, with the underscores of container names in the host.
_AUTHORITY: Final = re.compile(
    r"(?:[^@:\[\]\s]*(?::[^@\[\]\s]*)?@)?(?:\[[0-9A-Za-z:.%]+\]|[\w.-]*)(?::(?P<port>[0-9]{0,5}))?"
)


def require_readable(url: str) -> None:
    """Raises ValueError, without any of its text, for a URL whose password, host and port cannot be told apart."""
    if not is_readable(url):
        raise ValueError(
            "cannot be read: percent-encode the password (@ is %40, : is %3A, / is %2F); a port is a number"
        )


def is_readable(url: str) -> bool:
    rest = url.partition("://")[2]
    authority = _AUTHORITY_ENDS.split(rest, maxsplit=1)[0]
    found = _AUTHORITY.fullmatch(authority)
    if found is None or "@" in rest[len(authority) :] or int(found["port"] or 0) > _PORT_MAX:
        return False
    try:
        urlsplit(url)
    except ValueError:  # it refuses a few letters more
        return False
    return True

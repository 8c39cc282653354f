"""Public ids: a prefix that says what it is, and a ULID (https://github.com/ulid/spec)."""

import secrets
import time
from typing import Final

_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID_CHARS: Final = 26
_RANDOM_BITS: Final = 80
_SHIFTS: Final = range(5 * (_ULID_CHARS - 1), -1, -5)


def new_id(prefix: str) -> str:
    """A fresh id such as `pay_01J9Z3N4T8Q2…`: 48 bits of Unix milliseconds, then 80 random bits, 26 characters.

    Written here, for ULID libraries count upwards within one millisecond, and a payment's id opens its public page:
    nobody may guess the next one. So ids sort by time to the millisecond and no finer.
    """
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return f"{prefix}_" + "".join([_CROCKFORD[number >> shift & 31] for shift in _SHIFTS])

"""How a block relates to what was scanned."""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol


class Linked(Protocol):
    """Anything with a height, a hash and its parent's hash."""

    @property
    def number(self) -> int: ...
    @property
    def hash(self) -> bytes: ...
    @property
    def parent_hash(self) -> bytes: ...


class Link(Enum):
    EXTENDS = "extends"
    DUPLICATE = "duplicate"
    GAP = "gap"
    FORK = "fork"


def link(window: Sequence[tuple[int, bytes]], header: Linked) -> Link:
    """Relate `header` to the scanned blocks: (number, hash) pairs, ascending and without holes; the last is the cursor.

    A block below the window is a FORK too: it cannot be shown to be ours, and the search for the common ancestor
    finds out.
    """
    if not window:
        return Link.EXTENDS
    tip_number, tip_hash = window[-1]
    if header.number > tip_number + 1:
        return Link.GAP
    if header.number == tip_number + 1:
        return Link.EXTENDS if header.parent_hash == tip_hash else Link.FORK
    offset = header.number - window[0][0]
    if offset >= 0 and window[offset][1] == header.hash:
        return Link.DUPLICATE
    return Link.FORK

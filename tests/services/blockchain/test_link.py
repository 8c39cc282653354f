"""link(): how a block relates to what was scanned, by table and by property."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.blockchain.link import Link, link


@dataclass(frozen=True)
class Block:
    number: int
    hash: bytes
    parent_hash: bytes


def hash_of(number: int, branch: str = "ours") -> bytes:
    return f"{branch}/{number}".encode()


def block(number: int, branch: str = "ours", parent_branch: str | None = None) -> Block:
    return Block(number, hash_of(number, branch), hash_of(number - 1, parent_branch or branch))


def window(first: int, last: int) -> Sequence[tuple[int, bytes]]:
    return [(number, hash_of(number)) for number in range(first, last + 1)]


@pytest.mark.parametrize(
    ("scanned", "header", "expected"),
    [
        pytest.param(window(5, 9), block(10), Link.EXTENDS, id="the child of the cursor extends it"),
        pytest.param(window(9, 9), block(10), Link.EXTENDS, id="the cursor alone is enough to be extended"),
        pytest.param(window(0, 0), block(1), Link.EXTENDS, id="the first block extends genesis"),
        pytest.param([], block(7), Link.EXTENDS, id="nothing was scanned yet"),
        pytest.param(window(5, 9), block(9), Link.DUPLICATE, id="the cursor again"),
        pytest.param(window(5, 9), block(7), Link.DUPLICATE, id="a block within the window again"),
        pytest.param(window(5, 9), block(5), Link.DUPLICATE, id="the lowest block of the window again"),
        pytest.param(window(5, 9), block(11), Link.GAP, id="one block is missing"),
        pytest.param(window(5, 9), block(500), Link.GAP, id="many blocks are missing"),
        pytest.param(window(5, 9), block(11, "theirs"), Link.GAP, id="across a gap nobody can tell a fork"),
        pytest.param(window(5, 9), block(10, "theirs"), Link.FORK, id="the next height with another parent"),
        pytest.param(window(5, 9), block(9, "theirs", "ours"), Link.FORK, id="another block at the cursor's height"),
        pytest.param(window(5, 9), block(6, "theirs"), Link.FORK, id="another block deep in the window"),
        pytest.param(window(5, 9), block(5, "theirs"), Link.FORK, id="another lowest block"),
        pytest.param(window(5, 9), block(4), Link.FORK, id="below the window it cannot be shown to be ours"),
        pytest.param(window(5, 9), block(0), Link.FORK, id="far below the window"),
    ],
)
def test_a_block_is_related_to_what_was_scanned(
    scanned: Sequence[tuple[int, bytes]], header: Block, expected: Link
) -> None:
    assert link(scanned, header) is expected


def test_a_branch_that_left_and_came_back_is_judged_by_hash_not_by_parent() -> None:
    """The header's own hash says that it is the scanned block, whatever it claims of its parent."""
    assert link(window(5, 9), Block(8, hash_of(8), b"anything")) is Link.DUPLICATE


windows = st.tuples(st.integers(0, 10**9), st.integers(1, 50)).map(lambda pair: window(pair[0], sum(pair) - 1))


@given(windows, st.integers(-60, 60), st.booleans(), st.booleans())
def test_each_header_has_exactly_the_relation_that_its_height_and_hashes_tell(
    scanned: Sequence[tuple[int, bytes]], offset: int, is_ours: bool, has_our_parent: bool
) -> None:
    tip = scanned[-1][0]
    number = max(tip + offset, 0)
    header = block(number, "ours" if is_ours else "theirs", "ours" if has_our_parent else "theirs")
    relation = link(scanned, header)
    if number > tip + 1:
        assert relation is Link.GAP
    elif number == tip + 1:
        assert relation is (Link.EXTENDS if has_our_parent else Link.FORK)
    else:
        assert relation is (Link.DUPLICATE if is_ours and number >= scanned[0][0] else Link.FORK)


@given(windows)
def test_a_window_is_a_chain_of_extensions_and_knows_every_block_of_its_own(
    scanned: Sequence[tuple[int, bytes]],
) -> None:
    for count in range(1, len(scanned) + 1):
        number, hash_ = scanned[count - 1]
        header = Block(number, hash_, hash_of(number - 1))
        assert link(scanned[: count - 1], header) is Link.EXTENDS
        assert link(scanned, header) is Link.DUPLICATE


@given(windows, windows)
def test_more_history_never_turns_an_extension_or_a_gap_into_anything_else(
    scanned: Sequence[tuple[int, bytes]], other: Sequence[tuple[int, bytes]]
) -> None:
    header = block(other[-1][0])
    if (relation := link(scanned[-1:], header)) in (Link.EXTENDS, Link.GAP):
        assert link(scanned, header) is relation

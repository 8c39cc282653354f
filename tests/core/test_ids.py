"""Goal: ids sort by time, cannot be guessed from one another, and never meet."""

import time
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from app.core.ids import new_id

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def number(identifier: str) -> int:
    value = 0
    for character in identifier.partition("_")[2]:
        value = value * 32 + CROCKFORD.index(character)
    return value


@given(time_ms=st.integers(0, 2**48 - 1), random=st.integers(0, 2**80 - 1))
def test_an_id_is_48_bits_of_milliseconds_and_80_random_bits(time_ms: int, random: int) -> None:
    with (
        patch("app.core.ids.time.time_ns", return_value=time_ms * 1_000_000 + 999_999),
        patch("app.core.ids.secrets.randbits", return_value=random),
    ):
        identifier = new_id("pay")
    assert identifier.startswith("pay_")
    assert len(identifier) == 4 + 26
    assert number(identifier) == time_ms << 80 | random


def test_an_id_carries_the_present_time() -> None:
    before_ms = time.time_ns() // 1_000_000
    created_ms = number(new_id("evt")) >> 80
    assert before_ms <= created_ms <= time.time_ns() // 1_000_000


def test_ids_of_one_millisecond_are_distinct_and_do_not_count_upwards() -> None:
    with patch("app.core.ids.time.time_ns", return_value=1_700_000_000_000_000_000):
        ids = [new_id("pay") for _ in range(1_000)]
    assert len(set(ids)) == 1_000
    assert ids != sorted(ids)

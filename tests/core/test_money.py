"""Goal: an amount survives the way in and out exactly at any size, and whatever is not an amount is refused."""

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.limits import AMOUNT_CHARS, MAX_UNITS
from app.core.money import MoneyError, format_units, parse_price, parse_tolerance, parse_units, price_units


@given(units=st.integers(0, MAX_UNITS), decimals=st.integers(0, 77))
def test_every_amount_of_up_to_78_digits_is_read_back_as_it_was_written(units: int, decimals: int) -> None:
    text = format_units(units, decimals)
    assert parse_units(text, decimals) == units
    assert re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", text)
    assert len(text) <= AMOUNT_CHARS


@given(text=st.text(max_size=200), decimals=st.integers(0, 77))
def test_any_text_is_an_amount_or_a_money_error(text: str, decimals: int) -> None:
    try:
        assert 0 <= parse_units(text, decimals) <= MAX_UNITS
    except MoneyError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("amount", "decimals", "units"),
    [
        ("25", 6, 25_000_000),
        ("25.50", 6, 25_500_000),
        ("0.000001", 6, 1),
        ("0", 6, 0),
        ("007", 0, 7),
        (str(MAX_UNITS), 0, MAX_UNITS),
        ("1." + "0" * 76 + "1", 77, 10**77 + 1),
    ],
)
def test_an_amount_is_read_as_base_units(amount: str, decimals: int, units: int) -> None:
    assert parse_units(amount, decimals) == units


@pytest.mark.parametrize(
    "amount",
    [
        *("", " ", ".", "1.", ".5", "+1", "-1", "1e3", "1_000", "1,5", " 1", "1 ", "1\n", "1.2.3", "0x10", "NaN"),
        *("Infinity", "\uff11", "\u0663", "\u00b2", "1\x00", "9" * (AMOUNT_CHARS + 1)),
    ],
)
def test_what_is_not_plain_digits_is_refused(amount: str) -> None:
    with pytest.raises(MoneyError):
        parse_units(amount, 6)


@pytest.mark.parametrize("amount", [25, 25.0, None, True, b"25"])
def test_only_text_is_an_amount(amount: object) -> None:
    with pytest.raises(MoneyError, match="string"):
        parse_units(amount, 6)  # type: ignore[arg-type]


def test_more_decimals_than_the_asset_has_are_refused_and_never_rounded() -> None:
    with pytest.raises(MoneyError, match="7 decimals, the asset has 6"):
        parse_units("1.0000001", 6)


def test_an_amount_above_256_bits_is_refused() -> None:
    with pytest.raises(MoneyError, match=re.escape("2**256")):
        parse_units(str(MAX_UNITS + 1), 0)


@pytest.mark.parametrize(
    ("units", "decimals", "text"),
    [
        (25_000_000, 6, "25"),
        (25_500_000, 6, "25.5"),
        (1, 18, "0.000000000000000001"),
        (0, 18, "0"),
        (100, 0, "100"),
        (10**30, 0, "1" + "0" * 30),
    ],
)
def test_amounts_are_written_without_trailing_zeros_or_exponent(units: int, decimals: int, text: str) -> None:
    assert format_units(units, decimals) == text


def test_a_negative_amount_cannot_be_written() -> None:
    with pytest.raises(MoneyError):
        format_units(-1, 6)


def test_an_absolute_tolerance_is_so_much_of_the_asset() -> None:
    assert parse_tolerance("0.10").units(25_000_000, 6) == 100_000
    assert parse_tolerance("0").units(25_000_000, 6) == 0


def test_a_relative_tolerance_rounds_down() -> None:
    assert parse_tolerance("0.5%").units(25_000_000, 6) == 125_000
    assert parse_tolerance("0.5%").units(199, 6) == 0
    assert parse_tolerance("0.0001%").units(MAX_UNITS, 18) == MAX_UNITS // 1_000_000
    assert parse_tolerance("99.9999%").units(1, 18) == 0


@given(amount_units=st.integers(1, MAX_UNITS), ppm=st.integers(0, 999_999))
def test_a_relative_tolerance_never_swallows_the_whole_amount(amount_units: int, ppm: int) -> None:
    assert parse_tolerance(format_units(ppm, 4) + "%").units(amount_units, 18) < amount_units


@pytest.mark.parametrize(
    "text", ["", "%", "100%", "100.0000%", "1000%", "0.00001%", "-1%", "1 %", "1%%", "1e1", "x", "-1"]
)
def test_what_is_no_tolerance_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_tolerance(text)


def test_only_text_is_a_tolerance() -> None:
    with pytest.raises(MoneyError):
        parse_tolerance(0.1)  # type: ignore[arg-type]


def test_a_tolerance_as_large_as_the_amount_is_refused() -> None:
    with pytest.raises(MoneyError, match="less than the amount"):
        parse_tolerance("1").units(1_000_000, 6)


def test_a_tolerance_finer_than_the_asset_is_refused() -> None:
    with pytest.raises(MoneyError, match="decimals"):
        parse_tolerance("0.0000001").units(1_000_000, 6)


def test_a_tolerance_is_told_as_it_was_given() -> None:
    assert str(parse_tolerance("0.5%")) == "0.5%"


# --- prices


@given(
    price=st.integers(1, 10**30).map(lambda cents: format_units(cents, 2)),
    rate=st.decimals("0.000000000001", 10**12, allow_nan=False, allow_infinity=False),
    decimals=st.integers(0, 18),
)
def test_a_price_is_never_converted_to_too_little_nor_to_a_unit_too_much(
    price: str, rate: Decimal, decimals: int
) -> None:
    units = price_units(price, rate, decimals)
    worth_of_one = Fraction(rate) / 10**decimals
    assert units * worth_of_one >= Fraction(price)
    assert (units - 1) * worth_of_one < Fraction(price)


def test_a_price_beyond_256_bits_is_refused() -> None:
    assert price_units(str(MAX_UNITS), Decimal(1), 0) == MAX_UNITS
    with pytest.raises(MoneyError):
        price_units(str(MAX_UNITS), Decimal("0.9999999999"), 0)


@pytest.mark.parametrize(
    ("text", "price"), [("25", "25"), ("025.50", "25.5"), ("0.10", "0.1"), ("100", "100"), ("9" * 160, "9" * 160)]
)
def test_a_price_is_normalised(text: str, price: str) -> None:
    assert parse_price(text) == price


@pytest.mark.parametrize("text", ["", "0", "0.00", "-1", "1e3", " 1", "1.", ".5", "NaN", "\uff11", "9" * 161])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_price(text)


def test_a_tolerance_in_another_currency_is_converted_and_rounded_down() -> None:
    ten_cents, half_a_percent = parse_tolerance("0.10"), parse_tolerance("0.5%")
    cents_each = Fraction(10**6, 3)  # base units of one of the currency, at a rate of 3
    assert ten_cents.share(25_000_000, cents_each) == 33_333
    assert half_a_percent.share(1_999, cents_each) == 9
    assert ten_cents.share(33_334, cents_each) == 33_333
    assert ten_cents.share(33_333, cents_each) == 0  # the whole amount: none of it is tolerated

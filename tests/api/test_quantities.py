"""Strings that carry numbers mean one thing, and say so when they mean none."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.api import (
    format_duration,
    parse_decimal,
    parse_duration,
    parse_percent,
    parse_quantity,
    resolve_share,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("40s", 40), ("1h30m", 5400), ("2m500ms", 120.5), ("99999h", 359996400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "2 days", "1d", "-1s", "1.5s", "100000s", "1h1m1s1ms1ms", "1s\n"])
def test_what_is_no_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write for example") as refused:
        parse_duration(text)
    assert repr(text) in str(refused.value)


@given(st.integers(min_value=0, max_value=99_999 * 3_600_000))
def test_durations_survive_the_round_trip(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


def test_a_negative_duration_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        format_duration(-1)


@pytest.mark.parametrize(("text", "share"), [("95%", 0.95), ("99.9%", 0.999), ("100%", 1.0), ("0.125%", 0.00125)])
def test_percentages(text: str, share: float) -> None:
    assert parse_percent(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["95", "101%", "-1%", "1e1%", "%", "100.1%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a percentage"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("80Gi", 80 * 2**30), ("3350G", 3350e9), ("989.4T", 989.4e12), ("512", 512), ("1k", 1000), ("1Ki", 1024)],
)
def test_quantities(text: str, number: float) -> None:
    assert parse_quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["80GB", "80 Gi", "-1", "1e3", "0x10", "", "Gi", "500m"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@given(st.decimals(min_value=0, max_value=999_999_999, places=6))
def test_decimals_are_exact(number: Decimal) -> None:
    assert parse_decimal(f"{number:f}") == number


@pytest.mark.parametrize("text", ["-1", "1e3", ".5", "5.", "NaN", "Infinity", "1,5", ""])
def test_what_is_no_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a decimal number"):
        parse_decimal(text)


@pytest.mark.parametrize(
    ("value", "up", "count"), [(3, True, 3), ("25%", True, 3), ("25%", False, 2), ("0%", True, 0), ("100%", False, 10)]
)
def test_shares_of_replicas(value: int | str, up: bool, count: int) -> None:
    assert resolve_share(value, 10, round_up=up) == count


def test_a_share_that_is_neither_count_nor_percentage_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a count nor a percentage"):
        resolve_share("many", 10, round_up=True)


@given(st.integers(0, 100), st.integers(0, 10_000))
def test_rounding_up_never_gives_less_than_rounding_down(percent: int, total: int) -> None:
    up, down = (resolve_share(f"{percent}%", total, round_up=way) for way in (True, False))
    assert 0 <= down <= up <= total
    assert up - down <= 1

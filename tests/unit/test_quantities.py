"""Numbers and units in one notation."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.quantities import claimed_quantities, is_backed, passing_quantities


def read(text: str) -> set[tuple[Decimal, str]]:
    return set(claimed_quantities(text))


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("It holds 1,000 rows.", "1000", ""),
        ("It holds 1000 rows.", "1000", ""),
        ("about 2.50 of it", "2.5", ""),
        ("a share of 5 %", "5", "%"),
        ("a share of 5%", "5", "%"),
        ("a share of 5 percent", "5", "%"),
        ("5퍼센트입니다", "5", "%"),
        ("after 30 seconds", "30", "s"),
        ("a 30-second limit", "30", "s"),
        ("after 30s", "30", "s"),
        ("30초 뒤에", "30", "s"),
        ("within 5ms", "5", "ms"),
        ("five minutes", "5", "min"),
        ("up to 100 MiB", "100", "MB"),
        ("costs $5", "5", "$"),
        ("costs 5 dollars", "5", "$"),
        ("5 million users", "5000000", ""),
        ("3만 원", "30000", "₩"),
        ("3개월 동안", "3", "month"),
        ("두 개의 사본", "2", ""),
        ("스무 명", "20", ""),
        ("스물다섯 명", "25", ""),
        ("열두 개", "12", ""),
        ("1만 5천 원", "15000", "₩"),
        ("1만 5000원", "15000", "₩"),
        ("3억 5천만 원", "350000000", "₩"),
        ("350,000,000원", "350000000", "₩"),
        ("2천5백만 명", "25000000", ""),
        ("3백 명", "300", ""),
        ("5천 원", "5000", "₩"),
        ("twenty-five days", "25", "day"),
        ("two hundred employees", "200", ""),
        ("two hundred and five days", "205", "day"),
        ("a hundred twenty-five km", "125", "km"),
        ("three thousand rows", "3000", ""),
        ("₩1만 5천", "15000", "₩"),
        ("a thirty-second limit", "30", "s"),
        ("£50", "50", "£"),
        ("30 mg", "30", "mg"),
        ("5 ml", "5", "ml"),
        ("20 feet", "20", "ft"),
        ("opens at 9 am", "9", "am"),
        ("opens at 9 p.m.", "9", "pm"),
        ("at -5 degrees", "-5", ""),
        ("in the 1990s", "1990", ""),
        ("the 3rd attempt", "3", ""),
    ],
)
def test_reads_value_and_unit(text: str, value: str, unit: str) -> None:
    assert read(text) == {(Decimal(value), unit)}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("제10조 3개월 이내", {("10", ""), ("3", "month")}),
        ("1조 10명으로 구성한다", {("1000000000000", ""), ("10", "")}),
        ("5만 10만 원", {("50000", ""), ("100000", "₩")}),
        ("Twenty one-day passes", {("20", "")}),
    ],
)
def test_numbers_side_by_side_are_not_added_up(text: str, numbers: set[tuple[str, str]]) -> None:
    assert read(text) == {(Decimal(value), unit) for value, unit in numbers}


def test_part_of_a_number_in_words_is_no_number() -> None:
    said = read("twenty-five days") | set(passing_quantities("twenty-five days, the twenty-first time"))
    assert said == {(Decimal(25), "day"), (Decimal(21), "")}
    assert set(passing_quantities("one day")) == {(Decimal(1), "day")}


@pytest.mark.parametrize("text", ["SmolLM2-135M", "version v2", "2.60.1", "H200", "one of them", "no numbers at all"])
def test_identifiers_versions_and_the_pronoun_one_are_no_quantities(text: str) -> None:
    assert read(text) == set()


def test_a_range_has_two_positive_ends() -> None:
    assert read("between 5-10 items") == {(Decimal(5), ""), (Decimal(10), "")}


def test_numbers_in_passing_back_but_are_not_claimed() -> None:
    assert set(passing_quantities("the first try, done twice")) == {(Decimal(1), ""), (Decimal(2), "")}
    assert read("the first try, done twice") == set()


@pytest.mark.parametrize(
    ("claimed", "said", "backed"),
    [
        ("5 seconds", "5 s", True),
        ("5", "5 seconds", True),
        ("5 seconds", "5", True),
        ("5 seconds", "5 minutes", False),
        ("5 ms", "5 s", False),
        ("50", "5", False),
        ("1,000", "1000", True),
        ("five", "5", True),
        ("30 g", "30 mg", False),
        ("£50", "$50", False),
        ("9 pm", "9 a.m.", False),
        ("20 inches", "20 feet", False),
        ("3억 원", "3억 5천만 원", False),
    ],
)
def test_is_backed_compares_value_and_known_units(claimed: str, said: str, backed: bool) -> None:
    (quantity,) = read(claimed)
    assert is_backed(quantity, frozenset(read(said))) is backed


@given(st.integers(min_value=0, max_value=10**12))
def test_thousands_separators_do_not_matter(value: int) -> None:
    assert read(f"exactly {value:,} rows") == read(f"exactly {value} rows") == {(Decimal(value), "")}

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.filters import (
    And,
    Equals,
    Filter,
    HasAny,
    NotEquals,
    OneOf,
    compile_filter,
    compile_filter_after,
    from_column,
    to_column,
)

# Lone surrogates too: a file's name may hold any byte.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)


@pytest.mark.parametrize(
    ("where", "expression"),
    [
        (Equals("document_id", "d1"), 'document_id == "d1"'),
        (NotEquals("revision", "r1"), 'revision != "r1"'),
        (Equals("ordinal", 0), "ordinal == 0"),
        (OneOf("document_id", ("a", "b")), 'document_id in ["a", "b"]'),
        (OneOf("ordinal", (1, 2)), "ordinal in [1, 2]"),
        (OneOf("source", ()), "ordinal < 0"),
        (HasAny("acl", ("eng", "hr")), 'array_contains_any(acl, ["eng", "hr"])'),
        (HasAny("acl", ()), "ordinal < 0"),
        (And((Equals("document_id", "d"), NotEquals("revision", "r"))), '(document_id == "d") and (revision != "r")'),
        (And((And((Equals("ordinal", 1),)),)), "((ordinal == 1))"),
        (And(()), "ordinal >= 0"),
    ],
)
def test_a_tree_compiles_to_one_expression(where: Filter, expression: str) -> None:
    assert compile_filter(where) == expression


def test_the_next_page_starts_after_an_id() -> None:
    where = OneOf("ordinal", (1, 2))
    assert compile_filter_after(where, 'a"b') == 'chunk_id > "a\\"b" and (ordinal in [1, 2])'


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ('say "hi"', '"say \\"hi\\""'),
        ("it's", '"it\'s"'),
        ("C:\\new", '"C:\\\\new"'),
        ("two\nlines", '"two␛000alines"'),
        ("␛000a", '"␛241b000a"'),
        ("한글 문서.md", '"한글 문서.md"'),
        ('" or ordinal >= 0 or source == "', '"\\" or ordinal >= 0 or source == \\""'),
    ],
)
def test_a_literal_keeps_its_quotes_and_control_characters_inside(value: str, literal: str) -> None:
    assert compile_filter(Equals("source", value)) == f"source == {literal}"


@given(ANY_TEXT)
def test_a_literal_never_ends_early(value: str) -> None:
    expression = compile_filter(Equals("source", value))
    body = re.fullmatch(r'source == "((?:[^"\\\x00-\x1f\x7f]|\\["\\])*)"', expression)
    assert body is not None
    assert from_column(re.sub(r"\\(.)", r"\1", body[1])) == value


@given(ANY_TEXT)
def test_a_column_gives_back_the_text_it_was_given(value: str) -> None:
    stored = to_column(value)
    assert from_column(stored) == value
    assert not re.search("[\x00-\x1f\x7f\u2028\ud800-\udfff]", stored)


@pytest.mark.parametrize(
    "where",
    [
        Equals("ordinal", "0"),
        Equals("ordinal", True),
        Equals("source", 3),
        Equals("source == 1 or ordinal", 3),  # type: ignore[arg-type]
        OneOf("text", ("a",)),  # type: ignore[arg-type]
        HasAny("source", ("a",)),  # type: ignore[arg-type]
        HasAny("acl", (1,)),  # type: ignore[arg-type]
        And((Equals("ordinal", 1), Equals("source", 3))),
    ],
    ids=lambda where: type(where).__name__,
)
def test_a_wrong_column_or_type_is_refused(where: Filter) -> None:
    with pytest.raises(TypeError):
        compile_filter(where)

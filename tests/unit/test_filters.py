from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.columns import from_column, from_metadata_column, list_key, to_column, to_metadata_column
from rag.filters import (
    And,
    Compare,
    Empty,
    Equals,
    Filter,
    HasAny,
    Like,
    Metadata,
    Not,
    NotEquals,
    OneOf,
    Or,
    compile_filter,
    compile_filter_after,
    visible_to,
)

A, B, A_AND_B = Equals("ordinal", 1), Equals("ordinal", 2), "(ordinal == 1) and (ordinal == 2)"
# Lone surrogates too: a file's name may hold any byte.
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)
LANG, YEAR, SCORE = Metadata("lang", "text"), Metadata("year", "integer"), Metadata("score", "number")
DRAFT, TAGS = Metadata("draft", "boolean"), Metadata("tags", "list")
DATA, KINDS, HAS = 'metadata["data"]', 'metadata["kinds"]', 'metadata["has"]["tags"]'


@pytest.mark.parametrize(
    ("where", "expression"),
    [
        (Equals("document_id", "d1"), 'document_id == "d1"'),
        (NotEquals("revision", "r1"), 'revision != "r1"'),
        (Equals("ordinal", 0), "ordinal == 0"),
        (Compare("updated_at", ">=", "2026"), 'updated_at >= "2026"'),
        (OneOf("document_id", ("a", "b")), 'document_id in ["a", "b"]'),
        (OneOf("ordinal", (1, 2)), "ordinal in [1, 2]"),
        (OneOf("source", ()), "ordinal < 0"),
        (HasAny("acl", ("eng", "hr")), 'array_contains_any(acl, ["eng", "hr"])'),
        (HasAny("acl", ()), "ordinal < 0"),
        (Empty("acl"), "array_length(acl) == 0"),
        (And((Equals("document_id", "d"), NotEquals("revision", "r"))), '(document_id == "d") and (revision != "r")'),
        (And((And((Equals("ordinal", 1),)),)), "ordinal == 1"),
        (Or((A, B, And((A, B)), A)), f"({A_AND_B}) or ((ordinal == 1) or ((ordinal == 1) or (ordinal == 2)))"),
        (And(()), "ordinal >= 0"),
        (Or((Equals("ordinal", 1), Equals("ordinal", 2))), "(ordinal == 1) or (ordinal == 2)"),
        (Or(()), "ordinal < 0"),
        (Not(Equals("ordinal", 1)), "ordinal != 1"),
        (Not(NotEquals("ordinal", 1)), "ordinal == 1"),
        (Not(Compare("ordinal", "<", 1)), "(ordinal >= 1)"),
        (Not(OneOf("ordinal", (1, 2))), "ordinal not in [1, 2]"),
        (Not(OneOf("ordinal", ())), "ordinal >= 0"),
        (Not(Like("source", "start", "draft")), '(source < "draft" or source >= "drafu")'),
        (Not(Empty("acl")), "array_length(acl) != 0"),
        (Not(Not(Equals("ordinal", 1))), "ordinal == 1"),
        (Not(And((Equals("ordinal", 1), Equals("ordinal", 2)))), "(ordinal != 1) or (ordinal != 2)"),
        (Not(Or((Equals("ordinal", 1), Not(Equals("ordinal", 2))))), "(ordinal != 1) and (ordinal == 2)"),
        (Not(And(())), "ordinal < 0"),
        (Not(Or(())), "ordinal >= 0"),
    ],
)
def test_a_tree_compiles_to_one_expression(where: Filter, expression: str) -> None:
    assert compile_filter(where) == expression


@pytest.mark.parametrize(
    ("where", "expression"),
    [
        (Equals(LANG, "ko"), f'{DATA}["lang"] == "ko"'),
        (Not(Equals(LANG, "ko")), f'{DATA}["lang"] != "ko"'),
        (NotEquals(LANG, "ko"), f'({DATA}["lang"] != "ko" and {KINDS}["lang"] == "text")'),
        (Not(NotEquals(YEAR, -1)), f'({DATA}["year"] == -1 or {KINDS}["year"] != "number")'),
        (NotEquals(DRAFT, True), f'({DATA}["draft"] != true and {KINDS}["draft"] == "boolean")'),
        (Compare(YEAR, ">=", 2024), f'{DATA}["year"] >= 2024'),
        (Not(Compare(YEAR, ">=", 2024)), f'({DATA}["year"] < 2024 or {KINDS}["year"] != "number")'),
        (Compare(SCORE, "<", 2), f'{DATA}["score"] < 2.0'),
        (Compare(SCORE, ">", 1e-7), f'{DATA}["score"] > 0.0000001'),
        (Equals(SCORE, 1e22), f'{DATA}["score"] == 10000000000000000000000.0'),
        (OneOf(YEAR, (1, 2)), f'{DATA}["year"] in [1, 2]'),
        (Not(OneOf(YEAR, (1, 2))), f'{DATA}["year"] not in [1, 2]'),
        (HasAny(TAGS, ("a", "b")), f'({HAS}["{list_key("a")}"] == 1) or ({HAS}["{list_key("b")}"] == 1)'),
        (Not(HasAny(TAGS, ("a", "b"))), f'({HAS}["{list_key("a")}"] != 1) and ({HAS}["{list_key("b")}"] != 1)'),
        (HasAny(TAGS, ()), "ordinal < 0"),
        (Not(HasAny(TAGS, ())), "ordinal >= 0"),
    ],
)
def test_metadata_is_looked_up_by_its_declared_name_and_type(where: Filter, expression: str) -> None:
    assert compile_filter(where) == expression


@pytest.mark.parametrize(
    ("where", "expression"),
    [
        (Like("source", "start", "draft"), '(source >= "draft" and source < "drafu")'),
        (Like("source", "start", "a_%"), '(source >= "a_%" and source < "a_&")'),
        (Like("source", "start", "~"), '(source >= "~" and source < "\u00a0")'),
        (Like("source", "start", "\ud7ff"), '(source >= "\ud7ff" and source < "\ue000")'),
        (Like("source", "start", "a\U0010ffff"), '(source >= "a\U0010ffff" and source < "b")'),
        (Like("source", "start", "\U0010ffff"), '(source >= "\U0010ffff")'),
        (Like("source", "start", ""), '(source >= "")'),
        (Like("source", "end", ""), '(source >= "")'),
        (Like("source", "end", ".md"), 'source like "%.md"'),
        (Like(LANG, "within", '50%_\\"'), 'metadata["data"]["lang"] like "%50\\\\%\\\\_\\\\\\\\\\"%"'),
    ],
)
def test_a_pattern_s_own_signs_are_escaped(where: Filter, expression: str) -> None:
    assert compile_filter(where) == expression


def test_the_next_page_starts_after_an_id() -> None:
    where = OneOf("ordinal", (1, 2))
    assert compile_filter_after(where, 'a"b') == 'chunk_id > "a\\"b" and (ordinal in [1, 2])'


def test_a_caller_sees_what_is_open_and_what_is_its_groups() -> None:
    told = '(array_length(acl) == 0) or (array_contains_any(acl, ["a\\"", "b"]))'
    assert compile_filter(visible_to(frozenset({"b", 'a"'}))) == told
    assert compile_filter(visible_to(frozenset())) == "(array_length(acl) == 0) or (ordinal < 0)"


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ('say "hi"', '"say \\"hi\\""'),
        ("it's", '"it\'s"'),
        ("C:\\new", '"C:\\\\new"'),
        ("two\nlines", '"two␛␀␀␀␊lines"'),
        ("␛", '"␛␂␄␁␋"'),
        ("한글 문서.md", '"한글 문서.md"'),
        ('" or ordinal >= 0 or source == "', '"\\" or ordinal >= 0 or source == \\""'),
    ],
)
def test_a_literal_keeps_its_quotes_and_control_characters_inside(value: str, literal: str) -> None:
    assert compile_filter(Equals("source", value)) == f"source == {literal}"


# --- nothing gets out of its literal ---

TEXT_COLUMN: Any = st.sampled_from(["document_id", "source", "title", LANG])
REVERSIBLE: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Equals, TEXT_COLUMN, ANY_TEXT),
    st.builds(NotEquals, TEXT_COLUMN, ANY_TEXT),
    st.builds(Compare, TEXT_COLUMN, st.sampled_from(["<", "<=", ">", ">="]), ANY_TEXT),
    st.builds(OneOf, TEXT_COLUMN, st.lists(ANY_TEXT, max_size=3).map(tuple)),
    st.builds(Like, TEXT_COLUMN, st.just("start"), ANY_TEXT),
    st.builds(HasAny, st.just(TAGS), st.lists(ANY_TEXT, max_size=3).map(tuple)),
    st.builds(Compare, st.just(SCORE), st.just("<"), st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(Equals, st.just(YEAR), st.integers(-(2**63) + 1, 2**63 - 1)),
    st.builds(Equals, st.just(DRAFT), st.booleans()),
)
ONE_WAY: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Like, TEXT_COLUMN, st.sampled_from(["end", "within"]), ANY_TEXT),
    st.builds(HasAny, st.just("acl"), st.lists(ANY_TEXT, max_size=3).map(tuple)),
)


def combined(leaf: st.SearchStrategy[Filter], *more: Any) -> st.SearchStrategy[Filter]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(And, st.lists(inner, max_size=3).map(tuple)),
            st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
            *(st.builds(node, inner) for node in more),
        ),
        max_leaves=6,
    )


TREE = combined(st.one_of(ONE_WAY, combined(REVERSIBLE, Not)))

# Milvus' grammar as far as we use it, read without our code: a text ends at the first quote that no backslash precedes.
LITERAL = re.compile(r'"(?:[^"\\\r\n]|\\["\\])*"')
NAMES = r'document_id|source|title|ordinal|acl|metadata\["(?:data|kinds|has)"\](?:\["\w+"\]){1,2}'
REST = re.compile(
    rf"(?:{NAMES}|and|or|not|in|like|true|false|array_length|array_contains_any"
    r"|-?[0-9]+(?:\.[0-9]+)?|==|!=|<=|>=|<|>|[()\[\],]|X| )*"
)


def literals_of(expression: str) -> list[str]:
    """The texts that an independent reader finds, after it has checked that the rest is grammar alone."""
    found: list[str] = []

    def keep(literal: re.Match[str]) -> str:
        before = expression[: literal.start()]
        if before.endswith(("metadata[", "][")):
            return literal[0]
        found.append(re.sub(r"\\(.)", r"\1", literal[0][1:-1]))
        return "X"

    rest = LITERAL.sub(keep, expression)
    assert REST.fullmatch(rest), rest
    return found


def texts_of(where: Filter) -> list[str]:
    """The texts that the tree compares with, as the column has them."""
    match where:
        case And(filters) | Or(filters):
            return [text for part in filters for text in texts_of(part)]
        case Not(inner):
            return texts_of(inner)
        case HasAny(Metadata()):
            return []
        case OneOf(_, values) | HasAny(_, values):
            return [to_column(str(value)) for value in values]
        case Like(_, "start", text) | Like(_, _, "" as text):
            return [to_column(text)]
        case Like(_, place, text):
            escaped = "".join(f"\\{sign}" if sign in "\\%_" else sign for sign in to_column(text))
            return [f"%{escaped}%" if place == "within" else f"%{escaped}"]
        case Equals(_, str() as value) | NotEquals(_, str() as value) | Compare(_, _, str() as value):
            return [to_column(value)]
    return []


@given(TREE)
def test_no_text_of_a_tree_leaves_its_literal(where: Filter) -> None:
    found, wanted = Counter(literals_of(compile_filter(where))), Counter(texts_of(where))
    assert wanted <= found  # a prefix has a second literal, its upper bound


@pytest.mark.parametrize("node", [And, Or])
def test_a_long_chain_does_not_nest_deeply(node: type[And]) -> None:
    chain: Filter = node(tuple(Equals("ordinal", number) for number in range(180)))
    for inner in (And, Or) * 10:
        chain = inner((A, chain, *[B] * 8))
    depths = [0]
    for sign in compile_filter(chain):
        depths.append(depths[-1] + {"(": 1, ")": -1}.get(sign, 0))
    assert max(depths) < 35


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


@given(ANY_TEXT, ANY_TEXT)
def test_a_piece_is_found_in_a_column_exactly_where_it_is_in_the_text(text: str, piece: str) -> None:
    for part in (piece, text[1:3]):
        assert (to_column(part) in to_column(text)) == (part in text)
        assert to_column(text).startswith(to_column(part)) == text.startswith(part)
        assert to_column(text).endswith(to_column(part)) == text.endswith(part)


@given(ANY_TEXT, ANY_TEXT)
def test_a_prefix_is_a_range(text: str, prefix: str) -> None:
    for start in (prefix, text[:1], text[:2]):
        bounds = literals_of(compile_filter(Like("source", "start", start)))
        stored = to_column(text)
        within = bounds[0] <= stored and (len(bounds) == 1 or stored < bounds[1])
        assert within == text.startswith(start)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ANY_TEXT, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(ANY_TEXT, JSON, max_size=4))
def test_metadata_comes_back_as_it_was_stored(metadata: dict[str, Any]) -> None:
    assert from_metadata_column(to_metadata_column(metadata)) == metadata


def test_metadata_is_stored_with_the_kinds_of_its_fields_and_the_texts_of_its_lists() -> None:
    given = {"lang": "a\n", "n": 1.5, "b": True, "none": None, "no name": "x", "tags": ["x", 1, "x"], "deep": {"a": 1}}
    assert to_metadata_column(given) == {
        "data": {**given, "lang": "a␛␀␀␀␊"},
        "kinds": {"lang": "text", "n": "number", "b": "boolean", "tags": "list"},
        "has": {"tags": {list_key("x"): 1}},
    }


@pytest.mark.parametrize(
    "where",
    [
        Equals("ordinal", "0"),
        Equals("ordinal", True),
        Equals("ordinal", 1.5),
        Equals("ordinal", 2**63),
        Equals("source", 3),
        Equals("source == 1 or ordinal", 3),  # type: ignore[arg-type]
        OneOf("text", ("a",)),  # type: ignore[arg-type]
        OneOf("text", ()),  # type: ignore[arg-type]
        HasAny("source", ("a",)),  # type: ignore[arg-type]
        HasAny("acl", (1,)),  # type: ignore[arg-type]
        HasAny("acl == 1", ()),  # type: ignore[arg-type]
        Empty("source"),  # type: ignore[arg-type]
        And((Equals("ordinal", 1), Equals("source", 3))),
        Or((Equals("ordinal", 1), Equals("source", 3))),
        Not(Equals("source", 3)),
        Compare("ordinal", "== 1 or 1 ==", 3),  # type: ignore[arg-type]
        Compare(DRAFT, "<", True),
        Like("ordinal", "start", "1"),
        Like("source", "everywhere", "1"),  # type: ignore[arg-type]
        Like(YEAR, "start", "1"),
        Equals(Metadata('a"] == 1 or metadata["b', "integer"), 1),
        Equals(LANG, 1),
        Equals(YEAR, "2024"),
        Equals(YEAR, True),
        Equals(SCORE, float("nan")),
        Equals(SCORE, float("inf")),
        Equals(DRAFT, 1),
        NotEquals(DRAFT, "true"),
        Equals(TAGS, "a"),
        HasAny(LANG, ("a",)),
        HasAny(LANG, ()),
        HasAny(Metadata('a"]', "list"), ("a",)),
        Not(Like("source", "end", "a")),
        Not(And((Like(LANG, "within", "a"),))),
        Not(HasAny("acl", ("a",))),
        Not(Or((Equals("ordinal", 1), HasAny("acl", ())))),
        HasAny(TAGS, (1,)),  # type: ignore[arg-type]
    ],
    ids=lambda where: type(where).__name__,
)
def test_a_wrong_column_or_type_is_refused(where: Filter) -> None:
    with pytest.raises(TypeError):
        compile_filter(where)

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rag.errors import FilterError
from rag.filter_language import (
    BUILTIN_FIELDS,
    KEYWORDS,
    MAX_CHARS,
    MAX_DEPTH,
    MAX_VALUES,
    METADATA_FIELDS,
    check_field_names,
    parse_filter,
)
from rag.filters import (
    And,
    Compare,
    Equals,
    FieldKind,
    Filter,
    HasAny,
    Like,
    Metadata,
    Not,
    NotEquals,
    OneOf,
    Or,
    compile_filter,
)

FIELDS: dict[str, FieldKind] = {**METADATA_FIELDS, "score": "number", "draft": "boolean"}
LANG, YEAR, SCORE = Metadata("lang", "text"), Metadata("year", "integer"), Metadata("score", "number")
DRAFT, TAGS = Metadata("draft", "boolean"), Metadata("tags", "list")
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


def parse(expression: str) -> Filter:
    return parse_filter(expression, FIELDS)


@pytest.mark.parametrize(
    ("expression", "where"),
    [
        ('lang == "ko"', Equals(LANG, "ko")),
        ("lang == 'ko'", Equals(LANG, "ko")),
        ('lang=="ko"', Equals(LANG, "ko")),
        ('title != "a"', NotEquals("title", "a")),
        ("year >= 2024", Compare(YEAR, ">=", 2024)),
        ("year<-5", Compare(YEAR, "<", -5)),
        ("score > 2.50", Compare(SCORE, ">", 2.5)),
        ("score == 2", Equals(SCORE, 2)),
        ("draft == true", Equals(DRAFT, True)),
        ("draft != false", NotEquals(DRAFT, False)),
        ('updated_at > "2026-01"', Compare("updated_at", ">", "2026-01")),
        ("document_id in ['a', 'b']", OneOf("document_id", ("a", "b"))),
        ("year in [1,2]", OneOf(YEAR, (1, 2))),
        ("year in []", OneOf(YEAR, ())),
        ('tags has "policy"', HasAny(TAGS, ("policy",))),
        ('source like "draft%"', Like("source", "start", "draft")),
        ('source like "%.md"', Like("source", "end", ".md")),
        ('source like "%a_b%"', Like("source", "within", "a_b")),
        ('source like "50\\%"', Equals("source", "50%")),
        ('source like "50\\%%"', Like("source", "start", "50%")),
        ('source like "\\\\%"', Like("source", "start", "\\")),
        ('source like ""', Equals("source", "")),
        ('source like "%"', Like("source", "start", "")),
        ('source like "%%"', Like("source", "start", "")),
        (r'lang == "\"\'\\\n\r\t"', Equals(LANG, "\"'\\\n\r\t")),
        ('lang == "두\n줄 %_"', Equals(LANG, "두\n줄 %_")),
        ('lang == "and"', Equals(LANG, "and")),
    ],
)
def test_each_comparison_has_its_node(expression: str, where: Filter) -> None:
    assert parse(expression) == where


A, B, C = (Equals(YEAR, number) for number in (1, 2, 3))


@pytest.mark.parametrize(
    ("expression", "where"),
    [
        ("year == 1 or year == 2 and year == 3", Or((A, And((B, C))))),
        ("(year == 1 or year == 2) and year == 3", And((Or((A, B)), C))),
        ("not year == 1 and year == 2", And((Not(A), B))),
        ("not (year == 1 and year == 2)", Not(And((A, B)))),
        ("not not year == 1", Not(Not(A))),
        ("year == 1 and year == 2 and year == 3", And((A, B, C))),
        (" ( year == 1 ) \n\t", A),
        ('not not lang like "%a"', Not(Not(Like(LANG, "end", "a")))),
        ('not lang like "a%" and lang like "%a"', And((Not(Like(LANG, "start", "a")), Like(LANG, "end", "a")))),
    ],
)
def test_not_binds_before_and_and_and_before_or(expression: str, where: Filter) -> None:
    assert parse(expression) == where


def test_the_contract_s_example() -> None:
    expression = 'lang == "ko" and year >= 2024 and tags has "policy" and not (source like "draft%")'
    assert parse_filter(expression, METADATA_FIELDS) == And(
        (
            Equals(LANG, "ko"),
            Compare(YEAR, ">=", 2024),
            HasAny(TAGS, ("policy",)),
            Not(Like("source", "start", "draft")),
        )
    )


@pytest.mark.parametrize(
    ("expression", "column", "told"),
    [
        ("", 1, "the name of a field is expected, not the end"),
        ("acl has 'hr'", 1, "no field 'acl'; the names are: author, document_id, draft, lang, score, source, tags,"),
        ("year == 1 and ordinal == 0", 15, "no field 'ordinal'"),
        ("year == 1 year == 2", 11, "year stands where and, or, or the end is expected"),
        ("year == 1)", 10, ") stands where"),
        ("(year == 1", 11, ") is expected, not the end"),
        ("year = 1", 6, "'=' has no meaning here; write =="),
        ("year == 1 && year == 2", 11, "write and"),
        ("year", 5, "the end cannot stand here; year holds a whole number, and takes: == != < <= > >= in"),
        ("tags == 'a'", 6, "tags holds a list of texts, and takes: has"),
        ("year has 1", 6, "has cannot stand here"),
        ("year like '1%'", 6, "like cannot stand here"),
        ("draft < true", 7, "draft holds true or false, and takes: == !="),
        ("lang '==' 'a'", 6, "cannot stand here"),
        ("year == '2024'", 9, "year is compared with '2024'; it holds a whole number"),
        ("year == 2024.5", 9, "it holds a whole number"),
        ("lang == 2024", 9, "it holds text"),
        ("lang == lang", 9, "it holds text"),
        ("lang == null", 9, "it holds text"),
        ("draft == 1", 10, "it holds true or false"),
        ("year in [1, 'a']", 13, "it holds a whole number"),
        ("year in [1, 2", 14, ", is expected"),
        ("year in [1,]", 12, "it holds a whole number"),
        ("year in 1", 9, "[ is expected"),
        ("tags has 1", 10, "tags is compared with 1; it holds text"),
        ("lang like 1", 11, "it holds text"),
        ("lang like 'a%b'", 11, "% at its start, at its end or at both"),
        ("lang like '%a%b%'", 11, "write \\% for a percent sign"),
        ("lang == 'a\\qb'", 11, "\\q is no escape"),
        ("lang == '50\\%'", 12, "only in the pattern of like"),
        ("lang == 'abc", 9, "no closing '"),
        ("lang == 'abc\\'", 9, "no closing '"),
        ("year == 0x10", 9, "this is no number"),
        ("year == -", 9, "this is no number"),
        ("year == 1_000", 9, "this is no number"),
        ("year == 9223372036854775808", 9, "64 bits"),
        ("score == 1" + "0" * 30, 10, "at most 30"),
        ("year == 1; drop", 10, "';' has no meaning here"),
        ("not lang like '%a'", 15, "within not, a pattern may have % at its end only"),
        ("not (lang == 'a' or (lang like '%a%'))", 32, "within not"),
        ("언어 == 'ko'", 1, "'언' has no meaning here"),
        ("year == 1 or", 13, "the name of a field is expected"),
        ("and year == 1", 1, "the name of a field is expected, not and"),
        ("LANG == 'ko'", 1, "no field 'LANG'"),
    ],
)
def test_a_mistake_is_told_with_its_column(expression: str, column: int, told: str) -> None:
    with pytest.raises(FilterError) as raised:
        parse(expression)
    assert raised.value.column == column
    assert told in str(raised.value)
    assert f"column {column}" in str(raised.value)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_what_is_too_long_too_deep_or_too_many_is_refused() -> None:
    longest = "year == 1" + " " * (MAX_CHARS - 9)
    assert parse(longest) == A
    deepest = "(" * MAX_DEPTH + "year == 1" + ")" * MAX_DEPTH
    assert parse(deepest) == A
    most = "year in [" + ",".join(["1"] * MAX_VALUES) + "]"
    assert parse(most) == OneOf(YEAR, (1,) * MAX_VALUES)
    for expression, column in [
        (longest + " ", MAX_CHARS + 1),
        (f"({deepest})", MAX_DEPTH + 2),
        ("not " * (MAX_DEPTH + 1) + "year == 1", 4 * (MAX_DEPTH + 1) + 1),
        (most.replace("]", ",1]"), len(most) + 1),
    ]:
        with pytest.raises(FilterError) as raised:
            parse(expression)
        assert raised.value.column == column


# --- properties ---


def quoted(text: str, quote: str) -> str:
    """The text as the language writes it."""
    return quote + text.replace("\\", "\\\\").replace(quote, f"\\{quote}") + quote


def written(where: Filter, quote: str) -> str:
    """The tree as the language writes it."""

    def value(given: Any) -> str:
        if isinstance(given, bool):
            return "true" if given else "false"
        return quoted(given, quote) if isinstance(given, str) else str(given)

    def name(column: Any) -> str:
        return column.name if isinstance(column, Metadata) else column

    match where:
        case Equals(column, given):
            return f"{name(column)} == {value(given)}"
        case NotEquals(column, given):
            return f"{name(column)}!={value(given)}"
        case Compare(column, sign, given):
            return f"{name(column)} {sign} {value(given)}"
        case OneOf(column, values):
            return f"{name(column)} in [{' , '.join(map(value, values))}]"
        case HasAny(column, (text,)):
            return f"{name(column)} has {value(text)}"
        case Like(column, place, text):
            escaped = quoted(text, quote)[1:-1].replace("%", "\\%")
            patterns = {"start": f"{escaped}%", "end": f"%{escaped}", "within": f"%{escaped}%"}
            return f"{name(column)} like {quote}{patterns[place]}{quote}"
        case Not(inner):
            return f"not ({written(inner, quote)})"
        case And(filters):
            return " and ".join(f"({written(part, quote)})" for part in filters)
        case Or(filters):
            return "\tor\n".join(f"({written(part, quote)})" for part in filters)
    raise AssertionError(where)


TEXT_COLUMN: Any = st.sampled_from([*BUILTIN_FIELDS, LANG])
SIGN: Any = st.sampled_from(["<", "<=", ">", ">="])
REVERSIBLE: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Equals, TEXT_COLUMN, ANY_TEXT),
    st.builds(NotEquals, TEXT_COLUMN, ANY_TEXT),
    st.builds(Compare, TEXT_COLUMN, SIGN, ANY_TEXT),
    st.builds(OneOf, TEXT_COLUMN, st.lists(ANY_TEXT, max_size=3).map(tuple)),
    st.builds(Like, TEXT_COLUMN, st.just("start"), ANY_TEXT.filter(bool)),
    st.builds(HasAny, st.just(TAGS), st.tuples(ANY_TEXT)),
    st.builds(Compare, st.just(YEAR), SIGN, st.integers(-(2**63) + 1, 2**63 - 1)),
    st.builds(OneOf, st.just(YEAR), st.lists(st.integers(-9, 9), max_size=3).map(tuple)),
    st.builds(Equals, st.just(SCORE), st.decimals(-1000, 1000, places=3).map(float)),
    st.builds(Equals, st.just(DRAFT), st.booleans()),
)
ONE_WAY = st.builds(Like, TEXT_COLUMN, st.sampled_from(["end", "within"]), ANY_TEXT.filter(bool))


def combined(leaf: st.SearchStrategy[Filter], *more: Any) -> st.SearchStrategy[Filter]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(And, st.lists(inner, min_size=2, max_size=3).map(tuple)),
            st.builds(Or, st.lists(inner, min_size=2, max_size=3).map(tuple)),
            *(st.builds(node, inner) for node in more),
        ),
        max_leaves=6,
    )


TREE = combined(st.one_of(ONE_WAY, combined(REVERSIBLE, Not)))


@given(TREE, st.sampled_from("\"'"))
def test_what_is_written_is_read_back(where: Filter, quote: str) -> None:
    assert parse(written(where, quote)) == where


WORDS = st.sampled_from(
    [
        *sorted(KEYWORDS),
        "lang",
        "year",
        "tags",
        "score",
        "acl",
        "==",
        "<=",
        "(",
        ")",
        "[",
        "]",
        ",",
        "1",
        '"a',
        "'",
        "%",
    ]
)


def parse_or_mistake(expression: str) -> Filter | FilterError:
    try:
        return parse(expression)
    except FilterError as error:
        return error


@given(st.one_of(ANY_TEXT, st.lists(WORDS, max_size=12).map(" ".join), st.text("()[]\"'\\%=<> \n-1a", max_size=30)))
@example("(" * MAX_CHARS)
@example('"' * MAX_CHARS)
@example("'\\" * 1000)
@example("-" * MAX_CHARS)
def test_any_text_is_a_tree_that_compiles_or_a_mistake_within_it(expression: str) -> None:
    found = parse_or_mistake(expression)
    if isinstance(found, FilterError):
        assert 1 <= found.column <= len(expression) + 1
        assert found.reason
    else:
        assert compile_filter(found)


@pytest.mark.parametrize(
    "name", ["", "a b", "1a", "a.b", "언어", "a" * 65, 'a"', "and", "has", "source", "document_id"]
)
def test_a_name_that_no_expression_could_use_is_not_declared(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a field"):
        check_field_names({"lang": "text", name: "text"})


def test_the_default_fields_can_be_named() -> None:
    assert check_field_names(METADATA_FIELDS) == METADATA_FIELDS

"""What a filter means to every store: its searches and the evaluation in memory agree, whatever the values hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rag.columns import to_column
from rag.filter_language import METADATA_FIELDS, parse_filter
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
)
from rag.types import StoredChunk
from tests.filter_fake import matches
from tests.store_checks import ODD_TEXTS, Store, dense_ids, lexical_ids, row, vector

pytestmark = pytest.mark.usefixtures("lexical")  # both searches are compared

LANG, YEAR, SCORE = Metadata("lang", "text"), Metadata("year", "integer"), Metadata("score", "number")
DRAFT, TAGS = Metadata("draft", "boolean"), Metadata("tags", "list")
OWNER: dict[str, Any] = {"groups": None}


def documents(*metadata: dict[str, Any]) -> list[StoredChunk]:
    return [row(f"c{n}", f"d{n}", analyzed="word", metadata=given) for n, given in enumerate(metadata)]


async def found(store: Store, collection: str, where: Filter | str) -> list[int]:
    """The numbers of the documents that a filter means, by both searches."""
    tree = parse_filter(where, METADATA_FIELDS) if isinstance(where, str) else where
    dense = await dense_ids(store, collection, vector(1), 50, where=tree, **OWNER)
    assert sorted(await lexical_ids(store, collection, "word", 50, where=tree, **OWNER)) == dense
    return [int(chunk_id[1:]) for chunk_id in dense]


# --- values ---


@pytest.mark.parametrize("value", [*ODD_TEXTS, "50% off", "a_b", "\\%", "\ud800", "가" * 3000, "${x}", "' or 1 == 1"])
async def test_an_odd_value_is_found_by_itself_and_by_its_pieces(store: Store, collection: str, value: str) -> None:
    others = [{"lang": "other", "tags": ["x"]}, {"lang": value + "x", "tags": [value + "x", "x"]}, {}]
    store.upsert(collection, documents({"lang": value, "tags": ["x", value]}, *others))
    assert store.stored_documents(collection)[0].metadata == {"lang": value, "tags": ["x", value]}
    assert await found(store, collection, Equals(LANG, value)) == [0]
    assert await found(store, collection, NotEquals(LANG, value)) == [1, 2]
    assert await found(store, collection, Not(Equals(LANG, value))) == [1, 2, 3]
    assert await found(store, collection, Not(HasAny(TAGS, (value,)))) == [1, 2, 3]
    assert await found(store, collection, Not(Like(LANG, "start", value + "x"))) == [0, 1, 3]
    assert await found(store, collection, OneOf(LANG, ("y", value))) == [0]
    assert await found(store, collection, HasAny(TAGS, ("y", value))) == [0]
    before = [0, 1] if to_column("other") <= to_column(value) else [0]
    assert await found(store, collection, Compare(LANG, "<=", value)) == before
    assert 0 in await found(store, collection, Like(LANG, "start", value[:2]))
    assert 0 in await found(store, collection, Like(LANG, "end", value[-2:]))
    assert 0 in await found(store, collection, Like(LANG, "within", value[1:3]))
    assert await found(store, collection, Like(LANG, "start", value + "x")) == [2]


@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ('lang like "100\\%"', [0]),
        ('lang like "100\\%%"', [0, 2]),
        ('lang like "%\\%"', [0]),
        ('lang like "%\\% %"', [2]),
        ('lang like "a_b"', [3]),
        ('lang like "a_b%"', [3]),
        ('lang like "%a_b"', [3]),
        ('lang like "%_%"', [3]),
        ('lang like "%.%"', [5]),
        ('lang like "%\\\\"', [6]),
        ('lang like "%\\\\%"', [6, 7]),
        ('lang like "\\\\%"', [7]),
        ('lang like "%"', [0, 1, 2, 3, 4, 5, 6, 7]),
        ('lang like ""', []),
    ],
)
async def test_in_a_pattern_only_the_outer_percent_signs_are_wild(
    store: Store, collection: str, expression: str, numbers: list[int]
) -> None:
    texts = ["100%", "100x", "100% sure", "a_b", "axb", "a.b", "a\\", "\\a"]
    store.upsert(collection, documents(*({"lang": text} for text in texts)))
    assert await found(store, collection, expression) == numbers


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        (Equals(YEAR, 2024), [0]),
        (NotEquals(YEAR, 2024), [1, 2]),
        (Compare(YEAR, "<", 0), [1]),
        (Compare(YEAR, ">=", 2**62), [2]),
        (Equals(YEAR, 2**62 + 1), [2]),
        (Equals(YEAR, 2**62), []),
        (Equals(YEAR, -(2**63) + 1), []),
        (OneOf(YEAR, (-5, 2024)), [0, 1]),
        (Compare(SCORE, ">", 2), [0, 1]),
        (Equals(SCORE, 3), [1]),
        (Equals(SCORE, 2.5), [0]),
        (OneOf(SCORE, (2.5, 3)), [0, 1]),
        (Compare(SCORE, "<", -0.0000001), [2]),
        (Equals(DRAFT, True), [0]),
        (NotEquals(DRAFT, True), [1]),
        (Equals("title", "title of d1"), [1]),
        (Compare("updated_at", ">", "2026-10"), [0, 1, 2, 3]),
        (Like("document_id", "start", "d"), [0, 1, 2, 3]),
        (OneOf("chunk_id", ("c1", "c3", "c9")), [1, 3]),
        (OneOf("source", ()), []),
        (And(()), [0, 1, 2, 3]),
        (Or(()), []),
        (Not(Or(())), [0, 1, 2, 3]),
    ],
)
async def test_numbers_booleans_and_columns(store: Store, collection: str, where: Filter, numbers: list[int]) -> None:
    held: list[dict[str, Any]] = [
        {"year": 2024, "score": 2.5, "draft": True},
        {"year": -5, "score": 3, "draft": False},
        {"year": 2**62 + 1, "score": -1e-6, "draft": None},
        {},
    ]
    store.upsert(collection, documents(*held))
    assert await found(store, collection, where) == numbers


@pytest.mark.parametrize(
    ("expression", "numbers"),
    [
        ('lang == "ko"', [0]),
        ('lang != "ko"', [1]),
        ('not lang == "ko"', [1, 2, 3, 4]),
        ('not lang != "ko"', [0, 2, 3, 4]),
        ('lang < "zz"', [0, 1]),
        ('not lang < "zz"', [2, 3, 4]),
        ('lang in ["ko"]', [0]),
        ('not lang in ["ko", "en"]', [2, 3, 4]),
        ('lang like "%o"', [0]),
        ('not not lang like "%o%"', [0]),
        ('not lang like "k%"', [1, 2, 3, 4]),
        ('tags has "a"', [0]),
        ('not tags has "a"', [1, 2, 3, 4]),
        ("year != 2024", [1]),
        ("not year >= 2024", [1, 2, 3, 4]),
        ('year < 2024 or lang == "ko"', [0, 1]),
        ('not (year < 2024 or lang == "ko")', [2, 3, 4]),
        ("not not year == 2024", [0]),
    ],
)
async def test_a_field_that_is_absent_or_of_another_type_makes_every_comparison_false(
    store: Store, collection: str, expression: str, numbers: list[int]
) -> None:
    held: list[dict[str, Any]] = [
        {"lang": "ko", "year": 2024, "tags": ["a", "b"]},
        {"lang": "en", "year": 2000, "tags": []},
        {},
        {"lang": 5, "year": "2024", "tags": "a"},
        {"lang": None, "year": None, "tags": [1, None]},
    ]
    store.upsert(collection, documents(*held))
    assert await found(store, collection, expression) == numbers


async def test_a_filter_at_the_language_s_limits_is_taken(store: Store, collection: str) -> None:
    store.upsert(collection, documents({"year": 1}, {"year": 2}))
    for expression in (
        " or ".join(["year==1"] * 181),
        "not " * 20 + "year == 1",
        "not (" + " and ".join(["year==2"] * 165) + ")",
        "(" * 20 + "year == 1" + ")" * 20,
        "".join(f"year==1 {word} not tags has 'a' and (" for word in ("or", "and") * 10) + "year!=2" + ")" * 20,
        "year in [" + ",".join(map(str, range(100))) + "]",
        'lang in ["' + "a" * 1970 + '"] or year==1',
    ):
        assert await found(store, collection, expression) in ([0], [0, 1])


# --- access ---


async def test_a_caller_sees_open_documents_and_those_of_its_groups(store: Store, collection: str) -> None:
    acls: list[tuple[str, ...]] = [(), ("hr",), ("eng", "hr"), ("eng",), ("",), ('h"r',), ("h",)]
    rows = [row(f"c{n}", f"d{n}", analyzed="word", acl=acl) for n, acl in enumerate(acls)]
    store.upsert(collection, rows)
    for groups, numbers in [
        (frozenset(), [0]),
        (frozenset({"hr"}), [0, 1, 2]),
        (frozenset({"hr", "eng"}), [0, 1, 2, 3]),
        (frozenset({""}), [0, 4]),
        (frozenset({'h"r'}), [0, 5]),
        (frozenset({"none", '"]) or array_length(acl) >= 0 or array_contains_any(acl, ["'}), [0]),
        (None, [0, 1, 2, 3, 4, 5, 6]),
    ]:
        wanted = [f"c{n}" for n in numbers]
        assert await dense_ids(store, collection, vector(1), groups=groups) == wanted
        assert sorted(await lexical_ids(store, collection, "word", groups=groups)) == wanted
    assert await dense_ids(store, collection, vector(1)) == ["c0"]
    assert await lexical_ids(store, collection, "word") == ["c0"]


@pytest.mark.parametrize(
    "where",
    [Or((And(()), Equals("ordinal", 0))), Not(Or(())), HasAny("acl", ("hr",)), Not(Empty("acl"))],
    ids=["or", "not", "acl", "not_empty"],
)
async def test_no_filter_shows_what_the_groups_do_not(store: Store, collection: str, where: Filter) -> None:
    store.upsert(collection, [row("open", "d1", analyzed="word"), row("closed", "d2", analyzed="word", acl=("hr",))])
    for groups in (frozenset[str](), frozenset({"eng"})):
        assert "closed" not in await dense_ids(store, collection, vector(1), where=where, groups=groups)
        assert "closed" not in await lexical_ids(store, collection, "word", where=where, groups=groups)


async def test_what_is_left_out_takes_no_place_among_the_first(store: Store, collection: str) -> None:
    near = [row(f"n{n}", f"n{n}", analyzed="word word", acl=("hr",), metadata={"year": 1}) for n in range(20)]
    far = row("far", "far", analyzed="word other", vector=vector(1, 1), metadata={"year": 2})
    store.upsert(collection, [*near, far])
    assert await dense_ids(store, collection, vector(1), 1) == ["far"]
    assert await lexical_ids(store, collection, "word", 1) == ["far"]
    where = Equals(YEAR, 2)
    assert await dense_ids(store, collection, vector(1), 1, where=where, **OWNER) == ["far"]
    assert await lexical_ids(store, collection, "word", 1, where=where, **OWNER) == ["far"]


# --- any tree over any rows ---

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=6)
TEXT = st.one_of(
    st.sampled_from(["", "a", "ab", "b", "%", "_", "\\", '"', "'", "\n", "␛", "가", "a\nb", "a%b"]), ANY_TEXT
)
NUMBER = st.sampled_from([-3, -1, 0, 1, 2, 2024, 2**62, -(2**62)])
FLOAT = st.sampled_from([-2.5, 0.0, 0.1, 1, 2, 2.5, 1e10])
HELD = st.fixed_dictionaries(
    {},
    optional={
        "lang": st.one_of(TEXT, st.sampled_from([None, 1, True, ["a"]])),
        "year": st.one_of(NUMBER, st.sampled_from([None, "1", True, [1]])),
        "score": st.one_of(FLOAT, st.sampled_from([None, "1", False, {}])),
        "draft": st.one_of(st.booleans(), st.sampled_from([None, 0, "true"])),
        "tags": st.one_of(st.lists(TEXT, max_size=3), st.sampled_from([None, 1, "a", {"a": 1}])),
    },
)
ROW = st.tuples(HELD, TEXT, TEXT, st.lists(st.sampled_from(["hr", "eng", '"', ""]), max_size=2, unique=True))
TEXT_COLUMN: Any = st.sampled_from(["source", "title", LANG])
SIGN: Any = st.sampled_from(["<", "<=", ">", ">="])
REVERSIBLE: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Equals, TEXT_COLUMN, TEXT),
    st.builds(NotEquals, TEXT_COLUMN, TEXT),
    st.builds(Compare, TEXT_COLUMN, SIGN, TEXT),
    st.builds(OneOf, TEXT_COLUMN, st.lists(TEXT, max_size=3).map(tuple)),
    st.builds(Like, TEXT_COLUMN, st.just("start"), TEXT),
    st.builds(HasAny, st.just(TAGS), st.lists(TEXT, max_size=2).map(tuple)),
    st.builds(Equals, st.just(YEAR), NUMBER),
    st.builds(NotEquals, st.just(YEAR), NUMBER),
    st.builds(Compare, st.just(YEAR), SIGN, NUMBER),
    st.builds(OneOf, st.just(YEAR), st.lists(NUMBER, max_size=3).map(tuple)),
    st.builds(Equals, st.just(SCORE), FLOAT),
    st.builds(NotEquals, st.just(SCORE), FLOAT),
    st.builds(Compare, st.just(SCORE), SIGN, FLOAT),
    st.builds(OneOf, st.just(SCORE), st.lists(FLOAT, max_size=3).map(tuple)),
    st.builds(Equals, st.just(DRAFT), st.booleans()),
    st.builds(NotEquals, st.just(DRAFT), st.booleans()),
)
ONE_WAY: st.SearchStrategy[Filter] = st.builds(Like, TEXT_COLUMN, st.sampled_from(["end", "within"]), TEXT)


def combined(leaf: st.SearchStrategy[Filter], *more: Any) -> st.SearchStrategy[Filter]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(And, st.lists(inner, max_size=3).map(tuple)),
            st.builds(Or, st.lists(inner, max_size=3).map(tuple)),
            *(st.builds(node, inner) for node in more),
        ),
        max_leaves=5,
    )


TREE = combined(st.one_of(ONE_WAY, combined(REVERSIBLE, Not)))
GROUPS = st.one_of(st.none(), st.frozensets(st.sampled_from(["hr", "eng", '"', "", "none"])))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=8), st.lists(st.tuples(TREE, GROUPS), min_size=4, max_size=4))
async def test_the_store_s_searches_and_the_evaluation_in_memory_agree(
    store: Store, collection: str, rows: list[Any], asked: list[tuple[Filter, frozenset[str] | None]]
) -> None:
    stored = [
        row(f"c{n}", f"d{n}", analyzed="word", metadata=held, source=source, title=title, acl=tuple(acl))
        for n, (held, source, title, acl) in enumerate(rows)
    ]
    store.upsert(collection, stored)
    for where, groups in asked:
        meant = [
            one.chunk.chunk_id
            for one in stored
            if matches(where, one) and (groups is None or not one.acl or groups & set(one.acl))
        ]
        assert await dense_ids(store, collection, vector(1), where=where, groups=groups) == meant
        assert sorted(await lexical_ids(store, collection, "word", where=where, groups=groups)) == meant
    store.delete(collection, And(()))

"""What a collection remembers of how it was built."""

from __future__ import annotations

import json

import pytest

from rag.errors import InputError
from rag.store_rows import (
    BuiltIndex,
    build_schema,
    check_collection_name,
    has_bm25,
    read_description,
    write_description,
)
from rag.types import IndexFingerprint

FINGERPRINT = IndexFingerprint("m", 2, True, "", "", "s", "1")


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ("v2.3.5-lite", False),
        ("2.4.23", False),
        ("v1.99.0", False),
        ("2.5.0", True),
        ("v2.5.10-gpu", True),
        ("2.10", True),
        ("v3.0.0", True),
        ("", True),
        ("master-20260101", True),
    ],
)
def test_a_server_tells_by_its_version_whether_it_has_bm25(version: str, has: bool) -> None:
    assert has_bm25(version) is has


@pytest.mark.parametrize("lexical", [True, False])
def test_a_description_remembers_the_index(lexical: bool) -> None:
    built = BuiltIndex(FINGERPRINT, lexical)
    assert read_description("c", write_description(built)) == built


@pytest.mark.parametrize("lexical", [True, False])
def test_a_schema_has_the_columns_of_words_only_with_bm25(lexical: bool) -> None:
    built = BuiltIndex(FINGERPRINT, lexical)
    schema = build_schema(built)
    assert ({"analyzed", "sparse"} <= {field.name for field in schema.fields}) is lexical
    assert len(schema.functions) == int(lexical)
    assert set(built.indexed_columns) <= {field.name for field in schema.fields}


@pytest.mark.parametrize("name", ["rag_index_versions", "docs__v1", "docs__v07", "a__v1__v23"])
def test_a_name_that_is_kept_for_index_versions_is_refused_but_for_those(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is kept for index versions; choose another name"):
        check_collection_name(name)


@pytest.mark.parametrize("name", ["docs__v", "docs_v1", "docs__v1a", "__v", "rag_index_versions_"])
def test_a_name_that_only_looks_like_it_is_taken(name: str) -> None:
    check_collection_name(name)


def test_an_index_version_has_a_name_of_its_form() -> None:
    check_collection_name("docs__v1", of_version=True)
    with pytest.raises(InputError, match="255 at most"):
        check_collection_name("a" * 252 + "__v1", of_version=True)
    with pytest.raises(InputError, match="kept for index versions"):
        check_collection_name("rag_index_versions", of_version=True)


def test_a_collection_from_before_token_vectors_and_leads_is_read_as_one_without() -> None:
    remembered = json.loads(write_description(BuiltIndex(FINGERPRINT)))
    del remembered["fingerprint"]["token_vectors"], remembered["leads"]
    assert read_description("docs", json.dumps(remembered)) == BuiltIndex(FINGERPRINT, leads=False)

"""What a new index version still lacks of the old one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.copy_chunks import Row, compare_rows
from ingest.run import is_cut
from rag.language import Language
from rag.step_settings import EmbedderSettings
from rag.types import Chunk, StoredDocument

DOCUMENT = StoredDocument("d", "d.md", "t", "r", 1, None, (), {}, "2026-01-01")


def row(chunk_id: str, updated_at: str = "") -> Row:
    return Chunk(chunk_id, "d", "r", 0, chunk_id, 0, 1), replace(DOCUMENT, updated_at=updated_at)


sides = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("12"))


@given(sides, sides)
def test_copying_and_removing_what_differs_makes_the_sides_equal(old: dict[str, str], new: dict[str, str]) -> None:
    made = dict(new)
    differing = compare_rows(
        [row(name, at) for name, at in sorted(old.items())], [row(name, at) for name, at in sorted(new.items())]
    )
    for (chunk, document), is_old in differing:
        if is_old:
            assert made.get(chunk.chunk_id) != document.updated_at  # what is there already is not made again
            made[chunk.chunk_id] = document.updated_at
        else:
            del made[chunk.chunk_id]
    assert made == old


def test_what_is_copied_meanwhile_is_not_taken_for_a_row_of_the_new_side() -> None:
    made = {"b": row("b"), "f": row("f")}

    def pages_of_one() -> object:
        after = ""
        while ids := sorted(name for name in made if name > after):
            after = ids[0]
            yield made[after]

    old = [row(name) for name in "abcdef"]
    for (chunk, document), is_old in compare_rows(old, pages_of_one()):  # type: ignore[arg-type]
        assert is_old
        made[chunk.chunk_id] = (chunk, document)
    assert sorted(made) == list("abcdef")


@pytest.mark.parametrize(
    ("text", "languages", "expected"),
    [
        pytest.param("word " * 15, ("latin",), False, id="fits"),
        pytest.param("word " * 16, ("latin",), True, id="too_long"),
        pytest.param("단어 " * 16, ("latin",), False, id="not_understood"),
        pytest.param("단어 " * 16, ("latin", "ko"), True, id="understood"),
        pytest.param("단어 " * 16, None, True, id="everything_understood"),
    ],
)
def test_only_a_text_that_the_embedder_understands_counts_as_cut(
    text: str, languages: tuple[Language, ...] | None, expected: bool
) -> None:
    embedder = EmbedderSettings(model="m", languages=languages, max_tokens=16, passage_prefix="passage: ")
    assert is_cut(embedder, lambda given: len(given.split()), text) is expected

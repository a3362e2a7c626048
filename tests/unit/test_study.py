"""What the notebooks compute, on cases that can be done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.compare import Judged
from eval.study import (
    Place,
    first_rank,
    format_ranks,
    read_chars,
    read_places,
    recall_curve,
    reciprocal_rank,
    relevant_ranks,
    run_rag,
    success,
)
from eval.study_answers import Expected, coverage_accuracy, is_right, read_expected
from rag.errors import InputError
from rag.types import Answer, Chunk, Citation, Hit, Scores, Usage

INFINITE = float("inf")
PLACE = Place("How many?", "fact", "a.md", 100, 120)
FACTS = {"rule": "fact", "source": "a.md", "start_char": 100, "end_char": 120, "value": "5"}


def make_hit(source: str, start: int, end: int) -> Hit:
    chunk = Chunk(f"{source}:{start}", source, "r1", 0, "x" * (end - start), start, end)
    return Hit(chunk, source, source, 1.0, Scores())


def make_answer(*citations: Citation) -> Answer:
    return Answer("answered", "Five.", "extracted", None, citations, (), 0.9, (), "default", "v1", None, Usage(), {})


CITATION = Citation(1, 0, 5, "It is  Five kilometres.", True, "d1", "c1", "A", "a.md", None, 110, 130, 0.9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"_id": "q1", "text": "How many?", "metadata": FACTS},
        {"_id": "q2", "text": "What is it?", "metadata": {**FACTS, "rule": "heading", "source": "b.md"}},
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


# --- places ---


def test_a_chunk_is_right_when_it_holds_the_whole_answer() -> None:
    hits = [
        make_hit("b.md", 90, 130),
        make_hit("a.md", 101, 150),
        make_hit("a.md", 50, 119),
        make_hit("a.md", 100, 120),
    ]
    assert first_rank(hits, PLACE) == 4
    assert first_rank(hits[:3], PLACE) == INFINITE


def test_what_is_read_ends_with_the_chunk_that_holds_the_answer() -> None:
    hits = [make_hit("b.md", 0, 30), make_hit("a.md", 90, 130), make_hit("a.md", 0, 500)]
    assert read_chars(hits, PLACE) == 30 + 40
    assert read_chars(hits[:1], PLACE) == INFINITE


def test_places_are_read_from_a_generated_set(folder: Path) -> None:
    assert read_places(folder) == {"q1": PLACE, "q2": Place("What is it?", "heading", "b.md", 100, 120)}


def test_a_set_without_places_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "How many?"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"KeyError: 'metadata'.*rag eval generate"):
        read_places(tmp_path)


# --- ranks ---

JUDGED = Judged(
    {"q1": ["d3", "d1", "d2"], "q2": ["d9"], "q4": ["d1"]},
    {"q1": {"d1": 1, "d2": 2, "d3": 0}, "q2": {"d1": 1}, "q3": {"d1": 1}},
    {},
)


def test_the_rank_is_that_of_the_first_relevant_document() -> None:
    assert relevant_ranks(JUDGED) == {"q1": 2, "q2": INFINITE, "q3": INFINITE}
    assert format_ranks(relevant_ranks(JUDGED)) == {"q1": 2, "q2": "-", "q3": "-"}


def test_recall_is_the_mean_fraction_of_the_relevant_found() -> None:
    assert recall_curve(JUDGED, [1, 2, 3, 50]) == pytest.approx([0, 0.5 / 3, 1 / 3, 1 / 3])


def test_success_and_reciprocal_rank_count_what_was_not_found_as_0() -> None:
    ranks = [1, 4, 20, INFINITE]
    assert [success(ranks, depth) for depth in (1, 5, 20)] == [0.25, 0.5, 0.75]
    assert reciprocal_rank(ranks) == pytest.approx((1 + 1 / 4) / 4)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(InputError, match=r"RAG_PROFILE=none rag doctor ended with 2: .*none"):
        run_rag("doctor", RAG_PROFILE="none")


# --- answers ---


@pytest.mark.parametrize(
    ("start", "end", "source", "right"),
    [(110, 130, "a.md", True), (119, 130, "a.md", True), (120, 130, "a.md", False), (110, 130, "b.md", False)],
)
def test_an_answer_is_right_when_a_quote_overlaps_the_place(start: int, end: int, source: str, right: bool) -> None:
    citation = replace(CITATION, char_start=start, char_end=end, source=source)
    assert is_right(make_answer(citation), Expected("How many?", PLACE)) is right


def test_an_answer_is_right_when_a_quote_holds_a_phrase_but_for_case_and_spaces() -> None:
    assert is_right(make_answer(CITATION), Expected("How many?", phrases=("six", "five\nkilometres")))
    assert not is_right(make_answer(CITATION), Expected("How many?", phrases=("six",)))


def test_where_nothing_is_expected_no_answer_is_right() -> None:
    expected = Expected("How many?")
    assert not expected.answerable
    assert not is_right(make_answer(CITATION), expected)


def test_questions_about_held_out_documents_have_no_answer(folder: Path) -> None:
    first, second = read_expected(folder, {"b.md"})
    assert first == Expected("How many?", PLACE)
    assert second == Expected("What is it?")


def test_phrases_are_read_from_answers(folder: Path) -> None:
    rows = [{"_id": "q2", "answers": ["5", "five"]}, {"_id": "q1", "answers": [], "unanswerable": True}]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_expected(folder) == [Expected("What is it?", phrases=("5", "five")), Expected("How many?")]


def test_answers_of_unknown_queries_are_refused(folder: Path) -> None:
    (folder / "answers.jsonl").write_text('{"_id": "q9", "answers": []}', encoding="utf-8")
    with pytest.raises(InputError, match="does not fit"):
        read_expected(folder)


def test_coverage_and_accuracy_as_the_threshold_falls() -> None:
    coverage, accuracy = coverage_accuracy([0.9, 0.2, None, 0.5, 0.9], [True, False, False, True, False])
    np.testing.assert_allclose(coverage, [2 / 5, 3 / 5, 4 / 5])
    np.testing.assert_allclose(accuracy, [1 / 2, 2 / 3, 2 / 4])

"""Word search by three analyses: BM25, the terms, known items, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eval.korean_lexical import Bm25, ask_pages, bigrams, format_rows, measure, rank_by_words, split_files, words
from rag.config import load_settings
from rag.errors import InputError
from tests.fakes import _bm25
from tests.ingest_fakes import count_words

SEOUL = "서울은 한국의 수도이며 인구는 940만 명이다."
BUSAN = "부산은 한국의 항구 도시이며 해마다 영화제를 연다."


def test_words_are_runs_in_lower_case() -> None:
    assert words("FastAPI에서 8000번, x_y!") == ["fastapi에서", "8000번", "x_y"]


def test_bigrams_are_of_hangul_alone() -> None:
    assert bigrams("FastAPI에서는 서울 시 8000번") == ["fastapi", "에서", "서는", "서울", "시", "8000", "번"]


def test_scores_are_those_of_the_formula() -> None:
    texts = ["a b b c", "a", "c c d e f", "b"]
    for query in ("a", "b c", "b b e", "x"):
        expected = _bm25(query.split(), [text.split() for text in texts])
        assert Bm25(texts, str.split).scores([query])[0] == pytest.approx(expected)
    assert np.shape(Bm25(texts, str.split).scores(["a", "b", "c"])) == (3, 4)


def test_a_document_is_ranked_by_its_best_chunk_and_ties_keep_the_order() -> None:
    chunks = [("one", "a x"), ("two", "b b"), ("two", "b x"), ("one", "b x"), ("three", "c c")]
    assert rank_by_words(["b", "x", "y"], chunks, str.split, 10) == [["two", "one"], ["one", "two"], []]
    assert rank_by_words(["x"], chunks, str.split, 1) == [["one"]]


def test_each_set_and_folder_has_a_row_for_each_analysis(tmp_path: Path) -> None:
    questions = [{"id": "q1", "question": "한국의 수도는?"}, {"id": "q2", "question": "영화제가 열리는 도시는?"}]
    paragraphs = [{"context": text, "qas": [one]} for text, one in zip((SEOUL, BUSAN), questions, strict=True)]
    squad = tmp_path / "cities.json"
    squad.write_text(json.dumps({"data": [{"title": "도시", "paragraphs": paragraphs}]}), encoding="utf-8")
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "seoul.md").write_text(f"# 서울의 인구\n\n{SEOUL}\n", encoding="utf-8")
    (pages / "busan.md").write_text(f"# 부산\n\n{BUSAN}\n", encoding="utf-8")
    rows = measure([str(squad)], [pages], load_settings(profile="embedded"))
    assert [(row["set"], row["analysis"]) for row in rows] == [
        (name, analysis) for name in ("cities", "pages") for analysis in ("rag.analyze", "words", "bigrams")
    ]
    assert [row["nDCG@10"].mean for row in rows[::3]] == [1.0, 1.0]  # 수도 and 도시 are there with other particles
    assert rows[1]["nDCG@10"].mean < 1
    assert (rows[1]["change"].won, rows[0]["change"].change.mean) == (0, 0.0)
    lines = format_rows(rows).splitlines()
    assert len(lines) == 2 + 6
    assert "rag.analyze" in lines[2]


def test_a_question_of_two_pages_is_asked_once_and_a_shared_heading_never(tmp_path: Path) -> None:
    for name in ("a", "b"):
        text = f"# 서울의 인구\n\n{SEOUL}\n\n## {name} 항구의 영화제\n\n항구 이야기.\n"
        (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
    settings = load_settings(profile="embedded")
    pages = list(split_files(sorted(tmp_path.glob("*.md")), settings, count_words))
    asked = ask_pages(tmp_path, pages)
    assert len(asked.queries) == len(set(asked.queries.values()))
    assert not any("서울의 인구에 대해" in text for text in asked.queries.values())
    assert {Path(page).name for grades in asked.qrels.values() for page in grades} == {"a.md", "b.md"}


def test_a_folder_without_sentences_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("단어", encoding="utf-8")
    pages = list(split_files([tmp_path / "a.txt"], load_settings(profile="embedded"), count_words))
    with pytest.raises(InputError, match="gives no questions"):
        ask_pages(tmp_path, pages)

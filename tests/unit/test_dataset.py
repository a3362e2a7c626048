from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.dataset import Dataset, SetDocument, pool_datasets, read_dataset, read_documents, sample_queries
from rag.errors import InputError


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_beir(folder: Path, texts: list[str], qrels: str = "q1\td0\t1\nq2\td0\t0\n") -> Path:
    folder.mkdir()
    rows = [{"_id": f"d{number}", "title": "Title", "text": text} for number, text in enumerate(texts)]
    write_lines(folder / "corpus.jsonl", rows)
    write_lines(folder / "queries.jsonl", [{"_id": f"q{number}", "text": f"Question {number}?"} for number in (1, 2)])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels, encoding="utf-8")
    return folder


def make_squad(path: Path) -> Path:
    questions = [
        {"id": "a", "question": "어디?", "answers": [{"text": "여기", "answer_start": 0}]},
        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": "여기.", "qas": questions}, {"context": "Nothing.", "qas": []}]
    path.write_text(json.dumps({"data": [{"title": "서울", "paragraphs": paragraphs}]}), encoding="utf-8")
    return path


def one_set(name: str, texts: list[str], qrels: dict[str, dict[str, int]]) -> Dataset:
    documents = tuple(SetDocument(f"d{number}", "", text) for number, text in enumerate(texts))
    return Dataset(name, documents, {query: f"text of {query}" for query in qrels}, qrels)


# --- documents ---


def test_a_folder_in_beir_layout_is_read(tmp_path: Path) -> None:
    assert list(read_documents(make_beir(tmp_path / "set", ["one", " ", "세 번째"]))) == [
        ("d0", "Title", "one"),
        ("d2", "Title", "세 번째"),
    ]


def test_passages_of_a_packed_table_of_pairs_are_called_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    rows = [{"question": "q", "positive": "first"}, {"question": "q", "positive": None}, {"positive": "third"}]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert list(read_documents(path)) == [("1", "", "first"), ("3", "", "third")]


def test_paragraphs_of_a_squad_file_are_documents(tmp_path: Path) -> None:
    path = make_squad(tmp_path / "squad.json")
    assert list(read_documents(path)) == [("서울#0", "서울", "여기."), ("서울#1", "서울", "Nothing.")]


@pytest.mark.parametrize("content", ["no JSON", "[1]", '{"text": 3}'])
def test_what_is_no_set_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"set\.jsonl is not laid out"):
        list(read_documents(path))
    with pytest.raises(InputError, match="is not there"):
        list(read_documents(tmp_path))


# --- queries and judgements ---


def test_only_queries_with_a_relevant_document_are_kept(tmp_path: Path) -> None:
    found = read_dataset(str(make_beir(tmp_path / "tiny", ["one", "two"], "q1\td0\t2\nq1\td1\t0\nq2\td1\t0\n")))
    assert found.name == "tiny"
    assert [document.document_id for document in found.documents] == ["d0", "d1"]
    assert found.queries == {"q1": "Question 1?"}
    assert found.qrels == {"q1": {"d0": 2, "d1": 0}}


def test_a_squad_question_is_answered_by_its_paragraph_and_an_impossible_one_is_left_out(tmp_path: Path) -> None:
    found = read_dataset(str(make_squad(tmp_path / "KoQuAD_v1.0.json")))
    assert found.name == "KoQuAD_v1.0"
    assert (found.queries, found.qrels) == ({"a": "어디?"}, {"a": {"서울#0": 1}})


def test_the_only_file_of_judgements_is_taken_and_of_several_the_test_part(tmp_path: Path) -> None:
    folder = make_beir(tmp_path / "set", ["one", "two"])
    (folder / "qrels" / "train.tsv").write_text("h\th\th\nq2\td1\t1\n", encoding="utf-8")
    assert list(read_dataset(str(folder)).qrels) == ["q1"]
    (folder / "qrels" / "test.tsv").unlink()
    assert list(read_dataset(str(folder)).qrels) == ["q2"]
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "other.txt")
    with pytest.raises(InputError, match="there is: none"):
        read_dataset(str(folder))


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("q1 d0 1\n", r"test\.tsv:2 should be"),
        ("q1\td0\thigh\n", r"test\.tsv:2 should be"),
        ("q9\td0\t1\n", "judges query 'q9'"),
        ("q1\td0\t0\n", "no queries with a relevant document"),
    ],
)
def test_judgements_that_cannot_be_used_are_named(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_dataset(str(make_beir(tmp_path / "set", ["one"], qrels)))


def test_two_documents_of_one_id_are_an_error(tmp_path: Path) -> None:
    folder = make_beir(tmp_path / "set", ["one"])
    write_lines(folder / "corpus.jsonl", [{"_id": "d0", "text": "one"}, {"_id": "d0", "text": "two"}])
    with pytest.raises(InputError, match="two documents are called 'd0'"):
        read_dataset(str(folder))


def test_what_is_neither_here_nor_a_name_of_the_hub_is_an_error_that_says_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BeIR/NAME on the hub"):
        read_dataset(str(tmp_path / "nothing"))


# --- pooling ---


def test_a_pooled_set_keeps_every_judgement_under_new_ids() -> None:
    first = one_set("a", ["one", "two"], {"q": {"d0": 1, "d1": 0}})
    second = one_set("b", ["three"], {"q": {"d0": 2}})
    pooled = pool_datasets([first, second])
    assert [document.document_id for document in pooled.documents] == ["a/d0", "a/d1", "b/d0"]
    assert pooled.qrels == {"a/q": {"a/d0": 1, "a/d1": 0}, "b/q": {"b/d0": 2}}
    assert pooled.queries.keys() == pooled.qrels.keys()


def test_a_text_of_two_sets_is_one_document_and_relevant_for_the_queries_of_both() -> None:
    first = one_set("a", ["same", "other"], {"q": {"d0": 1}})
    second = one_set("b", ["own", "same"], {"q": {"d1": 1, "gone": 1}})
    pooled = pool_datasets([first, second])
    assert [document.text for document in pooled.documents] == ["same", "other", "own"]
    assert pooled.qrels == {"a/q": {"a/d0": 1}, "b/q": {"a/d0": 1, "b/gone": 1}}


def test_two_sets_of_one_name_cannot_be_pooled() -> None:
    one = one_set("a", ["x"], {"q": {"d0": 1}})
    with pytest.raises(InputError, match="two of the sets are called a"):
        pool_datasets([one, one])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 40))
def test_a_sample_is_the_same_every_time_and_keeps_the_order(queries: int, count: int) -> None:
    whole = one_set("a", ["x"], {f"q{number}": {"d0": 1} for number in range(queries)})
    sample = sample_queries(whole, count)
    assert sample == sample_queries(whole, count)
    assert len(sample.queries) == min(queries, count)
    assert list(sample.queries) == list(sample.qrels) == [query for query in whole.queries if query in sample.qrels]

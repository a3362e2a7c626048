"""Follow-up questions of a table of pairs, searched for in several ways."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from eval.dataset import Dataset
from eval.follow_ups import WAYS, compare_ways, format_rows, main, read_conversations
from eval.metrics import MAIN_MEASURE
from rag.analyze import terms

ROWS = [
    {
        "question": "What is Medicaid? / How can I apply?",
        "positive": "Medicaid: apply by form.",
        "negatives": ["Plums."],
    },
    {"question": "What is Medicaid? / How can I apply?", "positive": "Medicaid forms.", "negatives": None},
    {"question": "Plums alone?", "positive": "Plums.", "negatives": []},
    {"question": "A lamp? / Its fuel?", "positive": None, "negatives": ["Lamps can burn. Apply oil."]},
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in ROWS)
    return path


def by_shared_words(dataset: Dataset) -> Mapping[str, dict[str, list[str]]]:
    """One stage, which ranks by how many terms of the query a passage has."""
    ranked = {}
    for query, text in dataset.queries.items():
        shared = {one.document_id: len(set(terms(text)) & set(terms(one.text))) for one in dataset.documents}
        ranked[query] = sorted((name for name in shared if shared[name]), key=lambda name: (-shared[name], name[::-1]))
    return {"words": ranked}


def test_questions_of_two_turns_are_the_queries_and_all_passages_the_documents(table: Path) -> None:
    dataset, turns = read_conversations(table)
    assert turns == {"q0": ("What is Medicaid?", "How can I apply?")}
    assert dataset.queries == {"q0": "How can I apply?"}
    assert [one.text for one in dataset.documents] == [
        "Medicaid: apply by form.", "Plums.", "Medicaid forms.", "Lamps can burn. Apply oil.",
    ]  # fmt: skip
    assert dataset.qrels == {"q0": {"p0": 1, "p2": 1}}


def test_each_way_is_measured_against_the_turn_alone(table: Path) -> None:
    rows = compare_ways(*read_conversations(table), by_shared_words)
    assert [row["way"] for row in rows] == list(WAYS)
    values = {row["way"]: row[MAIN_MEASURE].mean for row in rows}
    assert values["alone"] < values["rewritten"] == values["carried"] == 1.0
    assert {row["way"]: row["change"].change.mean for row in rows}["alone"] == 0
    assert format_rows(rows).splitlines()[0].split() == ["searched", "for", "words"]


def test_a_file_without_conversations_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps(ROWS[2]) + "\n")
    monkeypatch.setattr("sys.argv", ["follow_ups", str(path)])
    assert main() == 2
    assert "has two turns" in capsys.readouterr().err
    path.write_text("{}\n")
    assert main() == 2
    assert "is no table of pairs (KeyError" in capsys.readouterr().err

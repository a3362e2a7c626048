"""A tiny data set, ingested into a Milvus Lite and measured there stage by stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.dataset import Dataset, SetDocument
from eval.metrics import score_run
from eval.retrieval import Plan, measure_stages, search_steps, write_documents
from ingest.journal import Journal
from ingest.pipeline import ingest_documents
from ingest.prepare import prepare_here
from rag.analyze import analyze
from rag.store import MilvusStore
from tests.fakes import HashEmbedder
from tests.ingest_fakes import FINGERPRINT, count_words, embed, small_settings
from tests.pipeline_fakes import WordScorer

LONG = " ".join(f"Sentence {number} is about nothing that anybody asked for." for number in range(8))
DATASET = Dataset(
    "tiny",
    (
        SetDocument("a b", "Ports", f"{LONG} The service listens on port 8000."),
        SetDocument("<plums>", "Orchard", "The orchard holds eleven plum trees."),
        SetDocument("서울#0", "서울", "서울은 대한민국의 수도이다."),
    ),
    {"q1": "Which port does the service listen on?", "q2": "eleven plum trees", "q3": "대한민국의 수도는 서울인가?"},
    {"q1": {"a b": 1}, "q2": {"<plums>": 1}, "q3": {"서울#0": 1}},
)


async def test_documents_are_found_by_their_chunks_in_every_stage(lite_uri: str, tmp_path: Path) -> None:
    settings = small_settings()
    store = MilvusStore(lite_uri, timeout_s=20, fingerprint=FINGERPRINT)
    try:
        with Journal(tmp_path / "journal.sqlite", "memory") as journal:
            report = ingest_documents(
                [write_documents(DATASET, tmp_path)],
                store=store,
                journal=journal,
                embed=embed,
                analyze=analyze,
                prepare=prepare_here(settings, count_words),
                fingerprint=FINGERPRINT,
                settings=settings,
                say=[].append,
                collection="eval_tiny",
            )
        assert report.failures == ()
        assert report.chunks > len(DATASET.documents)
        steps = search_steps(store, HashEmbedder().embed, WordScorer())
        (runs,) = await measure_stages(DATASET, "eval_tiny", steps, settings, Plan(), [].append)
    finally:
        await store.aclose()
    store.drop_collection("eval_tiny")
    store.close()
    assert list(runs.rankings) == ["lexical", "dense", "fused", "rerank", "blend=0.45"]
    assert "q3" not in runs.rankings["dense"]  # Korean, which the embedded profile's embedder does not understand
    found = {document for ranking in runs.rankings["fused"].values() for document in ranking}
    assert found == {"a b", "<plums>", "서울#0"}
    for stage in ("lexical", "rerank"):
        assert score_run(DATASET.qrels, runs.rankings[stage])["Success@1"] == pytest.approx([1, 1, 1]), stage

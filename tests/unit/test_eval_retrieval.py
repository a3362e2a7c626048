from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from eval.dataset import Dataset, SetDocument
from eval.retrieval import (
    STAGES,
    Plan,
    StageRuns,
    collection_name,
    evaluation_settings,
    measure_service,
    measure_stages,
    rank_documents,
    search_steps,
    served_stage,
    stage_hits,
    write_documents,
)
from ingest.load import load_documents
from rag.client import Client
from rag.config import Settings, load_settings
from rag.errors import InputError, StageError
from rag.fuse import fuse_hits, order_by_blend
from rag.types import Document, Hit, Scores
from tests.fakes import HashEmbedder
from tests.http_fake import Reply, found, hit, problem, reply, serving
from tests.pipeline_fakes import DOCUMENTS, WordScorer, make_hit, stored_documents

QUERIES = {"q1": "Which port does the service listen on?", "q2": "When do the plum trees bloom?"}
QRELS = {"q1": {"ports.md": 1}, "q2": {"orchard.md": 1}}
DATASET = Dataset("tiny", (SetDocument("ports.md", "Ports", "Text."),), QUERIES, QRELS)

scores = st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3]))


def settings(**changes: Any) -> Settings:
    return load_settings(profile="embedded", **changes)


async def measure(plan: Plan, *, queries: dict[str, str] = QUERIES, **changes: Any) -> list[StageRuns]:
    """Over the documents of the pipeline's tests, in a store in memory."""
    dataset = Dataset("tiny", (), queries, {query: {"d": 1} for query in queries})
    steps = search_steps(stored_documents(DOCUMENTS), HashEmbedder().embed, WordScorer(changes.pop("error", None)))
    return await measure_stages(dataset, "default", steps, settings(**changes), plan, [].append)


def hits_of(stage_scores: list[tuple[float | None, float | None, float | None]]) -> list[Hit]:
    """Fused hits of (dense, lexical, rerank) scores, in the product's order; one in neither search is left out."""
    made = [(make_hit(f"c{number}"), dense, lexical) for number, (dense, lexical, _) in enumerate(stage_scores)]
    ranked = []
    for name, place in (("dense", 1), ("lexical", 2)):
        found = [(one[place], one[0]) for one in made if one[place] is not None]
        found.sort(key=lambda one: (-one[0], one[1].chunk.chunk_id))
        ranked.append([make_hit(hit.chunk.chunk_id, scores=Scores(**{name: score})) for score, hit in found])
    return fuse_hits(ranked, rrf_k=60, top_k=100)


# --- stages ---


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(scores, scores, st.none()), max_size=12))
def test_a_stage_s_order_is_the_one_that_it_gave(stage_scores: list[tuple[float | None, float | None, None]]) -> None:
    hits = hits_of(stage_scores)
    found = stage_hits(hits, ("lexical", "dense", "fused"), (), 0.6)
    assert found["fused"] == hits
    for place, stage in ((0, "dense"), (1, "lexical")):
        known = [(-one[place], f"c{number}") for number, one in enumerate(stage_scores) if one[place] is not None]
        assert [hit.chunk.chunk_id for hit in found[stage]] == [name for _, name in sorted(known)]


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(0, 8), st.floats(0, 1))
def test_blends_order_the_candidates_and_leave_the_rest_behind(candidates: int, rest: int, blend: float) -> None:
    fused = fuse_hits([[make_hit(f"c{number}") for number in range(candidates + rest)]], rrf_k=60, top_k=100)
    generator = np.random.default_rng(candidates)
    reranked = [
        replace(hit, scores=replace(hit.scores, rerank=float(generator.choice([0.1, 0.9]))))
        for hit in fused[:candidates]
    ]
    served = order_by_blend(reranked, blend, 0.6) + fused[candidates:]
    found = stage_hits(served, STAGES, [blend], 0.6)
    names = {stage: [hit.chunk.chunk_id for hit in hits] for stage, hits in found.items()}
    stage = "rerank" if blend == 1 else f"blend={blend:g}"
    assert names[stage] == [hit.chunk.chunk_id for hit in served]
    assert (
        names["rerank"][candidates:]
        == names["fused"][candidates:]
        == [hit.chunk.chunk_id for hit in fused[candidates:]]
    )
    assert names["rerank"][:candidates] == [hit.chunk.chunk_id for hit in order_by_blend(reranked, 1.0, 0.6)]


def test_a_document_is_ranked_by_its_best_chunk() -> None:
    first, second, third = make_hit("a"), make_hit("b"), make_hit("a")
    assert rank_documents([first, second, third]) == ["a.md", "b.md"]


async def test_every_stage_of_the_product_is_measured_in_one_pass() -> None:
    (runs,) = await measure(Plan(blends=(0.25,)))
    assert list(runs.rankings) == ["lexical", "dense", "fused", "rerank", "blend=0.45", "blend=0.25"]
    assert runs.suffix == ""
    for stage, ranking in runs.rankings.items():
        assert ranking.keys() == QUERIES.keys(), stage
        assert all(len(set(found)) == len(found) for found in ranking.values())
    assert {query: found[0] for query, found in runs.rankings["rerank"].items()} == {
        "q1": "ports.md",
        "q2": "orchard.md",
    }
    assert {"embed", "dense", "lexical", "fuse", "rerank", "total"} <= runs.timings_ms.keys()
    assert all(len(took) == len(QUERIES) for took in runs.timings_ms.values())


async def test_only_the_stages_asked_for_are_run() -> None:
    (runs,) = await measure(Plan(stages=("lexical", "fused")))
    assert list(runs.rankings) == ["lexical", "fused"]
    assert "rerank" not in runs.timings_ms


async def test_a_depth_bounds_each_search_and_the_candidates() -> None:
    shallow, deep = await measure(Plan(depths=(1, 4)))
    assert (shallow.suffix, deep.suffix) == ("@1", "@4")
    assert {len(found) for found in shallow.rankings["dense"].values()} == {1}
    assert max(len(found) for found in deep.rankings["dense"].values()) > 1


async def test_a_stage_that_does_not_understand_the_queries_is_left_out() -> None:
    (runs,) = await measure(Plan(), queries={"q": "서비스의 기본 포트는 무엇입니까?"})
    assert "dense" not in runs.rankings
    assert runs.rankings["lexical"]["q"][0] == runs.rankings["rerank"]["q"][0] == "ko.md"


async def test_a_stage_that_fails_is_an_error_and_no_figure() -> None:
    with pytest.raises(StageError, match="rerank: failed for the query"):
        await measure(Plan(), error=StageError("rerank", "down"))


def test_the_served_stage_is_the_settings_own() -> None:
    assert served_stage(settings(reranker={"blend": 0.5})) == "blend=0.5"
    assert served_stage(settings(reranker={"blend": 1.0})) == "rerank"


# --- what it is measured over ---


def test_another_document_makes_another_collection() -> None:
    names = {
        collection_name(Dataset(name, documents, {}, {}))
        for name in ("a b", "한글")
        for documents in (
            (),
            (SetDocument("1", "t", "x"),),
            (SetDocument("1", "tx", ""),),
            (SetDocument("1t", "", "x"),),
        )
    }
    assert len(names) == 8
    assert all(name.isascii() and name.startswith("eval_") for name in names)
    assert collection_name(DATASET) == collection_name(DATASET)


def test_the_store_is_the_evaluation_s_own_and_no_stage_is_ever_late(tmp_path: Path) -> None:
    chosen = settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    own = evaluation_settings(chosen)
    assert own.data_dir.is_relative_to(tmp_path / "cache" / "eval")
    other = evaluation_settings(settings(cache_dir=tmp_path / "cache", chunk={"max_tokens": 100}))
    assert other.data_dir != own.data_dir
    assert min(own.deadlines.model_dump().values()) >= 600


def test_the_documents_file_is_what_ingestion_takes(tmp_path: Path) -> None:
    documents = (SetDocument("서울#0", "서울", "첫째"), SetDocument("<b>", "", "second"))
    path = write_documents(Dataset("a", documents, {}, {}), tmp_path / "sets")
    rows = list(load_documents(path, max_file_bytes=1000))
    assert all(isinstance(row, Document) for row in rows)
    assert [row.source for row in rows] == ["서울#0", "<b>"]


# --- a running service ---


def sources_found(*sources: str, degraded: tuple[str, ...] = ()) -> Reply:
    return reply(found(*(hit(source=source) for source in sources), degraded=list(degraded)))


def test_a_service_is_asked_for_the_fused_and_for_its_own_order(tmp_path: Path) -> None:
    with serving(search=sources_found("b", "a", "b")) as service:
        (runs,) = measure_service(DATASET, Client(service.url), tmp_path, Plan(depths=(7,)), [].append)
    assert runs.rankings == {stage: {"q1": ["b", "a"], "q2": ["b", "a"]} for stage in ("fused", "served")}
    assert runs.timings_ms["total"] == [3.0, 3.0]
    asked = [(body["query"], body["rerank"], body["top_k"]) for _, body in service.asked]
    assert asked == [(text, rerank, 7) for text in QUERIES.values() for rerank in (False, True)]
    assert {body["collection"] for _, body in service.asked} == {collection_name(DATASET)}


def test_a_service_without_the_documents_is_an_error_with_the_command_that_mends_it(tmp_path: Path) -> None:
    with (
        serving(search=problem(404, "Unknown collection")) as service,
        pytest.raises(InputError, match=f"rag ingest {tmp_path} --collection {collection_name(DATASET)}"),
    ):
        measure_service(DATASET, Client(service.url), tmp_path, Plan(), [].append)


def test_a_service_that_left_a_stage_out_gives_no_figure(tmp_path: Path) -> None:
    with (
        serving(search=sources_found("a", degraded=("rerank",))) as service,
        pytest.raises(StageError, match="rerank: was left out"),
    ):
        measure_service(DATASET, Client(service.url), tmp_path, Plan(), [].append)

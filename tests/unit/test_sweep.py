from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from eval.dataset import Dataset
from eval.retrieval import search_here, search_steps
from eval.sweep import Point, deepened, format_sweep, measure_point, points_around, search_deep, served_point
from rag.config import Settings, load_settings
from rag.fuse import fuse_hits
from rag.types import Hit, Scores
from tests.fakes import HashEmbedder
from tests.pipeline_fakes import DOCUMENTS, WordScorer, make_hit, stored_documents

SETTINGS = load_settings(profile="embedded")
DEPTH = 12
QUERIES = {"q1": "Which port does the service listen on?", "q2": "plum trees and the port", "q3": "등대의 램프"}


def with_point(point: Point) -> Settings:
    retrieval = SETTINGS.retrieval.model_copy(update={"top_k": point.top_k, "rrf_k": point.rrf_k})
    reranker = SETTINGS.reranker.model_copy(
        update={"candidates": point.candidates, "blend": point.blend, "dense_share": point.dense_share}
    )
    return SETTINGS.model_copy(update={"retrieval": retrieval, "reranker": reranker})


def names(hits: list[Hit]) -> list[str]:
    return [hit.chunk.chunk_id for hit in hits]


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    st.builds(
        Point,
        top_k=st.integers(1, DEPTH),
        rrf_k=st.sampled_from([1, 60]),
        candidates=st.integers(1, DEPTH),
        blend=st.sampled_from([0.0, 0.5, 1.0]),
        dense_share=st.sampled_from([0.0, 0.6, 1.0]),
    )
)
async def test_an_order_from_deeper_searches_is_the_one_that_the_settings_give(point: Point) -> None:
    steps = search_steps(stored_documents(DOCUMENTS), HashEmbedder().embed, WordScorer())
    found = await search_deep(QUERIES, "default", steps, deepened(SETTINGS, DEPTH))
    for query, text in QUERIES.items():
        served = await search_here(
            text, collection="default", steps=steps, settings=with_point(point), depth=None, rerank=True
        )
        assert names(point.order(found[query])) == names(list(served.hits))


def test_one_constant_changes_at_a_time() -> None:
    served = served_point(SETTINGS)
    points = list(points_around(served))
    assert points[0] == ("served", served)
    assert len({point for _, point in points}) == len(points)
    for changed, point in points[1:]:
        assert {name for name, value in asdict(point).items() if value != asdict(served)[name]} == {changed}


def test_a_point_is_measured_by_its_own_order() -> None:
    dense = [make_hit(f"c{n}", scores=Scores(dense=1 - n / 10)) for n in range(3)]
    hits = [
        replace(hit, source=f"d{place}", scores=replace(hit.scores, rerank=place / 10))
        for place, hit in enumerate(fuse_hits([dense], rrf_k=60, top_k=3))
    ]
    dataset = Dataset("tiny", (), {"q": "text", "without": "text"}, {"q": {"d2": 1}, "without": {"d1": 1}})
    best = Point(top_k=3, rrf_k=60, candidates=3, blend=1.0, dense_share=0.6)
    assert measure_point(dataset, {"q": hits}, best).tolist() == [1.0, 0.0]
    last = measure_point(dataset, {"q": hits}, replace(best, blend=0.0))
    assert last.tolist() == pytest.approx([1 / np.log2(4), 0.0])
    assert measure_point(dataset, {"q": hits}, replace(best, top_k=2)).tolist() == [0.0, 0.0]


def test_the_table_marks_what_differs() -> None:
    served = {"changed": "served", **asdict(served_point(SETTINGS)), "sets": {"a": 0.5}, "mean": 0.5}
    other = {**served, "changed": "rrf_k", "rrf_k": 7, "sets": {"a": 0.6}, "mean": 0.6}
    shown = [
        format_sweep({"commit": "abc", "points": [served, {**other, "differences": {"a": {"p_value": p}}}]})
        for p in (0.04, 0.05)
    ]
    assert "0.600*" in shown[0]
    assert "rrf_k 7" in shown[0]
    assert "+0.1000" in shown[0]
    assert "0.600*" not in shown[1]

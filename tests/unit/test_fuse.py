"""Reciprocal rank fusion and the blend, against values worked out by hand, and their properties."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.fuse import fuse_hits, order_by_blend
from rag.types import Chunk, Hit, Scores


def hit(chunk_id: str, score: float = 0.0, **scores: float) -> Hit:
    return Hit(Chunk(chunk_id, "d", "r", 0, "text", 0, 4), "Title", "s.md", score, Scores(**scores))


def ids(hits: list[Hit]) -> list[str]:
    return [found.chunk.chunk_id for found in hits]


RANKED = st.lists(
    st.lists(st.sampled_from("abcdefgh"), unique=True).map(lambda names: [hit(n) for n in names]), max_size=4
)
SCORE = st.floats(0, 1, width=32)
RERANKED = st.lists(st.tuples(SCORE, st.none() | SCORE, st.none() | SCORE), max_size=8).map(
    lambda triples: [
        replace(hit(str(place)), scores=Scores(rerank=rerank, dense=dense, lexical=lexical))
        for place, (rerank, dense, lexical) in enumerate(triples)
    ]
)


def test_fusion_by_hand() -> None:
    dense = [hit("a", dense=0.9), hit("b", dense=0.8)]
    lexical = [hit("b", lexical=7.0), hit("c", lexical=5.0), hit("a", lexical=1.0)]
    fused = fuse_hits([dense, lexical], rrf_k=60, top_k=10)
    # a: 1/61 + 1/63, b: 1/62 + 1/61, c: 1/62
    assert ids(fused) == ["b", "a", "c"]
    assert [found.score for found in fused] == pytest.approx([0.0325225, 0.0322664, 0.0161290], abs=1e-7)
    assert fused[0].scores == Scores(dense=0.8, lexical=7.0, fused=fused[0].score)
    assert fused[2].scores == Scores(lexical=5.0, fused=fused[2].score)


def test_fusion_counts_the_better_rank_of_a_chunk_named_twice() -> None:
    fused = fuse_hits([[hit("a"), hit("b"), hit("a")]], rrf_k=1, top_k=10)
    assert [(found.chunk.chunk_id, found.score) for found in fused] == [("a", 1 / 2), ("b", 1 / 3)]


def test_fusion_breaks_ties_by_chunk_id() -> None:
    assert ids(fuse_hits([[hit("b")], [hit("a")]], rrf_k=60, top_k=2)) == ["a", "b"]


@pytest.mark.parametrize("ranked", [[], [[]], [[], []]])
def test_nothing_fused_is_nothing(ranked: list[list[Hit]]) -> None:
    assert fuse_hits(ranked, rrf_k=60, top_k=5) == []


@given(RANKED, st.integers(1, 100), st.integers(1, 10))
def test_fusion_gives_the_best_of_all_each_once(ranked: list[list[Hit]], rrf_k: int, top_k: int) -> None:
    fused = fuse_hits(ranked, rrf_k=rrf_k, top_k=top_k)
    everything = fuse_hits(ranked, rrf_k=rrf_k, top_k=100)
    assert fused == everything[:top_k]
    assert sorted(ids(everything)) == sorted({name for hits in ranked for name in ids(hits)})
    assert all(first.score >= second.score for first, second in pairwise(fused))
    assert all(found.score == found.scores.fused for found in fused)


@given(RANKED)
def test_fusion_scores_do_not_depend_on_the_order_of_the_lists(ranked: list[list[Hit]]) -> None:
    forward, backward = (fuse_hits(lists, rrf_k=60, top_k=100) for lists in (ranked, ranked[::-1]))
    scores = [{found.chunk.chunk_id: found.score for found in fused} for fused in (forward, backward)]
    assert scores[0] == pytest.approx(scores[1])


@given(st.lists(st.sampled_from("abcdefgh"), unique=True))
def test_fusing_one_list_keeps_its_order(names: list[str]) -> None:
    assert ids(fuse_hits([[hit(name) for name in names]], rrf_k=60, top_k=100)) == names


def test_blend_by_hand() -> None:
    hits = [
        hit("a", rerank=0.9, dense=0.2, lexical=8.0),
        hit("b", rerank=0.7, dense=0.8, lexical=6.0),
        hit("c", rerank=0.5, dense=0.5),
    ]
    ordered = order_by_blend(hits, 0.5, 0.5)
    # Standardised: rerank 1.2247, 0, -1.2247; dense -1.2247, 1.2247, 0; lexical 1, -1, and c as low as b. Half of the
    # first and a quarter of each other: .5562, .0562, -.8624.
    assert ids(ordered) == ["a", "b", "c"]
    assert [found.score for found in ordered] == pytest.approx([1.0, 0.6475, 0.0], abs=1e-4)
    assert ordered[0].scores == Scores(rerank=0.9, dense=0.2, lexical=8.0)


def test_the_dense_share_decides_between_the_searches() -> None:
    hits = [hit("a", rerank=0.5, dense=0.9, lexical=1.0), hit("b", rerank=0.5, dense=0.1, lexical=2.0)]
    for share, first in ((0.6, "a"), (0.4, "b"), (0.0, "b"), (1.0, "a")):
        assert ids(order_by_blend(hits, 0.5, share))[0] == first


def test_by_how_much_a_hit_is_better_counts() -> None:
    hits = [hit("a", rerank=0.60, dense=0.3), hit("b", rerank=0.59, dense=0.8), hit("c", rerank=0.1, dense=0.31)]
    assert ids(order_by_blend(hits, 0.5, 0.6)) == ["b", "a", "c"]


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_search_that_found_nothing_leaves_its_share_to_the_other(share: float) -> None:
    hits = [hit("a", rerank=0.5, lexical=1.0), hit("b", rerank=0.5, lexical=2.0)]
    assert ids(order_by_blend(hits, 0.9, share)) == ["b", "a"]


def test_whole_blend_is_the_rerank_score_as_it_stands() -> None:
    ordered = order_by_blend([hit("a", rerank=0.2, dense=1.0), hit("b", rerank=0.6, dense=0.0)], 1.0, 0.6)
    assert [(found.chunk.chunk_id, found.score) for found in ordered] == [("b", 0.6), ("a", 0.2)]


def test_blend_refuses_a_hit_that_was_not_reranked() -> None:
    with pytest.raises(ValueError, match="chunk b has no rerank score"):
        order_by_blend([hit("a", rerank=0.5), hit("b", dense=0.1)], 0.5, 0.6)


@given(RERANKED, st.floats(0, 1), st.floats(0, 1))
def test_blend_orders_all_hits_within_one_scale(hits: list[Hit], blend: float, share: float) -> None:
    ordered = order_by_blend(hits, blend, share)
    assert sorted(ids(ordered)) == sorted(ids(hits))
    assert all(first.score >= second.score for first, second in pairwise(ordered))
    assert all(0 <= found.score <= 1 + 1e-9 for found in ordered)


@given(RERANKED)
def test_blend_is_stable_on_ties(hits: list[Hit]) -> None:
    ordered = order_by_blend(hits, 1.0, 0.6)
    places = {found.chunk.chunk_id: place for place, found in enumerate(hits)}
    for first, second in pairwise(ordered):
        assert first.score > second.score or places[first.chunk.chunk_id] < places[second.chunk.chunk_id]

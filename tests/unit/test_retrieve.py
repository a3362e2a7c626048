from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from rag.clock import RequestClock
from rag.errors import (
    DeadlineError,
    IndexMismatchError,
    InputError,
    ModelError,
    OverloadedError,
    StageError,
    StoreUnavailableError,
    UnknownCollectionError,
)
from rag.filters import Equals, Like, OneOf
from rag.retrieve import retrieve, scored_text
from rag.step_settings import CalibrationSettings
from rag.types import Scores, SearchResult
from tests.pipeline_fakes import (
    DOCUMENTS,
    FINGERPRINT,
    WordScorer,
    late,
    make_hit,
    make_search,
    make_settings,
    raising,
    search_over,
    stored_documents,
)
from tests.search_checks import QUERY, Ranking, finds, ids, search


async def test_hits_come_best_first_with_every_stage_s_score() -> None:
    found, clock = await search(make_search())
    best = found.hits[0]
    assert (best.chunk.chunk_id, best.score, best.scores.rerank) == ("ports.md:1", 1.0, 1.0)
    assert None not in (best.scores.dense, best.scores.lexical, best.scores.fused)
    assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
    assert found.index_version == FINGERPRINT.index_version
    assert clock.degraded == []
    assert set(clock.timings_ms) == {"queue", "embed", "dense", "lexical", "fuse", "rerank"}


async def test_both_branches_are_found_and_fused() -> None:
    steps = make_search(dense_search=finds("a", "b"), lexical_search=finds("c", "a"))
    found, _ = await search(steps, rerank=False)
    assert ids(found) == ["a", "c", "b"]  # a stands in both lists
    assert found.hits[0].scores.fused == pytest.approx(1 / 61 + 1 / 62)
    assert found.hits[0].scores.rerank is None


async def test_the_two_branches_run_beside_each_other() -> None:
    gate = asyncio.Barrier(2)

    async def meets(*_: object, **__: object) -> SearchResult:
        async with asyncio.timeout(5):
            await gate.wait()
        return SearchResult((make_hit("a"),), "version")

    found, _ = await search(make_search(dense_search=meets, lexical_search=meets))
    assert ids(found) == ["a"]


async def test_top_k_is_the_depth_of_each_search() -> None:
    letters = [chr(ord("a") + index) for index in range(10)]
    steps = make_search(dense_search=finds(*letters), lexical_search=finds(*letters[::-1]))
    found, _ = await search(steps, top_k=3, rerank=False)
    assert sorted(ids(found)) == ["a", "b", "c", "h", "i", "j"]
    found, _ = await search(steps, make_settings(retrieval={"top_k": 2}), rerank=False)
    assert sorted(ids(found)) == ["a", "b", "i", "j"]


async def test_groups_and_filter_reach_both_searches_as_they_are() -> None:
    asked: list[dict[str, object]] = []

    async def keeps(*_: object, **given: object) -> SearchResult:
        asked.append(given)
        return SearchResult((), "version")

    steps = make_search(dense_search=keeps, lexical_search=keeps)
    where = Equals("source", "a.md")
    await search(steps, groups=frozenset({"hr"}), where=where)
    await search(steps, groups=None)
    await search(steps)
    assert asked == [
        *[{"groups": frozenset({"hr"}), "where": where}] * 2,
        *[{"groups": None, "where": None}] * 2,
        *[{"groups": frozenset(), "where": None}] * 2,
    ]


async def test_what_a_filter_does_not_mean_is_not_found() -> None:
    found, _ = await search(make_search(), where=Like("source", "end", "s.md"))
    assert {hit.source for hit in found.hits} == {"ports.md", "limits.md"}
    found, _ = await search(make_search(), where=Equals("source", "none"))
    assert found.hits == ()


async def test_only_the_first_candidates_are_reranked_and_the_rest_stays_behind() -> None:
    scorer = Ranking({"Text c.": 0.9, "Text a.": 0.1, "Text b.": 0.2})
    steps = make_search(dense_search=finds("a", "b", "c", "d", "e"), lexical_search=finds(), score=scorer)
    found, _ = await search(steps, make_settings(reranker={"candidates": 3}))
    assert ids(found) == ["c", "b", "a", "d", "e"]
    assert scorer.texts == ["Text a.", "Text b.", "Text c."]
    assert [hit.scores.rerank is None for hit in found.hits] == [False, False, False, True, True]


async def test_the_candidates_token_vectors_come_from_the_index_and_stay_with_the_hits() -> None:
    asked: list[tuple[str, list[str]]] = []

    async def fetch(collection: str, chunk_ids: list[str]) -> list[bytes]:
        asked.append((collection, chunk_ids))
        return [b"" if name == "b" else name.encode() for name in chunk_ids]

    scorer = Ranking({"Text c.": 0.9})
    both = {"dense_search": finds("a", "b", "c", "d"), "lexical_search": finds()}
    steps = make_search(**both, score=scorer, token_vectors=fetch)
    found, _ = await search(steps, make_settings(reranker={"candidates": 3}))
    assert asked == [("default", ["a", "b", "c"])]
    assert scorer.token_vectors == [b"a", b"", b"c"]
    assert [(hit.chunk.chunk_id, hit.token_vectors) for hit in found.hits] == [
        ("c", b"c"), ("a", b"a"), ("b", b""), ("d", b""),
    ]  # fmt: skip


async def test_a_cross_encoder_s_candidates_need_no_token_vectors() -> None:
    unasked = raising(AssertionError("asked"))
    steps = make_search(dense_search=finds("a"), lexical_search=finds(), score=Ranking({}), token_vectors=unasked)
    found, clock = await search(steps, make_settings(reranker={"kind": "cross-encoder", "model": "any"}))
    assert (ids(found), clock.degraded) == (["a"], [])


async def test_reranking_goes_on_when_the_token_vectors_cannot_be_fetched() -> None:
    scorer = Ranking({"Text b.": 0.9})
    gone = raising(StoreUnavailableError("gone"))
    steps = make_search(dense_search=finds("a", "b"), lexical_search=finds(), score=scorer, token_vectors=gone)
    found, clock = await search(steps)
    assert ids(found) == ["b", "a"]
    assert scorer.token_vectors == [b"", b""]
    assert clock.degraded == []


async def test_reranking_keeps_the_fused_order_of_ties() -> None:
    steps = make_search(dense_search=finds("b", "a", "c"), lexical_search=finds(), score=Ranking({}))
    found, _ = await search(steps)
    assert ids(found) == ["b", "a", "c"]


async def test_the_blend_weighs_the_searches_scores_in() -> None:
    async def dense_search(*_: object, **__: object) -> SearchResult:
        hits = (make_hit(name, f"Text {name}.", scores=Scores(dense=dense)) for name, dense in (("a", 0.9), ("b", 0.2)))
        return SearchResult(tuple(hits), "version")

    scores = Ranking({"Text a.": 0.5, "Text b.": 0.6})
    steps = make_search(dense_search=dense_search, lexical_search=finds(), score=scores)
    for blend, expected in ((1.0, ["b", "a"]), (0.1, ["a", "b"])):
        found, _ = await search(steps, make_settings(reranker={"blend": blend}))
        assert ids(found) == expected


async def test_candidates_that_word_search_alone_found_get_their_dense_score() -> None:
    store = stored_documents(DOCUMENTS)
    steps = search_over(store, lexical_search=finds("orchard.md:0"))
    found, clock = await search(steps, top_k=1)
    assert len(found.hits) == 2
    assert clock.degraded == []
    vector = (await steps.embed([QUERY], "query"))[0]
    alone = {hit.chunk.chunk_id: hit.scores.dense for hit in (await store.dense_search("default", vector, 99)).hits}
    assert {hit.chunk.chunk_id: hit.scores.dense for hit in found.hits} == {name: alone[name] for name in ids(found)}


async def test_beyond_the_candidates_no_dense_score_is_asked_for() -> None:
    asked: list[object] = []

    async def dense_search(*_: object, where: object, **__: object) -> SearchResult:
        asked.append(where)
        hits = () if where else (make_hit("a", "Text a.", scores=Scores(dense=0.5)),)
        return SearchResult(hits, "version")

    steps = make_search(dense_search=dense_search, lexical_search=finds("a", "b", "c"), score=Ranking({}))
    found, _ = await search(steps, make_settings(reranker={"candidates": 2}))
    assert asked == [None, OneOf("chunk_id", ("b",))]
    assert [hit.scores.dense for hit in found.hits] == [0.5, None, None]  # b was deleted in the meantime


async def test_the_blend_goes_on_without_those_dense_scores_and_says_so() -> None:
    async def dense_search(*_: object, where: object, **__: object) -> SearchResult:
        if where:
            raise StoreUnavailableError("gone")
        return SearchResult((make_hit("a", "Text a.", scores=Scores(dense=0.5)),), "version")

    steps = make_search(dense_search=dense_search, lexical_search=finds("a", "b"), score=Ranking({"Text b.": 0.9}))
    found, clock = await search(steps)
    assert sorted(ids(found)) == ["a", "b"]
    assert clock.degraded == ["dense"]


async def test_a_scorer_reads_the_heading_with_the_text() -> None:
    scorer = Ranking({})
    await search(make_search(score=scorer))
    assert "Handbook > ports\nThe service listens on port 8000." in scorer.texts[0]
    assert scorer.spans == [[(0, len(text))] for text in scorer.texts]


def test_scored_text_says_where_the_chunk_starts() -> None:
    plain = make_hit("a", "Words.")
    assert scored_text(plain) == ("Words.", 0)
    headed = replace(plain, chunk=replace(plain.chunk, heading="Guide > Ports"))
    text, start = scored_text(headed)
    assert text[start:] == "Words."
    assert text.startswith("Guide > Ports\n")


async def test_no_hits_are_no_error_and_nothing_is_reranked() -> None:
    scorer = WordScorer()
    found, clock = await search(make_search({}, score=scorer))
    assert found.hits == ()
    assert scorer.calls == []
    assert clock.degraded == []


# --- what may be left out ---------------------------------------------------------------------------------------------

DEGRADABLE = [
    StageError("x", "gone"),
    StoreUnavailableError("gone"),
    ModelError("gone"),
    OverloadedError("full"),
]


@pytest.mark.parametrize("error", DEGRADABLE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("step", "degraded"),
    [("embed", "dense"), ("dense_search", "dense"), ("lexical_search", "lexical"), ("score", "rerank")],
)
async def test_a_stage_that_is_down_is_left_out_and_named(error: Exception, step: str, degraded: str) -> None:
    found, clock = await search(make_search(DOCUMENTS, **{step: raising(error)}))
    assert "ports.md:1" in ids(found)
    assert clock.degraded == [degraded]


async def test_a_late_reranker_costs_its_budget_and_no_more() -> None:
    began = time.perf_counter()
    found, clock = await search(make_search(score=late(5)), make_settings(deadlines={"rerank_s": 0.1}))
    assert time.perf_counter() - began < 2
    assert clock.degraded == ["rerank"]
    assert all(hit.scores.rerank is None and hit.score == hit.scores.fused for hit in found.hits)


async def test_both_branches_down_raises_what_the_dense_one_raised() -> None:
    dense, lexical = StoreUnavailableError("dense"), StageError("lexical", "gone")
    with pytest.raises(StoreUnavailableError, match="dense"):
        await search(make_search(dense_search=raising(dense), lexical_search=raising(lexical)))
    with pytest.raises(StageError, match="embed"):
        await search(make_search(embed=raising(StageError("embed", "gone")), lexical_search=raising(lexical)))


@pytest.mark.parametrize("step", ["embed", "dense_search", "lexical_search", "score"])
@pytest.mark.parametrize(
    "error",
    [UnknownCollectionError("nope"), IndexMismatchError("another embedder"), InputError("no"), KeyError("a bug")],
    ids=lambda error: type(error).__name__,
)
async def test_the_caller_s_mistakes_and_ours_are_raised(step: str, error: Exception) -> None:
    with pytest.raises(type(error)):
        await search(make_search(DOCUMENTS, **{step: raising(error)}))


async def test_an_unknown_collection_is_raised_by_the_real_flow() -> None:
    with pytest.raises(UnknownCollectionError):
        await search(make_search(), collection="nope")


async def test_a_deadline_that_passes_is_raised() -> None:
    clock = RequestClock(0.05)
    with pytest.raises(DeadlineError):
        await retrieve(QUERY, "default", make_search(dense_search=late(5)), make_settings(), clock)


async def test_cancelling_reaches_both_branches() -> None:
    running: set[str] = set()
    both = asyncio.Event()

    def hangs(name: str) -> Any:
        async def step(*_: object, **__: object) -> SearchResult:
            running.add(name)
            if len(running) == 2:
                both.set()
            try:
                await asyncio.sleep(60)
            finally:
                running.remove(name)
            raise AssertionError("not cancelled")

        return step

    task = asyncio.create_task(search(make_search(dense_search=hangs("dense"), lexical_search=hangs("lexical"))))
    async with asyncio.timeout(5):
        await both.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running == set()


# --- languages that a model does not know -----------------------------------------------------------------------------

KOREAN = "서비스의 기본 포트는 몇 번인가요?"


async def test_a_question_that_the_embedder_cannot_read_is_searched_by_words_alone() -> None:
    settings = make_settings(embedder={"languages": ["latin"]})
    found, clock = await search(make_search(embed=raising(AssertionError("embedded"))), settings, KOREAN)
    assert ids(found)[0] == "ko.md:0"
    assert all(hit.scores.dense is None for hit in found.hits)
    assert clock.degraded == []  # nothing is missing: the words are the better search
    assert "embed" not in clock.timings_ms


async def test_its_lexical_failure_is_raised_since_nothing_else_could_be_searched() -> None:
    settings = make_settings(embedder={"languages": ["latin"]})
    with pytest.raises(StoreUnavailableError):
        await search(make_search(lexical_search=raising(StoreUnavailableError("down"))), settings, KOREAN)


async def test_a_question_that_the_reranker_cannot_read_keeps_the_fused_order() -> None:
    scorer = WordScorer()
    settings = make_settings(reranker={"languages": ["latin"]})
    found, clock = await search(make_search(score=scorer), settings, KOREAN)
    fused, _ = await search(make_search(), settings, KOREAN, rerank=False)
    assert scorer.calls == []
    assert found == fused
    assert found.hits[0].chunk.chunk_id == "ko.md:0"
    assert clock.degraded == []  # nothing is missing: it could not have said more
    assert "rerank" not in clock.timings_ms


# --- calibration ------------------------------------------------------------------------------------------------------


async def calibrated(score: float, calibration: CalibrationSettings | None) -> float:
    steps = make_search(dense_search=finds("a"), lexical_search=finds(), score=Ranking({"Text a.": score}))
    settings = make_settings(reranker={"calibration": calibration and calibration.model_dump()})
    found, _ = await search(steps, settings)
    scores: Scores = found.hits[0].scores
    assert scores.rerank is not None
    return scores.rerank


@pytest.mark.parametrize(
    ("score", "midpoint", "slope", "expected"),
    [
        pytest.param(0.5, 0.5, 20.0, 0.5, id="midpoint"),
        pytest.param(0.75, 0.5, 4.0, 0.731059, id="above"),  # 1 / (1 + e^-1)
        pytest.param(0.25, 0.5, 4.0, 0.268941, id="below"),
        pytest.param(0.0, 1.0, 10_000.0, 0.0, id="steep_below"),
        pytest.param(1.0, 0.0, 10_000.0, 1.0, id="steep_above"),
    ],
)
async def test_calibration_is_the_logistic_function(
    score: float, midpoint: float, slope: float, expected: float
) -> None:
    calibration = CalibrationSettings(midpoint=midpoint, slope=slope)
    assert await calibrated(score, calibration) == pytest.approx(expected, abs=1e-6)


async def test_without_calibration_the_score_stays() -> None:
    assert await calibrated(0.25, None) == 0.25

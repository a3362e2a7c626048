from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from rag.errors import (
    DeadlineError,
    StageError,
    StoreUnavailableError,
    UnknownCollectionError,
)
from rag.events import Cited, Retrieved, Token
from rag.pipeline import answer, stream_answer
from rag.types import Question
from tests.pipeline_checks import answer_of
from tests.pipeline_fakes import (
    AnswerabilityOf,
    ScriptedLLM,
    WordScorer,
    late,
    make_search,
    make_settings,
    make_steps,
    raising,
    says,
)

PORT = Question("Which port does the service listen on?")
RIGHT = "The service listens on port 8000."
DOWN = StageError("generate", "the engine is gone")


# --- stages that are down or late -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "score", [WordScorer(StageError("rerank", "down")), late(5.0)], ids=["reranker_down", "reranker_late"]
)
async def test_without_the_reranker_its_calibration_judges_nothing(score: Any) -> None:
    settings = make_settings(evidence={"min_confidence": 1.0}, deadlines={"rerank_s": 0.1, "ground_s": 0.1})
    given = await answer_of(PORT, make_steps(says(RIGHT), make_search(score=score)), settings)
    assert given.status == "answered"
    assert given.answer == f"{RIGHT} [{given.citations[0].marker}]"
    assert given.citations[0].quote == RIGHT
    assert given.degraded == ("rerank", "ground")
    assert given.confidence is None
    assert all(hit.scores.rerank is None for hit in given.hits)


async def test_without_the_reranker_the_dense_calibration_judges() -> None:
    search = make_search(score=WordScorer(StageError("rerank", "down")))
    question = Question("Who won the football championship in Paris?")
    scales = {"dense": {"intercept": -9.0, "weights": {"dense": 10.0}}}
    given = await answer_of(question, make_steps(says(RIGHT), search), make_settings(evidence={"scales": scales}))
    assert (given.status, given.reason) == ("abstained", "no_evidence")


async def test_a_scorer_that_fails_after_reranking_leaves_only_grounding_to_words() -> None:
    scorer = WordScorer(StageError("rerank", "down"), fails_from=1)
    given = await answer_of(PORT, make_steps(says(RIGHT), make_search(score=scorer)), make_settings())
    assert given.degraded == ("ground",)
    assert given.answer == f"{RIGHT} [1]"
    assert len(scorer.calls) == 2  # the reranking and one more: a stage that was left out is not asked again


JUDGED = {
    "min_confidence": 0.4,
    "scales": {
        "answerability": {"intercept": 0.0, "weights": {"answerability": 1.0}},
        "rerank": {"intercept": 0.0, "weights": {"rerank": 1.0}},
    },
}


@pytest.mark.parametrize("judge", [raising(StageError("rerank", "down")), late(5.0)], ids=["down", "late"])
async def test_without_the_answerability_model_the_reranker_judges(judge: Any) -> None:
    settings = make_settings(evidence=JUDGED, deadlines={"rerank_s": 0.1})
    given = await answer_of(PORT, make_steps(says(RIGHT), make_search(answerability=judge)), settings)
    assert (given.status, given.answer) == ("answered", f"{RIGHT} [1]")
    assert given.degraded == ("rerank",)  # grounding goes on by the scorer
    best = max(hit.scores.rerank or 0.0 for hit in given.hits)
    assert given.confidence == pytest.approx(best, abs=1e-5)


async def test_where_reranking_failed_the_answerability_model_is_not_asked() -> None:
    asked = AnswerabilityOf({})
    search = make_search(score=WordScorer(StageError("rerank", "down")), answerability=asked)
    given = await answer_of(PORT, make_steps(says(RIGHT), search), make_settings(evidence=JUDGED))
    assert (given.degraded, asked.pairs) == (("rerank", "ground"), [])


@pytest.mark.parametrize(
    ("steps", "degraded"),
    [
        pytest.param({"embed": raising(StageError("embed", "down"))}, ("dense",), id="embedder_down"),
        pytest.param({"embed": late(5.0)}, ("dense",), id="embedder_late"),
        pytest.param({"dense_search": raising(StoreUnavailableError("down"))}, ("dense",), id="dense_down"),
        pytest.param({"dense_search": late(5.0)}, ("dense",), id="dense_late"),
        pytest.param({"lexical_search": raising(StoreUnavailableError("down"))}, ("lexical",), id="lexical_down"),
        pytest.param({"lexical_search": late(5.0)}, ("lexical",), id="lexical_late"),
    ],
)
async def test_one_branch_of_the_search_is_enough(steps: dict[str, Any], degraded: tuple[str, ...]) -> None:
    settings = make_settings(deadlines={"embed_s": 0.1, "dense_s": 0.1, "lexical_s": 0.1})
    given = await answer_of(PORT, make_steps(says(RIGHT), make_search(**steps)), settings)
    assert given.answer == f"{RIGHT} [1]"
    assert given.degraded == degraded


async def test_without_both_branches_the_failure_is_raised() -> None:
    search = make_search(
        dense_search=raising(StoreUnavailableError("dense")), lexical_search=raising(StageError("lexical", "gone"))
    )
    with pytest.raises(StoreUnavailableError, match="dense"):
        await answer(PORT, make_steps(says(RIGHT), search), make_settings())


async def test_every_optional_stage_may_be_gone_at_once() -> None:
    search = make_search(
        lexical_search=raising(StageError("lexical", "gone")), score=WordScorer(StageError("rerank", "gone"))
    )
    given = await answer_of(PORT, make_steps(ScriptedLLM([DOWN]), search), make_settings("weak"))
    assert (given.status, given.answer_source) == ("answered", "extracted")
    assert set(given.degraded) == {"lexical", "rerank", "ground", "generate"}
    assert given.citations


async def test_an_unknown_collection_is_raised() -> None:
    with pytest.raises(UnknownCollectionError, match="'elsewhere'"):
        await answer(Question(PORT.text, collection="elsewhere"), make_steps(says(RIGHT)), make_settings())


# --- deadlines, closing, cancelling -----------------------------------------------------------------------------------


async def test_a_deadline_that_passes_while_searching_is_an_error() -> None:
    search = make_search(embed=late(5.0))
    with pytest.raises(DeadlineError, match=r"0\.05 s"):
        await answer(Question(PORT.text, deadline_s=0.05), make_steps(says(RIGHT), search), make_settings())


async def test_a_deadline_that_passed_in_the_queue_costs_no_work() -> None:
    scorer, llm = WordScorer(), says(RIGHT)
    with pytest.raises(DeadlineError):
        await answer(
            Question(PORT.text, deadline_s=1.0),
            make_steps(llm, make_search(embed=raising(AssertionError("asked")), score=scorer)),
            make_settings(),
            queue_s=1.0,
        )
    assert (scorer.calls, llm.calls) == ([], [])


async def test_no_client_gets_more_than_the_longest_deadline() -> None:
    began = time.perf_counter()
    with pytest.raises(DeadlineError):
        await answer(
            Question(PORT.text, deadline_s=1000.0),
            make_steps(says(RIGHT), make_search(embed=late(5.0), lexical_search=late(5.0))),
            make_settings(deadlines={"max_s": 0.1}),
        )
    assert time.perf_counter() - began < 2


async def test_an_answer_comes_within_its_deadline_when_the_llm_hangs() -> None:
    began = time.perf_counter()
    question = Question(PORT.text, deadline_s=1.0)
    given = await answer_of(question, make_steps(ScriptedLLM([60.0])), make_settings())
    assert time.perf_counter() - began < 30  # the LLM would take 60
    assert (given.answer_source, given.degraded) == ("extracted", ("generate",))


@pytest.mark.parametrize("wanted", [Retrieved, Token, Cited])
async def test_closing_the_stream_early_closes_the_generation(wanted: type) -> None:
    llm = ScriptedLLM([f"{RIGHT} Another port is "] + ["and so on "] * 10_000)
    stream = stream_answer(PORT, make_steps(llm), make_settings())
    async for event in stream:
        if isinstance(event, wanted):
            break
    await stream.aclose()
    assert llm.closed == len(llm.calls) == (0 if wanted is Retrieved else 1)
    assert llm.sent < 100


async def test_cancelling_closes_the_generation_and_leaves_nothing_at_work() -> None:
    llm = ScriptedLLM([60.0])
    task = asyncio.create_task(answer(PORT, make_steps(llm), make_settings()))
    async with asyncio.timeout(5):
        await llm.started.wait()
    await asyncio.sleep(0)
    began = time.perf_counter()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.perf_counter() - began < 1
    assert llm.closed == 1
    await asyncio.sleep(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait(others, timeout=1) if others else None
    assert asyncio.all_tasks() == {asyncio.current_task()}

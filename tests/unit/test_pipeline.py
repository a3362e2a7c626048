from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from rag.errors import IndexMismatchError, ModelError, OverloadedError, StageError
from rag.events import Done, Retrieved, Token
from rag.pipeline import answer, stream_answer
from rag.refusal import ABSTENTION
from rag.types import GeneratedText, Message, Question, SearchResult, Usage
from tests.pipeline_checks import answer_of, events_of
from tests.pipeline_fakes import (
    DOCUMENTS,
    FINISHED,
    ScriptedLLM,
    WordScorer,
    make_search,
    make_settings,
    make_steps,
    raising,
    says,
)

PORT = Question("Which port does the service listen on?")
RIGHT = "The service listens on port 8000."
SECOND = "Another port is chosen with the option --port."
WRONG = "It was written by Grace Hopper in 1987."
DOWN = StageError("generate", "the engine is gone")


# --- what the LLM says is supported -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["strong", "weak"])
async def test_a_supported_sentence_is_the_answer_with_its_verbatim_quote(reader: str) -> None:
    given = await answer_of(PORT, make_steps(says(RIGHT)), make_settings(reader))
    assert (given.status, given.answer_source, given.degraded) == ("answered", "generated", ())
    assert given.answer == f"{RIGHT} [1]"
    (citation,) = given.citations
    assert (citation.quote, citation.source, citation.chunk_id) == (RIGHT, "ports.md", "ports.md:1")
    assert citation.char_start == len("🙂 This guide is for operators.") + 2  # code points
    assert given.unsupported == ()


async def test_the_plain_answer_is_the_streams_last_event() -> None:
    steps, settings = make_steps(says(RIGHT)), make_settings()
    streamed, plain = await answer_of(PORT, steps, settings), await answer(PORT, steps, settings)
    assert plain.answer == streamed.answer
    assert plain.citations == streamed.citations


async def test_facts_about_the_answer_are_filled_in() -> None:
    settings = make_settings()
    given = await answer_of(PORT, make_steps(says(RIGHT)), settings)
    assert given.collection == "default"
    assert given.index_version
    assert given.model == settings.generator.model_id
    assert given.usage == FINISHED.usage
    assert given.confidence == pytest.approx(1.0, abs=1e-5)
    assert given.prompt_hash
    assert {hit.chunk.chunk_id for hit in given.hits} >= {"ports.md:1"}


async def test_the_first_sentence_is_sent_before_the_llm_is_done() -> None:
    llm = ScriptedLLM([f"{RIGHT} Another port ", 30.0, FINISHED])
    async with aclosing(stream_answer(PORT, make_steps(llm), make_settings())) as stream:
        async with asyncio.timeout(5):
            first = [await anext(stream), await anext(stream)]
    assert first[1] == Token(f"{RIGHT} [1]")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([f"{RIGHT} [1] {SECOND} [1]"], id="one_piece"),
        pytest.param([*f"{RIGHT} [1] {SECOND} [1]"], id="letter_by_letter"),
        pytest.param([RIGHT, " [1]\n", SECOND, "\n"], id="lines"),
        pytest.param(["\n\n  ", RIGHT, "", " ", SECOND, "  "], id="blanks_around"),
        pytest.param([f"- {RIGHT}\n- {SECOND}"], id="list"),
    ],
)
async def test_the_pieces_that_the_llm_writes_in_make_no_difference(script: list[str]) -> None:
    given = await answer_of(PORT, make_steps(ScriptedLLM([*script, FINISHED])), make_settings())
    assert given.answer == f"{RIGHT} [1] {SECOND} [1]"
    assert [citation.quote for citation in given.citations] == [RIGHT, SECOND]


async def test_the_llm_is_stopped_after_as_many_supported_sentences_as_are_wanted() -> None:
    sofar = GeneratedText(f"{WRONG} {RIGHT} {SECOND} ", usage=Usage(100, 12))
    llm = ScriptedLLM([sofar, 30.0, FINISHED])
    async with asyncio.timeout(5):
        given = await answer_of(PORT, make_steps(llm), make_settings("weak", grounding={"max_sentences": 1}))
    assert given.answer == f"{RIGHT} [1]"
    assert given.usage == Usage(100, 12)
    assert llm.closed == 1


async def test_unsupported_sentences_of_a_strong_reader_are_kept_and_marked() -> None:
    given = await answer_of(PORT, make_steps(says(WRONG, RIGHT, "Nobody knows Ada.")), make_settings("strong"))
    assert given.answer == f"{WRONG} {RIGHT} [1] Nobody knows Ada."
    assert [span.text for span in given.unsupported] == [WRONG, "Nobody knows Ada."]
    assert (len(given.citations), given.dropped) == (1, 0)


async def test_unsupported_sentences_of_a_weak_reader_are_left_out() -> None:
    given = await answer_of(PORT, make_steps(says(WRONG, RIGHT, WRONG)), make_settings("weak"))
    assert given.answer == f"{RIGHT} [1]"
    assert (given.unsupported, given.dropped) == ((), 2)


async def test_a_supported_sentence_beside_the_point_is_replaced_for_a_weak_reader() -> None:
    question = Question("Which port does the service listen on, and how many characters may a question have?")
    beside = "They bloom in April."
    given = await answer_of(question, make_steps(says(beside)), make_settings("weak"))
    assert (given.answer_source, given.dropped) == ("extracted", 1)
    assert beside not in given.answer


@pytest.mark.parametrize("reader", ["strong", "weak"])
async def test_what_the_llm_repeats_is_sent_once(reader: str) -> None:
    given = await answer_of(PORT, make_steps(says(WRONG, WRONG, RIGHT, RIGHT, WRONG)), make_settings(reader))
    assert given.answer.count(RIGHT) == 1
    assert given.answer.count(WRONG) == (1 if reader == "strong" else 0)
    assert given.dropped == (3 if reader == "strong" else 4)


@pytest.mark.parametrize("reader", ["strong", "weak"])
@pytest.mark.parametrize(
    "echo",
    [
        pytest.param("Question: Which port does the service listen on?", id="echo"),
        pytest.param("Which port does the service listen on? [1]", id="with_marker"),
        pytest.param("Does the service listen on port 8000?", id="another_question"),
    ],
)
async def test_a_sentence_that_asks_is_no_answer(reader: str, echo: str) -> None:
    alone = await answer_of(PORT, make_steps(says(echo)), make_settings(reader))
    assert alone.answer_source == "extracted"
    assert "?" not in alone.answer
    followed = await answer_of(PORT, make_steps(says(echo, RIGHT)), make_settings(reader))
    assert followed.answer == f"{RIGHT} [1]"
    assert followed.unsupported == ()


# --- the LLM is of no use ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["strong", "weak"])
@pytest.mark.parametrize(
    ("script", "degraded"),
    [
        pytest.param([DOWN], ("generate",), id="raises"),
        pytest.param([ModelError("no weights")], ("generate",), id="no_model"),
        pytest.param([OverloadedError("its queue is full")], ("generate",), id="overloaded"),
        pytest.param(["The service", DOWN], ("generate",), id="raises_in_a_sentence"),
        pytest.param([5.0], ("generate",), id="late"),
        pytest.param(["The service listens ", 5.0], ("generate",), id="late_in_a_sentence"),
        pytest.param([], (), id="nothing"),
        pytest.param([FINISHED], (), id="empty"),
        pytest.param([" \n ", FINISHED], (), id="blank"),
        pytest.param(["[1] [2]", FINISHED], (), id="markers_only"),
        pytest.param([WRONG, FINISHED], (), id="nothing_supported"),
    ],
)
async def test_without_a_supported_sentence_the_answer_is_the_evidence(
    reader: str, script: list[Any], degraded: tuple[str, ...]
) -> None:
    settings = make_settings(reader, deadlines={"generate_s": 0.2})
    given = await answer_of(PORT, make_steps(ScriptedLLM(script)), settings)
    assert (given.status, given.answer_source, given.degraded) == ("answered", "extracted", degraded)
    assert given.answer.startswith(f"{RIGHT} [1]")
    assert given.unsupported == ()
    assert given.citations[0].quote == RIGHT


async def test_a_passage_for_which_the_prompt_had_no_room_still_gives_the_answer() -> None:
    about = "Which month? The plum is red. The trees stand here. The orchard blooms. "
    documents = {"a.md": (about + "It is so. " * 30,), "b.md": ("In April, that month, the plum trees bloom.",)}
    search = make_search(documents, score=WordScorer())
    settings = make_settings("weak", prompt={"passage_tokens": 64}, evidence={"min_confidence": 0.0})
    llm = says(WRONG)
    given = await answer(
        Question("Which month do the plum trees of the orchard bloom?"), make_steps(llm, search), settings
    )
    assert documents["b.md"][0] not in llm.calls[0].messages[-1].content
    (citation,) = given.citations
    assert (given.answer_source, citation.source, citation.marker) == ("extracted", "b.md", 2)


async def test_a_generate_step_that_fails_when_called_is_left_out() -> None:
    def generate(*_args: object, **_kwargs: object) -> Any:
        raise DOWN

    given = await answer_of(PORT, make_steps(generate), make_settings())
    assert (given.answer_source, given.degraded) == ("extracted", ("generate",))


@pytest.mark.parametrize(
    ("languages", "asked", "source"),
    [(["latin"], False, "extracted"), (["latin", "ko"], True, "generated"), (None, True, "generated")],
    ids=["unknown", "known", "all"],
)
async def test_only_an_llm_that_knows_the_questions_language_is_asked(
    languages: list[str] | None, asked: bool, source: str
) -> None:
    calls = []

    async def generate(*args: object, **kwargs: object) -> AsyncIterator[GeneratedText]:
        calls.append((args, kwargs))
        yield GeneratedText("서비스의 기본 포트는 8000번입니다.", "stop", None)

    settings = make_settings(generator={"languages": languages})
    given = await answer_of(Question("서비스의 기본 포트는 몇 번입니까?"), make_steps(generate), settings)
    assert (bool(calls), given.answer_source, given.degraded) == (asked, source, ())
    assert given.citations[0].quote == "서비스의 기본 포트는 8000번입니다."


async def test_generation_cut_by_its_budget_keeps_what_was_sent() -> None:
    llm = ScriptedLLM([f"{RIGHT} Another port is ", 5.0, "chosen with the option --port.", FINISHED])
    given = await answer_of(PORT, make_steps(llm), make_settings(deadlines={"generate_s": 0.3}))
    assert (given.status, given.answer_source) == ("answered", "generated")
    assert given.answer == f"{RIGHT} [1]"
    assert given.degraded == ("generate",)
    assert llm.closed == 1


async def test_a_failure_after_the_first_sentence_keeps_it() -> None:
    given = await answer_of(PORT, make_steps(ScriptedLLM([f"{RIGHT} Another port ", DOWN])), make_settings())
    assert (given.answer, given.degraded) == (f"{RIGHT} [1]", ("generate",))


@pytest.mark.parametrize(
    ("end", "kept"),
    [
        pytest.param(SECOND, True, id="whole"),
        pytest.param(f"{SECOND} [1]", True, id="whole_with_marker"),
        pytest.param("Another port is chosen with the", False, id="cut"),
        pytest.param("Another port is chosen with the option --port on 127.0", False, id="cut_in_a_number"),
    ],
)
async def test_a_sentence_that_the_token_limit_cut_is_left_out(end: str, kept: bool) -> None:
    llm = ScriptedLLM([f"{RIGHT} {end}", GeneratedText("", "length")])
    given = await answer_of(PORT, make_steps(llm), make_settings())
    assert given.answer == (f"{RIGHT} [1] {SECOND} [1]" if kept else f"{RIGHT} [1]")


async def test_an_error_that_is_the_callers_is_raised() -> None:
    llm = ScriptedLLM([IndexMismatchError("made with another embedder")])
    with pytest.raises(IndexMismatchError):
        await answer(PORT, make_steps(llm), make_settings())


# --- abstaining -------------------------------------------------------------------------------------------------------


async def test_without_hits_there_are_no_documents() -> None:
    llm = says(RIGHT)
    given = await answer_of(PORT, make_steps(llm, make_search({})), make_settings())
    assert (given.status, given.reason) == ("abstained", "no_documents")
    assert given.answer == ABSTENTION["latin"]
    assert llm.calls == []


async def test_hits_below_the_threshold_are_no_evidence() -> None:
    llm = says(RIGHT)
    question = Question("Who won the football championship in Paris?")
    given = await answer_of(question, make_steps(llm), make_settings(evidence={"min_confidence": 0.4}))
    assert (given.status, given.reason) == ("abstained", "no_evidence")
    assert given.confidence is not None
    assert given.confidence < 0.4
    assert llm.calls == []


async def test_an_abstention_speaks_the_questions_language() -> None:
    given = await answer_of(Question("축구 대회에서 누가 이겼나요?"), make_steps(says(RIGHT)), make_settings())
    assert (given.status, given.answer) == ("abstained", ABSTENTION["ko"])


async def test_an_abstention_says_what_was_left_out() -> None:
    search = make_search(lexical_search=raising(StageError("lexical", "down")))
    question = Question("Who won the football championship in Paris?")
    given = await answer_of(question, make_steps(says(RIGHT), search), make_settings())
    assert (given.status, given.degraded) == ("abstained", ("lexical",))


# --- timings and what the caller chooses ------------------------------------------------------------------------------


async def test_every_stage_is_timed() -> None:
    timings = (await answer_of(PORT, make_steps(says(RIGHT)), make_settings(), queue_s=0.25)).timings_ms
    stages = {"embed", "dense", "lexical", "fuse", "rerank", "prompt", "generate", "ground"}
    assert set(timings) == stages | {"queue", "ttft", "total"}
    assert all(value >= 0 for value in timings.values())
    assert timings["queue"] == 250
    assert 250 < timings["ttft"] <= timings["total"]
    assert all(timings[stage] <= timings["total"] - 250 for stage in stages)


async def test_a_slow_llm_shows_in_its_own_timing() -> None:
    llm = ScriptedLLM([0.2, RIGHT, FINISHED])
    timings = (await answer_of(PORT, make_steps(llm), make_settings())).timings_ms
    assert timings["generate"] >= 195
    assert timings["ttft"] >= 195
    assert timings["ground"] < timings["generate"]


async def test_a_follow_up_is_searched_for_with_the_words_that_it_leans_on() -> None:
    searched: list[str] = []
    steps = make_steps(llm := says(RIGHT))
    lexical = steps.search.lexical_search

    async def keep(collection: str, query: str, top_k: int, **options: Any) -> SearchResult:
        searched.append(query)
        return await lexical(collection, query, top_k, **options)

    steps = replace(steps, search=replace(steps.search, lexical_search=keep))
    turns = (Message("user", "Which port does the service listen on?"), Message("assistant", "8000."))
    given = await answer_of(Question("And is it fixed?", conversation=turns), steps, make_settings())
    assert searched == ["And is it fixed? port service listen"]
    assert given.query == searched[0]
    assert given.citations[0].quote == RIGHT
    assert llm.calls[0].messages[-1].content.endswith("And is it fixed?")


async def test_the_gate_judges_the_question_not_what_was_carried_into_it() -> None:
    words = {"intercept": -2.0, "weights": {"coverage": 8.0, "names": -4.0}}
    settings = make_settings(evidence={"min_confidence": 0.5, "scales": {"rerank": words}})
    turns = (Message("user", "Did Grace Hopper or Ada Lovelace write the service?"),)
    asked = Question("Which port does it listen on?", conversation=turns)
    given = await answer_of(asked, make_steps(says(RIGHT)), settings)
    assert given.query.endswith("Grace Hopper Ada Lovelace write service")
    assert given.status == "answered"


async def test_the_conversation_reaches_the_prompt() -> None:
    llm = says(RIGHT)
    turns = (Message("user", "Is there a service?"), Message("assistant", "Yes, there is one."))
    await answer(Question(PORT.text, conversation=turns), make_steps(llm), make_settings())
    (call,) = llm.calls
    assert call.messages[0].role == "system"
    assert tuple(call.messages[1:3]) == turns
    assert call.messages[-1].role == "user"
    assert PORT.text in call.messages[-1].content
    assert RIGHT in call.messages[-1].content


async def test_what_the_caller_chooses_reaches_the_llm() -> None:
    settings = make_settings(generator={"model_id": "own", "max_tokens": 64, "temperature": 0.5})
    for given, expected in (
        (Question(PORT.text), ("own", 64, 0.5)),
        (Question(PORT.text, model="own", max_tokens=8, temperature=0.0), ("own", 8, 0.0)),
        (Question(PORT.text, max_tokens=1000), ("own", 64, 0.5)),
    ):
        llm = says(RIGHT)
        outcome = await answer(given, make_steps(llm), settings)
        (call,) = llm.calls
        assert (call.model, call.max_tokens, call.temperature) == expected
        assert outcome.model == "own"


async def test_depths_are_the_callers_or_the_settings() -> None:
    settings = make_settings(reranker={"top_k": 3}, retrieval={"top_k": 4})
    chunks = sum(map(len, DOCUMENTS.values()))
    for question, found, kept in (
        (Question(PORT.text), 4, 3),
        (Question(PORT.text, top_k=chunks, rerank_top_k=4), chunks, 4),
        (Question(PORT.text, top_k=1), 1, 1),
    ):
        events = await events_of(question, make_steps(says(RIGHT)), settings)
        done = events[-1]
        assert isinstance(events[0], Retrieved)
        assert isinstance(done, Done)
        assert len(events[0].hits) == kept
        assert len(done.answer.hits) >= found
        assert events[0].hits == done.answer.hits[:kept]

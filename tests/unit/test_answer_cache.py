"""Answers from the cache: which question gets which."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import fields, replace
from typing import Any

import pytest

from rag.answer_cache import _NOT_IN_ANSWERS, scope_of
from rag.config import Settings
from rag.errors import SettingsError, StageError
from rag.events import Cited, Token
from rag.filters import Equals, Metadata
from rag.pipeline import answer, stream_answer
from rag.types import Question, Usage
from tests.cache_fakes import ANOTHER, OTHERS, PORT, Asked, told
from tests.fakes import InMemoryStore
from tests.pipeline_checks import events_of
from tests.pipeline_fakes import (
    DOCUMENTS,
    FINGERPRINT,
    ScriptedLLM,
    WordScorer,
    document_rows,
    make_settings,
    raising,
    says,
    search_over,
)

# --- the same question ------------------------------------------------------------------------------------------------


async def test_the_same_question_gets_the_same_answer_and_costs_neither_llm_nor_reranker() -> None:
    asked = Asked()
    first = await asked.ask(PORT)
    scored = len(asked.scorer.calls)
    second = await asked.ask(PORT)
    assert (first.cached, second.cached) == (None, "exact")
    assert told(second) == told(first)
    assert len(first.hits) > 1
    assert (asked.llm.answers, len(asked.scorer.calls)) == (1, scored)
    assert (first.usage, second.usage) == (Usage(100, 20), Usage())
    assert {"queue", "embed", "dense", "lexical", "fuse", "cache", "ttft", "total"} == set(second.timings_ms)
    assert second.timings_ms is not first.timings_ms


async def test_it_is_streamed_as_any_other() -> None:
    """`events_of` checks what holds of every stream."""
    asked = Asked()
    asked.steps = replace(asked.steps, generate=says("It is said. The service listens on port 8000. Ada knows."))
    first, second = [await events_of(PORT, asked.steps, asked.settings) for _ in range(2)]
    assert second[0] == first[0]
    assert [event for event in second if isinstance(event, Cited)] == [
        event for event in first if isinstance(event, Cited)
    ]
    assert [event.text for event in second if isinstance(event, Token)] == [
        "It is said. The service listens on port 8000. [1]",
        " Ada knows.",
    ]


async def test_what_was_not_found_is_remembered_too_until_it_is_there() -> None:
    asked = Asked()
    question = Question("Zebra quagga okapi?")
    first, second = await asked.ask(question), await asked.ask(question)
    assert (first.status, second.status, second.cached) == ("abstained", "abstained", "exact")
    asked.store.upsert("default", document_rows({"zoo.md": ("Zebra, quagga and okapi: yes.",)}))
    assert (await asked.ask(question)).status == "answered"


def test_every_part_of_a_question_is_tried() -> None:
    assert {field.name for field in fields(Question)} == {*OTHERS, "temperature", "deadline_s"}


@pytest.mark.parametrize("name", OTHERS)
async def test_a_question_that_differs_in_one_part_is_answered_anew(name: str) -> None:
    asked = Asked()
    await asked.ask(PORT)
    other = await asked.ask(replace(PORT, **{name: OTHERS[name]}))
    assert other.cached is None
    assert (await asked.ask(PORT)).cached == "exact"


@pytest.mark.parametrize("filters", [(Equals(Metadata("n", "integer"), 1), Equals(Metadata("n", "boolean"), True))])
async def test_filters_that_python_takes_for_equal_are_told_apart(filters: tuple[Equals, Equals]) -> None:
    settings = make_settings()
    scopes = {scope_of(replace(PORT, filter=where), "1", settings) for where in filters}
    assert len(scopes) == 2


async def test_groups_in_another_order_and_another_deadline_make_no_difference() -> None:
    asked = Asked()
    await asked.ask(PORT)
    again = replace(PORT, groups=frozenset(["it", "hr"]), deadline_s=17.0)
    assert (await asked.ask(again)).cached == "exact"


CHANGES: dict[str, dict[str, Any]] = {
    "embedder": {"query_prefix": "query: "},
    "store": {"timeout_s": 7.0},
    "chunk": {"max_tokens": 100},
    "retrieval": {"rrf_k": 10},
    "reranker": {"blend": 0.25},
    "evidence": {"min_confidence": 0.1},
    "prompt": {"passage_tokens": 64},
    "grounding": {"min_support": 0.1},
    "generator": {"max_tokens": 8},
}


def test_every_group_of_settings_is_tried_or_named_as_making_no_difference() -> None:
    assert set(Settings.model_fields) == {*CHANGES, *_NOT_IN_ANSWERS, "generators", "profile"}


async def test_another_llm_s_settings_answer_its_questions_anew() -> None:
    asked, question = Asked(), replace(PORT, model=ANOTHER.model_id)
    shorter = asked.settings.model_copy(update={"generators": (ANOTHER.model_copy(update={"max_tokens": 8}),)})
    for settings, cached in ((asked.settings, None), (asked.settings, "exact"), (shorter, None)):
        assert (await asked.ask(question, settings)).cached == cached
    warm = asked.settings.model_copy(update={"generators": (ANOTHER.model_copy(update={"temperature": 0.7}),)})
    for _ in range(2):
        assert (await asked.ask(question, warm)).cached is None


@pytest.mark.parametrize("group", CHANGES)
async def test_other_settings_answer_anew(group: str) -> None:
    asked = Asked()
    await asked.ask(PORT)
    changed = getattr(asked.settings, group).model_copy(update=CHANGES[group])
    other = asked.settings.model_copy(update={group: changed})
    assert (await asked.ask(PORT, other)).cached is None
    slower = asked.settings.deadlines.model_copy(update={"total_s": 59.0})
    assert (await asked.ask(PORT, asked.settings.model_copy(update={"deadlines": slower}))).cached == "exact"


async def test_another_index_version_answers_anew() -> None:
    asked = Asked()
    await asked.ask(PORT)
    rebuilt = InMemoryStore()
    rebuilt.ensure_collection("default", replace(FINGERPRINT, splitter="other"))
    rebuilt.upsert("default", document_rows(DOCUMENTS))
    asked.steps = replace(asked.steps, search=search_over(rebuilt))
    assert (await asked.ask(PORT)).cached is None


async def test_where_the_llm_draws_its_words_it_is_asked_each_time() -> None:
    asked = Asked()
    for question in (PORT, replace(PORT, temperature=0.7), replace(PORT, temperature=0.7)):
        assert (await asked.ask(question)).cached is None
    warm = asked.settings.model_copy(
        update={"generator": asked.settings.generator.model_copy(update={"temperature": 0.7})}
    )
    for _ in range(2):
        assert (await asked.ask(PORT, warm)).cached is None
    assert asked.llm.answers == 5


def test_similar_questions_without_answers_to_give_are_a_mistake() -> None:
    with pytest.raises(SettingsError, match=r"cache.min_similarity finds nothing while cache.answers is 0"):
        make_settings(cache={"answers": 0, "min_similarity": 0.9})


async def test_the_answers_used_last_are_kept() -> None:
    asked = Asked(size=1)
    other = Question("How many characters may a question have?")
    for question, cached in ((PORT, None), (PORT, "exact"), (other, None), (PORT, None)):
        assert (await asked.ask(question)).cached == cached


# --- what is not kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        {"score": WordScorer(StageError("rerank", "down"))},
        {"score": WordScorer(StageError("ground", "down"), fails_from=1)},
        {"dense_search": raising(StageError("dense", "down"))},
        {"lexical_search": raising(StageError("lexical", "down"))},
    ],
    ids=["rerank", "ground", "dense", "lexical"],
)
async def test_an_answer_that_lacks_a_stage_is_not_kept(broken: dict[str, Any]) -> None:
    asked = Asked(**broken)
    for _ in range(2):
        given = await asked.ask(PORT)
        assert (given.cached, given.degraded != ()) == (None, True)
    asked.steps = replace(asked.steps, search=search_over(asked.store))
    assert (await asked.ask(PORT)).cached is None
    assert (await asked.ask(PORT)).cached == "exact"


async def test_an_answer_without_the_llm_is_not_kept_and_a_whole_one_outlasts_it() -> None:
    asked = Asked()
    down = replace(asked.steps, generate=ScriptedLLM([StageError("generate", "down")]))
    assert (await answer(PORT, down, asked.settings)).degraded == ("generate",)
    assert (await asked.ask(PORT)).cached is None
    outlasting = await answer(PORT, down, asked.settings)
    assert (outlasting.cached, outlasting.degraded) == ("exact", ())


@pytest.mark.parametrize("text", [PORT.text, "Zebra quagga okapi?"], ids=["found_by_words", "not_found_by_words"])
async def test_while_a_search_fails_nothing_is_taken_from_the_cache(text: str) -> None:
    asked = Asked()
    question = replace(PORT, text=text)
    await asked.ask(question)
    lexical = replace(asked.steps.search, lexical_search=raising(StageError("lexical", "down")))
    given = await answer(question, replace(asked.steps, search=lexical), asked.settings)
    assert (given.cached, given.degraded) == (None, ("lexical",))


async def test_an_answer_that_nobody_waited_for_is_not_kept() -> None:
    asked = Asked()
    async with aclosing(stream_answer(PORT, asked.steps, asked.settings)) as events:
        async for event in events:
            if isinstance(event, Token):
                break
    assert (await asked.ask(PORT)).cached is None

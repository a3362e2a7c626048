"""Answers from the cache while documents change, and those of similar questions."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest

from rag.analyze import terms
from rag.answer_cache import evidence_of
from rag.errors import StageError, UnknownCollectionError
from rag.paraphrase import is_paraphrase
from rag.types import Hit, Question, Scores, SearchResult
from tests.cache_fakes import OTHERS, PORT, PORTS, WRITES, Asked, replaced, told
from tests.fakes import HashEmbedder
from tests.pipeline_fakes import document_rows, make_hit, make_settings

# --- documents that change --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITES)
async def test_after_a_write_the_question_is_answered_anew(write: str) -> None:
    asked = Asked()
    await asked.ask(PORT)
    assert (await asked.ask(PORT)).cached == "exact"
    WRITES[write](asked.store)
    after = await asked.ask(PORT)
    assert after.cached is None
    assert told(after) == told(await asked.anew(PORT))
    assert (await asked.ask(PORT)).cached == "exact"


@pytest.mark.parametrize("write", WRITES)
async def test_an_answer_made_while_documents_are_written_is_not_given_after_it(write: str) -> None:
    asked = Asked()
    asked.llm.meanwhile = lambda: WRITES[write](asked.store)
    during = await asked.ask(PORT)
    asked.llm.meanwhile = lambda: None
    after = await asked.ask(PORT)
    assert (during.cached, after.cached) == (None, None)
    assert told(after) == told(await asked.anew(PORT))


async def test_a_collection_that_is_gone_is_gone() -> None:
    asked = Asked()
    await asked.ask(PORT)
    asked.store.drop_collection("default")
    with pytest.raises(UnknownCollectionError):
        await asked.ask(PORT)


def test_what_an_answer_takes_from_the_searches_tells_two_finds_apart() -> None:
    hits = (make_hit("a", scores=Scores(0.5, 2.0, 0.03)), make_hit("b", scores=Scores(0.4, None, 0.02)))

    def evidence(*found: Hit) -> bytes:
        return evidence_of(SearchResult(found, "1"))

    def first(**scores: float) -> bytes:
        return evidence(replace(hits[0], scores=replace(hits[0].scores, **scores)), hits[1])

    others = {
        evidence(*reversed(hits)),
        evidence(hits[0]),
        evidence(replace(hits[0], title="Other"), hits[1]),
        evidence(replace(hits[0], source="other.md"), hits[1]),
        first(fused=0.031),
        first(lexical=2.5),
        *(
            evidence(replace(hits[0], chunk=replace(hits[0].chunk, **change)), hits[1])
            for change in ({"text": "Other."}, {"heading": "Other"}, {"start_char": 1}, {"first_page": 2})
        ),
    }
    assert len(others) == 10
    assert evidence(*hits) not in others
    assert first(dense=0.50001) == evidence(*hits)


async def test_documents_that_no_search_finds_have_the_answer_made_anew_since_they_change_the_words_weights() -> None:
    """With depths of 2, which the new document does not reach."""
    asked = Asked()
    question = replace(PORT, top_k=2)
    first = await asked.ask(question)
    asked.store.upsert("default", document_rows({"far.md": ("Whale oil is no fuel for a slow lamp.",)}))
    second = await asked.ask(question)
    assert second.cached is None
    assert second.hits[0].scores.lexical != first.hits[0].scores.lexical


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_is_written_between_questions_the_cache_changes_no_answer(seed: int) -> None:
    draw = random.Random(seed)
    asked = Asked(make_settings(cache={"min_similarity": 0.5}))
    texts = ["Which port does the service listen on?", "How many characters may a question have?", "Who is Ada?"]
    hits = 0
    for _ in range(40):
        if draw.random() < 0.25:
            WRITES[draw.choice(list(WRITES))](asked.store)
        if draw.random() < 0.2:
            asked.store.upsert("default", PORTS)
        groups = draw.choice([frozenset[str](), frozenset({"board"})])
        question = Question(draw.choice(texts), groups=groups)
        given = await asked.ask(question)
        assert told(given) == told(await asked.anew(question))
        hits += given.cached == "exact"
    assert hits > 0


# --- similar questions ------------------------------------------------------------------------------------------------

ALIKE = replace(PORT, text="On what port does the service listen?")
SIMILAR = make_settings(cache={"min_similarity": 0.6})


async def test_a_similar_question_gets_the_answer_where_the_settings_allow_it() -> None:
    asked = Asked(SIMILAR)
    first = await asked.ask(PORT)
    second = await asked.ask(ALIKE)
    assert (second.cached, second.query, asked.llm.answers) == ("semantic", PORT.text, 1)
    assert told(second) == told(first)
    assert "cache" in second.timings_ms
    assert (await asked.ask(PORT)).cached == "exact"


async def test_by_default_it_does_not() -> None:
    asked = Asked()
    assert asked.settings.cache.min_similarity is None
    for question in (PORT, ALIKE):
        assert (await asked.ask(question)).cached is None


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "text"])
async def test_all_that_came_with_it_holds_for_the_similar_question_s_search_too(name: str) -> None:
    asked = Asked(SIMILAR)
    asked.store.upsert("default", replaced(PORTS, acl=("hr",)))
    for part in ("collection", "filter", "groups", "top_k"):  # what a search without it would find is another thing
        asked.store.upsert("other", document_rows({f"{part}.md": ("The service listens on port 7000.",)}))
    await asked.ask(replace(PORT, **{name: OTHERS[name]}))
    given = await asked.ask(replace(ALIKE, **{name: OTHERS[name]}))
    assert given.cached == "semantic"


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "text"])
async def test_a_similar_question_that_differs_in_another_part_is_answered_anew(name: str) -> None:
    asked = Asked(SIMILAR)
    await asked.ask(PORT)
    assert (await asked.ask(replace(ALIKE, **{name: OTHERS[name]}))).cached is None


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("On what port does the service listen?", 0.99),
        ("On what port does the Acme service listen?", 0.5),
        ("On what port does the service not listen?", 0.5),
        ("On what 2 port does the service listen?", 0.5),
        ("On what door does the service listen?", 0.5),
        ("Where does the service listen on port?", 0.5),
    ],
    ids=["less_near", "name", "negation", "number", "other_word", "place"],
)
async def test_a_question_that_is_not_the_same_is_answered_anew(text: str, least: float) -> None:
    asked = Asked(make_settings(cache={"min_similarity": least}))
    await asked.ask(PORT)
    assert (await asked.ask(replace(PORT, text=text))).cached is None


@pytest.mark.parametrize("write", WRITES)
async def test_after_a_write_a_similar_question_is_answered_anew_too(write: str) -> None:
    asked = Asked(SIMILAR)
    await asked.ask(PORT)
    WRITES[write](asked.store)
    after = await asked.ask(ALIKE)
    assert after.cached is None
    assert told(after) == told(await asked.anew(ALIKE))


async def test_one_more_word_that_leads_to_another_passage_makes_another_question() -> None:
    asked = Asked(make_settings(cache={"min_similarity": 0.3}))
    await asked.ask(PORT)
    other = replace(PORT, text="Which port does the service listen on, plum trees bloom in an orchard?")
    assert is_paraphrase(PORT.text, other.text, terms)
    given = await asked.ask(other)
    assert given.cached is None
    assert told(given) == told(await asked.anew(other))


async def test_a_similar_question_s_search_that_lacks_a_branch_gives_nothing() -> None:
    """Words find nothing for either question: that the search by words is down would not show in what is found."""
    asked = Asked(SIMILAR)
    search = asked.steps.search
    first, second = (replace(PORT, text=f"{lead} zebra quagga?") for lead in ("Is this for", "Is this for a"))

    async def lexical_search(collection: str, query: str, top_k: int, **options: Any) -> SearchResult:
        if down and query == first.text:
            raise StageError("lexical", "down")
        return await search.lexical_search(collection, query, top_k, **options)

    asked.steps = replace(asked.steps, search=replace(search, lexical_search=lexical_search))
    down = False
    await asked.ask(first)
    assert (await asked.ask(second)).cached == "semantic"
    down = True
    given = await asked.ask(second)
    assert (given.cached, given.degraded) == (None, ())


async def test_an_answer_given_to_a_similar_question_counts_as_used() -> None:
    asked = Asked(SIMILAR, size=2)
    orchard, limit = Question("When do plum trees bloom?"), Question("How many characters may a question have?")
    for question, cached in ((PORT, None), (orchard, None), (ALIKE, "semantic"), (limit, None), (PORT, "exact")):
        assert (await asked.ask(question)).cached == cached


async def test_a_similar_question_s_search_that_fails_leaves_the_answer_whole() -> None:
    calls = 0
    embedder = HashEmbedder()

    async def embed(texts: list[str], kind: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise StageError("embed", "down")
        return await embedder.embed(texts, kind)

    # Asking PORT embeds twice, for the search and to compare; then ALIKE's two, and PORT's for the second search.
    for failing in (4, 5):
        calls = 0
        asked = Asked(SIMILAR, embed=embed)
        await asked.ask(PORT)
        given = await asked.ask(ALIKE)
        assert (given.cached, given.degraded, calls >= failing) == (None, (), True)


async def test_a_question_that_is_asked_by_many_at_once_is_answered_to_all() -> None:
    asked = Asked(SIMILAR)
    answers = await asyncio.gather(*(asked.ask(PORT) for _ in range(5)))
    assert len({given.answer for given in answers}) == 1
    assert (await asked.ask(PORT)).cached == "exact"

"""Answers given again: to the same question, and to a similar one where `cache.min_similarity` allows it.

An answer is made of a question with all that came with it, of the settings, and of what the searches found. The first
two are its key. The third is found anew for each question, under the caller's own groups and filter: an answer is given
again only where the searches give the very same chunks in the same order, and by words with the same scores. So no
change of the documents, whichever process makes it, has to be told to the cache, and none can leave an answer stale.
What is saved is all that comes behind the searches: reranking, the LLM, grounding.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from rag.cache import Recent
from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import DeadlineError
from rag.events import Cited, Done, Event, Retrieved, Token
from rag.language import understands
from rag.paraphrase import is_paraphrase
from rag.retrieve import DEGRADABLE, SearchSteps, retrieve
from rag.types import Answer, Hit, Question, SearchResult, Usage, Vector

logger = logging.getLogger(__name__)

_TRIED = 8  # similar questions whose words are compared
# What a whole answer does not depend on: how long stages may take, where the service listens, keeps its files and sends
# its traces, and how a question came to its LLM, which is in it.
_NOT_IN_ANSWERS = {"deadlines", "serve", "trace", "split", "ingest", "cache", "data_dir", "cache_dir", "config_file"}


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer without its hits, whose texts the next search brings again; of each hit, best first, its place among
    those found before reranking, its score and its rerank score.

    `evidence` stands for what the searches for `query` found; `vector` is the query's, None where only the same
    question gets the answer.
    """

    query: str
    evidence: bytes
    answer: Answer
    ranking: tuple[tuple[int, float, float | None], ...]
    vector: Vector | None

    def restore(self, found: SearchResult, cached: Literal["exact", "semantic"]) -> Answer:
        """The answer over what the searches found now. The LLM wrote nothing for it; its timings are the old ones."""
        hits = tuple(_rescored(found.hits[place], score, rerank) for place, score, rerank in self.ranking)
        return replace(self.answer, hits=hits, usage=Usage(), dropped=0, cached=cached)


class AnswerCache:
    """The `size` answers used last, by a scope and their question's text."""

    def __init__(self, size: int) -> None:
        self._kept: Recent[tuple[bytes, str], KeptAnswer] = Recent(size)

    def get(self, scope: bytes, text: str) -> KeptAnswer | None:
        """What is kept for the question of that very text."""
        return self._kept.get((scope, text))

    def put(self, scope: bytes, text: str, kept: KeptAnswer) -> None:
        """Keeps it in place of what the question had."""
        self._kept.put((scope, text), kept)

    def drop(self, scope: bytes, text: str) -> None:
        """Forgets an answer that can be given no more."""
        self._kept.drop((scope, text))

    def similar(self, scope: bytes, text: str, vector: Vector, least: float) -> list[tuple[str, KeptAnswer]]:
        """The scope's other questions of a cosine of at least `least`, nearest first, and what they got; a few."""
        near = [
            (float(kept.vector @ vector), own_text, kept)
            for (own, own_text), kept in self._kept.items()
            if own == scope and own_text != text and kept.vector is not None
        ]
        near = sorted((entry for entry in near if entry[0] >= least), key=lambda entry: -entry[0])
        return [(own_text, kept) for _, own_text, kept in near[:_TRIED]]


@dataclass(slots=True)
class Lookup:
    """One question at the cache: `recall` gives an answer again, else `keep` takes the one that was made.

    `found` is what the searches gave for `query`, before reranking and with no branch left out; `scope` and `evidence`
    stand for what two questions must have in common, see `scope_of` and `evidence_of`.
    """

    cache: AnswerCache
    question: Question
    query: str
    found: SearchResult
    steps: SearchSteps
    settings: Settings
    clock: RequestClock
    scope: bytes
    evidence: bytes
    vector: Vector | None = None

    async def recall(self) -> Answer | None:
        """The answer that the same question got, or a similar one, over the same evidence, with this one's timings."""
        with self.clock.timed("cache"):
            known = self._recall_same() or await self._recall_similar()
        if known is None:
            return None
        self.clock.mark("ttft")
        self.clock.mark("total")
        return replace(known, timings_ms=dict(self.clock.timings_ms))

    def keep(self, answer: Answer) -> None:
        """Remembers an answer unless something was left out of it."""
        if answer.degraded:
            return
        places = {hit.chunk.chunk_id: place for place, hit in enumerate(self.found.hits)}
        ranking = tuple((places[hit.chunk.chunk_id], hit.score, hit.scores.rerank) for hit in answer.hits)
        kept = KeptAnswer(self.query, self.evidence, replace(answer, hits=()), ranking, self.vector)
        self.cache.put(self.scope, self.question.text, kept)

    def _recall_same(self) -> Answer | None:
        kept = self.cache.get(self.scope, self.question.text)
        return kept.restore(self.found, "exact") if kept and kept.evidence == self.evidence else None

    async def _recall_similar(self) -> Answer | None:
        """The answer of the most similar question that its words do not tell apart, if the searches find the same."""
        least, limits = self.settings.cache.min_similarity, self.settings.deadlines
        if least is None or not understands(self.settings.embedder.languages, self.query):
            return None
        try:
            vectors = await self.clock.run(
                "embed", lambda: self.steps.embed([self.query], "query"), limits.embed_s, optional=True
            )
            self.vector = vectors[0]
            for text, kept in self.cache.similar(self.scope, self.question.text, vectors[0], least):
                if await asyncio.to_thread(is_paraphrase, self.query, kept.query, self.steps.terms):
                    return await self._search_again(text, kept)
        except (*DEGRADABLE, DeadlineError) as error:
            logger.warning("answering without a similar question's answer: %s", error, extra={"stage": "cache"})
        return None

    async def _search_again(self, text: str, kept: KeptAnswer) -> Answer | None:
        clock = RequestClock(self.clock.left_s)  # what this search lacks is not missing in the answer
        found = await retrieve(
            kept.query,
            self.question.collection,
            self.steps,
            self.settings,
            clock,
            groups=self.question.groups,
            where=self.question.filter,
            top_k=self.question.top_k,
            rerank=False,
        )
        if clock.degraded:
            return None
        if (kept.evidence, self.found.index_version) != (evidence_of(found), found.index_version):
            self.cache.drop(self.scope, text)
            return None
        # Words that only one of the questions has may lead elsewhere.
        if [hit.chunk.chunk_id for hit in found.hits[:1]] != [hit.chunk.chunk_id for hit in self.found.hits[:1]]:
            return None
        self.cache.get(self.scope, text)  # it counts as used
        return kept.restore(found, "semantic")


def replay_answer(answer: Answer, hits: tuple[Hit, ...]) -> Iterator[Event]:
    """The events of an answer from the cache; `hits` are those kept for the prompt.

    Each supported sentence with what stands before it is one piece.
    """
    yield Retrieved(hits)
    sent = 0
    for citation in answer.citations:
        end = citation.answer_end + len(f" [{citation.marker}]")
        yield Token(answer.answer[sent:end])
        yield Cited(citation)
        sent = end
    if sent < len(answer.answer):
        yield Token(answer.answer[sent:])
    yield Done(answer)


def begin_lookup(
    cache: AnswerCache | None,
    question: Question,
    query: str,
    found: SearchResult,
    steps: SearchSteps,
    settings: Settings,
    clock: RequestClock,
) -> Lookup | None:
    """The question at the cache; None where its answer must not be kept.

    That is where a search was left out, and where the LLM is to draw its words: such a question wants a new answer.
    """
    llm = settings.llms[question.model or settings.generator.model_id]
    temperature = llm.temperature if question.temperature is None else question.temperature
    if cache is None or clock.degraded or temperature > 0:
        return None
    scope = scope_of(question, found.index_version, settings)
    return Lookup(cache, question, query, found, steps, settings, clock, scope, evidence_of(found))


def scope_of(question: Question, index_version: str, settings: Settings) -> bytes:
    """Stands for everything but the question's text and what is found: what two questions must have in common.

    Every field of Question and every group of settings is in it unless it is named here, so that a new one cannot be
    forgotten. An answer from which nothing was left out does not depend on its deadline.
    """
    groups = None if question.groups is None else sorted(question.groups)
    others = replace(question, text="", deadline_s=None, groups=None)
    return _digest(groups, others, index_version, settings.model_dump_json(exclude=_NOT_IN_ANSWERS))


def evidence_of(found: SearchResult) -> bytes:
    """Stands for all that an answer takes from the searches: the hits in their order, with fused and lexical scores.

    The lexical ones change with every document of the collection, and the blend weighs them. Query and chunk decide
    the dense ones, which are left out: they differ in the last digits where a query is embedded again in another batch.
    What a later step comes to read of a hit has to be put in here.
    """
    return _digest([(hit.chunk, hit.title, hit.source, hit.scores.fused, hit.scores.lexical) for hit in found.hits])


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _rescored(hit: Hit, score: float, rerank: float | None) -> Hit:
    return replace(hit, score=score, scores=replace(hit.scores, rerank=rerank))

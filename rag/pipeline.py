"""The question flow: retrieve -> evidence gate -> prompt -> generate -> ground, streamed sentence by sentence.

`stream_answer` is the only implementation; `answer` collects it. The steps that own a model or a connection are
callables, so the same code runs over plain functions, in-process objects and Ray Serve handles.

A sentence is sent once it is grounded. Those before the first supported one are held back: when none comes, the answer
is extracted from the evidence instead, and nothing that was sent has to be taken back.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from rag.claims import Terms
from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import DeadlineError, StageTimeoutError
from rag.evidence import Verdict, judge_evidence
from rag.extract import asks
from rag.ground import (
    AnswerText,
    Evidence,
    Grounded,
    answers_question,
    extract_answer,
    ground_sentence,
    is_refusal,
    lexical_similarity,
    question_relevance,
    split_evidence,
    strip_markers,
)
from rag.instructions import FindInstructions, find_instructions
from rag.language import language_of, understands
from rag.prompt import Prompt, build_prompt
from rag.retrieve import DEGRADABLE, SearchSteps, retrieve, score_spans
from rag.rewrite import rewrite_question
from rag.sentences import complete_sentences, split_sentences
from rag.types import Answer, Citation, CountTokens, Generate, Hit, Passage, Question, SearchResult, Span, Stage, Usage

logger = logging.getLogger(__name__)

_ENDED = re.compile(r"[.!?。！？…]['\"”’)\]*_`]*(?:\s*\[\d+\])*$")

ABSTENTION = {
    "latin": "The documents hold no answer to this question.",
    "ko": "문서에서 이 질문의 답을 찾지 못했습니다.",
}


@dataclass(frozen=True, slots=True)
class Steps:
    """Everything the flow calls."""

    search: SearchSteps
    generate: Generate
    count_tokens: CountTokens
    instructions: FindInstructions = find_instructions

    @property
    def terms(self) -> Terms:
        return self.search.terms


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The passages' hits are known."""

    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer; all pieces joined are the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Cited:
    """A verified citation of what was just sent."""

    citation: Citation


@dataclass(frozen=True, slots=True)
class Degraded:
    """The stages left out so far."""

    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer; nothing follows."""

    answer: Answer


Event = Retrieved | Token | Cited | Degraded | Done


async def answer(question: Question, steps: Steps, settings: Settings, *, queue_s: float = 0.0) -> Answer:
    """The answer as one value; raises what `stream_answer` raises."""
    async with aclosing(stream_answer(question, steps, settings, queue_s=queue_s)) as events:
        async for event in events:
            if isinstance(event, Done):
                return event.answer
    raise AssertionError("stream_answer ended without Done")


async def stream_answer(
    question: Question, steps: Steps, settings: Settings, *, queue_s: float = 0.0
) -> AsyncGenerator[Event, None]:
    """Events in order: Retrieved, then Token and Cited by sentence (Degraded once when stages were left out), Done.

    Raises UnknownCollectionError, IndexMismatchError, InputError, DeadlineError, and StageError or
    StoreUnavailableError when nothing could be searched. Closing the iterator ends the generation.
    """
    deadline_s = min(question.deadline_s or settings.deadlines.total_s, settings.deadlines.max_s)
    clock = RequestClock(deadline_s, queue_s)
    query = question.text
    if question.conversation:
        query = await asyncio.to_thread(rewrite_question, question.text, question.conversation, steps.terms)
    found = await retrieve(
        query,
        question.collection,
        steps.search,
        settings,
        clock,
        groups=question.groups,
        where=question.filter,
        top_k=question.top_k,
    )
    hits = found.hits[: question.rerank_top_k or settings.reranker.top_k]
    yield Retrieved(hits)
    flow = _Flow(question, query, steps, settings, clock, found, hits)
    await flow.judge()
    if flow.verdict.decision == "abstain":
        yield Token(flow.abstain())
    else:
        async with aclosing(flow.write()) as events:
            async for event in events:
                yield event
    if clock.degraded:
        yield Degraded(tuple(clock.degraded))
    yield Done(flow.answer())


@dataclass(slots=True)
class _Flow:
    """One question after retrieval; collects what becomes the Answer."""

    question: Question
    query: str  # the question as it can be understood without the conversation
    steps: Steps
    settings: Settings
    clock: RequestClock
    found: SearchResult  # every candidate
    hits: tuple[Hit, ...]  # those kept for the prompt
    verdict: Verdict = field(default_factory=lambda: Verdict("answer"))
    written: AnswerText = field(default_factory=AnswerText)
    extracted: bool = False
    refused: bool = False
    usage: Usage = field(default_factory=Usage)
    prompt: Prompt | None = None
    evidence: Evidence | None = None
    similarity: list[np.ndarray] = field(default_factory=list)  # the query's, to each sentence of the evidence

    async def judge(self) -> None:
        """Reads the passages, and decides whether they hold the answer."""
        if self.hits:
            with self.clock.timed("prompt"):
                self.evidence = await asyncio.to_thread(self._prepare)
            self.similarity = await self._similarity(self.query, self.evidence)
        self.verdict = await asyncio.to_thread(
            judge_evidence,
            self.question.text,  # a former question's names, numbers and negation are not claimed again
            self.hits,
            self.settings.evidence,
            understood=understands(self.settings.reranker.languages, self.query),
            sentence=self._best_sentence(),
            split=split_sentences,
            terms=self.steps.terms,
        )

    def _best_sentence(self) -> float | None:
        """The best score of a sentence of the first passage that may be quoted; None where the scorer gave none."""
        if not self.similarity or self.evidence is None or "ground" in self.clock.degraded:
            return None
        scores = zip(self.evidence.sentences[0], self.similarity[0].tolist(), strict=True)
        return max((score for sentence, score in scores if not sentence.instructs), default=None)

    def abstain(self) -> str:
        """Makes the answer a plain sentence that says so."""
        if self.verdict.decision == "answer":
            self.verdict = Verdict("abstain", "no_evidence", self.verdict.confidence)
        text = ABSTENTION.get(language_of(self.question.text), ABSTENTION["latin"])
        self.written = AnswerText(text)
        return text

    async def write(self) -> AsyncGenerator[Event, None]:
        """The answer's events: generated while it is supported, else extracted, else an abstention.

        An LLM that does not understand the question's language is not asked: all that it would write is thrown away.
        """
        assert self.evidence is not None
        relevance = question_relevance(self.evidence, self.similarity)
        if understands(self.settings.generator.languages, self.question.text):
            async with aclosing(self._generated(self.evidence, relevance)) as events:
                async for event in events:
                    yield event
        if not self.written.text:
            for event in self._without_support(self.evidence, relevance):
                yield event

    async def _generated(self, evidence: Evidence, relevance: list[np.ndarray]) -> AsyncGenerator[Event, None]:
        """What the LLM writes, from its first supported sentence on, at most `max_sentences`; nothing when none is."""
        held: list[Grounded] = []
        try:
            async with aclosing(self._sentences()) as sentences:
                async for sentence in sentences:
                    grounded, good = await self._judge(sentence, evidence, relevance)
                    # Small models repeat themselves.
                    if grounded is None or any(grounded.text == other.text for other in held):
                        continue
                    held.append(grounded)
                    if good or self.written.text:
                        for event in self._send(held):
                            yield event
                        held = []
                    if len(self.written.citations) == self.settings.grounding.max_sentences:
                        return
        except DEGRADABLE as error:
            logger.warning("answering without the LLM: %s", error)
            self.clock.leave_out("generate")

    def _prepare(self) -> Evidence:
        """The prompt, and the sentences of every hit. Tokenising and analysing take too long for an event loop.

        A passage for which the prompt has no room may still hold the answer, or the proof of one.
        """
        instructions = cache(self.steps.instructions)  # of each hit once for both
        self.prompt = build_prompt(
            self.question.text,
            self.hits,
            self.question.conversation,
            count_tokens=self.steps.count_tokens,
            settings=self.settings.prompt,
            instructions=instructions,
        )
        known = {passage.hit.chunk.chunk_id for passage in self.prompt.passages}
        others = (hit for hit in self.hits if hit.chunk.chunk_id not in known)
        passages = [*self.prompt.passages, *(Passage(n, hit) for n, hit in enumerate(others, start=len(known) + 1))]
        return split_evidence(passages, self.query, split_sentences, self.steps.terms, instructions)

    def _without_support(self, evidence: Evidence, relevance: list[np.ndarray]) -> list[Event]:
        """Nothing that the LLM wrote is supported: the evidence's own sentences, or an abstention."""
        if self.refused and self.settings.grounding.reader == "strong":
            return [Token(self.abstain())]
        with self.clock.timed("ground"):
            sentences = extract_answer(evidence, relevance, self.settings.grounding)
        if not sentences:
            return [Token(self.abstain())]
        self.extracted = True
        return self._send(sentences)

    async def _judge(
        self, sentence: str, evidence: Evidence, relevance: list[np.ndarray]
    ) -> tuple[Grounded | None, bool]:
        """The sentence with its quote, and whether it answers; (None, False) for one that is left out."""
        grounding = self.settings.grounding
        if is_refusal(sentence):
            self.refused = True
            return None, False
        if asks(strip_markers(sentence)):  # small models repeat the question
            return None, False
        similarity = await self._similarity(strip_markers(sentence), evidence)
        with self.clock.timed("ground"):
            grounded, good = await asyncio.to_thread(self._ground, sentence, evidence, similarity, relevance)
        if not grounded.text or grounded.text in self.written.text or (not good and grounding.reader == "weak"):
            return None, False
        return grounded, good

    def _ground(
        self, sentence: str, evidence: Evidence, similarity: list[np.ndarray], relevance: list[np.ndarray]
    ) -> tuple[Grounded, bool]:
        """The sentence with its quote, and whether it answers: it does not when it only says the question again."""
        grounded = ground_sentence(
            sentence, evidence, similarity, relevance, terms=self.steps.terms, settings=self.settings.grounding
        )
        adds = set(self.steps.terms(grounded.text)) - evidence.question.terms
        return grounded, bool(adds) and answers_question(grounded, relevance, self.settings.grounding)

    def _send(self, sentences: list[Grounded]) -> list[Event]:
        self.clock.mark("ttft")
        events: list[Event] = []
        for sentence in sentences:
            known = len(self.written.citations)
            events.append(Token(self.written.add(sentence)))
            events.extend(Cited(citation) for citation in self.written.citations[known:])
        return events

    async def _sentences(self) -> AsyncGenerator[str, None]:
        """The LLM's sentences, each as soon as it is complete.

        Raises StageTimeoutError when the stage's time is up; a sentence that was cut off by it is not given.
        """
        assert self.prompt is not None
        generator = self.settings.generator
        temperature = self.question.temperature
        pieces = self.steps.generate(
            self.prompt.messages,
            model=self.question.model,
            max_tokens=min(self.question.max_tokens or generator.max_tokens, generator.max_tokens),
            temperature=generator.temperature if temperature is None else temperature,
        )
        budget_s = self.clock.limit_s(self.settings.deadlines.generate_s, optional=True)
        ends_at = asyncio.get_running_loop().time() + budget_s
        text, taken = "", 0  # `taken`: where the last sentence given ends
        iterator = aiter(pieces)
        finish_reason: str | None = None
        try:
            while True:
                with self.clock.timed("generate"):
                    try:
                        async with asyncio.timeout_at(ends_at):
                            piece = await anext(iterator)
                    except StopAsyncIteration:
                        break
                    except TimeoutError as error:
                        raise StageTimeoutError("generate", f"not finished within {budget_s:.1f} s") from error
                text += piece.text
                self.usage = piece.usage or self.usage
                finish_reason = piece.finish_reason or finish_reason
                for start, end in complete_sentences(text, done=False, start=taken):
                    taken = end
                    yield text[start:end]
            for start, end in _last_sentences(text, taken, finish_reason):
                yield text[start:end]
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    async def _similarity(self, text: str, evidence: Evidence) -> list[np.ndarray]:
        """The scorer's values for every evidence sentence; by shared words when it is down (`ground` degraded)."""
        if not understands(self.settings.reranker.languages, self.query):
            return await asyncio.to_thread(lexical_similarity, text, evidence, self.steps.terms)
        if not {"rerank", "ground"} & set(self.clock.degraded):
            try:
                hits = [passage.hit for passage in evidence.passages]
                return await self.clock.run(
                    "ground",
                    lambda: score_spans(text, hits, evidence.spans, self.steps.search.score),
                    self.settings.deadlines.ground_s,
                    optional=True,
                )
            except (*DEGRADABLE, DeadlineError) as error:
                logger.warning("grounding by words alone: %s", error)
        self.clock.leave_out("ground")
        return await asyncio.to_thread(lexical_similarity, text, evidence, self.steps.terms)

    def answer(self) -> Answer:
        """Everything as the caller gets it."""
        abstained = self.verdict.decision == "abstain"
        self.clock.timings_ms["total"] = round(self.clock.elapsed_s * 1000, 3)
        return Answer(
            status="abstained" if abstained else "answered",
            answer=self.written.text,
            answer_source=None if abstained else "extracted" if self.extracted else "generated",
            reason=self.verdict.reason,
            citations=tuple(self.written.citations),
            unsupported=tuple(self.written.unsupported),
            confidence=self.verdict.confidence,
            degraded=tuple(self.clock.degraded),
            collection=self.question.collection,
            index_version=self.found.index_version,
            model=self.question.model or self.settings.generator.model_id,
            usage=self.usage,
            timings_ms=dict(self.clock.timings_ms),
            hits=self.found.hits,
            query=self.query,
            prompt_hash=self.prompt.hash if self.prompt else None,
        )


def _last_sentences(text: str, start: int, finish_reason: str | None) -> list[Span]:
    """What is left at the end; a sentence that the token limit cut off is not one."""
    spans = complete_sentences(text, done=True, start=start)
    if finish_reason == "length" and spans and not _ENDED.search(text[slice(*spans[-1])]):
        return spans[:-1]
    return spans

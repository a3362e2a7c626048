"""The question flow: retrieve -> evidence gate -> prompt -> generate -> ground, streamed sentence by sentence.

`stream_answer` is the only implementation; `answer` collects it. The steps that own a model or a connection are
callables, so the same code runs over plain functions, in-process objects and Ray Serve handles.

A sentence is sent once it is grounded. Those before the first supported one are held back: when none comes, the answer
is extracted from the evidence instead, and nothing that was sent has to be taken back.

Where the searches find what they found for the same question before, its answer is given again (rag.answer_cache).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from rag.answer_cache import AnswerCache, begin_lookup, replay_answer
from rag.claims import Terms
from rag.clock import RequestClock, TraceStage
from rag.config import Settings
from rag.events import Cited, Degraded, Done, Event, Retrieved, Token
from rag.evidence import Verdict, judge_evidence
from rag.extract import asks, extract_answer, in_full, unsaid
from rag.ground import (
    AnswerText,
    Evidence,
    Grounded,
    Quote,
    answers_question,
    ground_sentence,
    is_refusal,
    split_evidence,
    strip_markers,
)
from rag.instructions import FindInstructions, find_instructions
from rag.language import language_of, understands
from rag.prompt import Prompt, build_prompt
from rag.reading import Reading, match_sentences, read_evidence
from rag.refusal import ABSTENTION
from rag.retrieve import DEGRADABLE, SearchSteps, rerank_found, retrieve
from rag.rewrite import rewrite_question
from rag.sentences import complete_sentences, last_sentences, split_sentences
from rag.types import Answer, CountTokens, Generate, Hit, Passage, Question, SearchResult, Usage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Steps:
    """Everything the flow calls; without `answers` every question is answered anew. `trace` hears of each stage."""

    search: SearchSteps
    generate: Generate
    count_tokens: CountTokens
    answers: AnswerCache | None = None
    instructions: FindInstructions = find_instructions
    trace: TraceStage | None = None

    @property
    def terms(self) -> Terms:
        return self.search.terms


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
    flow = await begin(question, steps, settings, queue_s=queue_s)
    lookup = begin_lookup(steps.answers, question, flow.query, flow.found, steps.search, settings, flow.clock)
    if lookup is not None and (known := await lookup.recall()) is not None:
        for event in replay_answer(known, known.hits[: flow.rerank_top_k]):
            yield event
        return
    await flow.rerank()
    yield Retrieved(flow.hits)
    await flow.judge()
    async with aclosing(flow.finish()) as events:
        async for event in events:
            if lookup is not None and isinstance(event, Done):
                lookup.keep(event.answer)
            yield event


async def begin(question: Question, steps: Steps, settings: Settings, *, queue_s: float = 0.0) -> Flow:
    """The question with what the searches found for it. Raises what `stream_answer` raises."""
    deadline_s = min(question.deadline_s or settings.deadlines.total_s, settings.deadlines.max_s)
    clock = RequestClock(deadline_s, queue_s, steps.trace)
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
        rerank=False,
    )
    return Flow(question, query, steps, settings, clock, found, question.model or settings.generator.model_id)


@dataclass(slots=True)
class Flow:
    """One question after its searches. Collects what becomes the Answer, by `rerank`, then `judge`, then `finish`."""

    question: Question
    query: str  # the question as it can be understood without the conversation
    steps: Steps
    settings: Settings
    clock: RequestClock
    found: SearchResult  # every candidate
    llm: str  # the one chosen; in its place the one of its fallback that answered
    hits: tuple[Hit, ...] = ()  # those kept for the prompt
    verdict: Verdict = field(default_factory=lambda: Verdict("answer"))
    written: AnswerText = field(default_factory=AnswerText)
    refused: bool = False
    dropped: int = 0  # sentences that LLMs wrote and that are not in the answer
    usage: Usage = field(default_factory=Usage)
    prompt: Prompt | None = None
    evidence: Evidence | None = None
    reading: Reading = field(default_factory=lambda: Reading([]))  # of the evidence, for the query

    @property
    def rerank_top_k(self) -> int:
        return self.question.rerank_top_k or self.settings.reranker.top_k

    @property
    def writers(self) -> list[str]:
        """The LLMs to be asked, one where those before it failed: the chosen one and its `fallback`; none to abstain.

        One that does not understand the question's language is not asked: all that it would write were thrown away.
        """
        if self.verdict.decision == "abstain":
            return []
        llms, text = self.settings.llms, self.question.text
        return [name for name in (self.llm, *llms[self.llm].fallback) if understands(llms[name].languages, text)]

    def sampling(self, llm: str) -> dict[str, Any]:
        """How an LLM is asked: `max_tokens` and `temperature`."""
        generator, wanted = self.settings.llms[llm], self.question
        return {
            "max_tokens": min(wanted.max_tokens or generator.max_tokens, generator.max_tokens),
            "temperature": generator.temperature if wanted.temperature is None else wanted.temperature,
        }

    async def rerank(self) -> None:
        """Reranks what was found, and keeps the best for the prompt."""
        self.found = await rerank_found(
            self.query, self.question.collection, self.found, self.steps.search, self.settings, self.clock
        )
        self.hits = self.found.hits[: self.rerank_top_k]

    async def judge(self) -> None:
        """Reads the passages, and decides whether they hold the answer."""
        if self.hits:
            with self.clock.timed("prompt"):
                self.evidence = await asyncio.to_thread(self._prepare)
            self.reading = await read_evidence(self.query, self.evidence, self.steps.search, self.settings, self.clock)
        self.verdict = await asyncio.to_thread(
            judge_evidence,
            self.question.text,  # a former question's names, numbers and negation are not claimed again
            self.hits,
            self.settings.evidence,
            understood=understands(self.settings.reranker.languages, self.query),
            sentence=self.reading.sentence,
            answerability=self.reading.answerability,
            split=split_sentences,
            terms=self.steps.terms,
        )

    def abstain(self) -> str:
        """Makes the answer a plain sentence that says so."""
        if self.verdict.decision == "answer":
            self.verdict = Verdict("abstain", "no_evidence", self.verdict.confidence)
        text = ABSTENTION.get(language_of(self.question.text), ABSTENTION["latin"])
        self.written = AnswerText(text)
        return text

    async def finish(self) -> AsyncGenerator[Event, None]:
        """Everything after Retrieved."""
        if self.verdict.decision == "abstain":
            yield Token(self.abstain())
        else:
            async with aclosing(self._write()) as events:
                async for event in events:
                    yield event
        if self.clock.degraded:
            yield Degraded(tuple(self.clock.degraded))
        yield Done(self._answer())

    async def _write(self) -> AsyncGenerator[Event, None]:
        """The answer's events: generated while it is supported, else extracted, else an abstention.

        Where an LLM fails before anything was sent, the next of `writers` writes.
        """
        assert self.evidence is not None
        relevance = self.reading.relevance
        failed = list[str]()
        for name in self.writers:
            try:
                async with aclosing(self._generated(name, self.evidence, relevance)) as events:
                    async for event in events:
                        yield event
            except DEGRADABLE as error:
                logger.warning("answering without the LLM %s: %s", name, error, extra={"stage": "generate"})
                failed.append(name)
            if self.written.text or name not in failed:
                self.llm = name
                break
        for name in failed:
            self.clock.leave_out("generate", None if self.llm in failed else name)
        if not self.written.text or self.settings.grounding.reader == "weak":
            for event in self._from_evidence(self.evidence, relevance):
                yield event

    async def _generated(
        self, llm: str, evidence: Evidence, relevance: list[np.ndarray]
    ) -> AsyncGenerator[Event, None]:
        """What it writes, from its first supported sentence on, at most `max_sentences`; nothing when none is."""
        held: list[Grounded] = []
        self.refused = False
        async with aclosing(self._sentences(llm)) as sentences:
            async for sentence in sentences:
                self.dropped += 1  # until it is sent
                grounded, good = await self._judge(sentence, evidence, relevance)
                # Small models repeat themselves.
                if grounded is None or any(grounded.text == other.text for other in held):
                    continue
                held.append(grounded)
                if good or self.written.text:
                    self.dropped -= sum(not one.extracted for one in held)
                    for event in self._send(held):
                        yield event
                    held = []
                if len(self.written.citations) == self.settings.grounding.max_sentences:
                    return

    def _prepare(self) -> Evidence:
        """The prompt, and the sentences of every hit: one that it has no room for may still hold the answer, or prove
        one. Tokenising and analysing take too long for an event loop."""
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

    def _from_evidence(self, evidence: Evidence, relevance: list[np.ndarray]) -> list[Event]:
        """What the evidence's own answer has beyond what was written; without either an abstention."""
        if not self.written.text and self.refused and self.settings.grounding.reader == "strong":
            return [Token(self.abstain())]
        with self.clock.timed("ground"):
            extracted = extract_answer(evidence, relevance, self.settings.grounding)
        if not extracted and not self.written.text:
            return [Token(self.abstain())]
        return self._send(extracted)

    async def _judge(
        self, sentence: str, evidence: Evidence, relevance: list[np.ndarray]
    ) -> tuple[Grounded | None, bool]:
        """The sentence with its quote, and whether it answers; (None, False) for one that is left out."""
        grounding, text = self.settings.grounding, strip_markers(sentence)
        if asks(text):  # small models repeat the question
            return None, False
        similarity = await match_sentences(text, self.query, evidence, self.steps.search, self.settings, self.clock)
        with self.clock.timed("ground"):
            grounded, good = await asyncio.to_thread(self._ground, sentence, evidence, similarity, relevance)
        # "We do not provide refunds." is no refusal where a document says so.
        if is_refusal(sentence) and not self._stands_in(text, grounded.quote):
            self.refused = True
            return None, False
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
        if self.settings.grounding.reader == "weak":
            grounded = in_full(grounded, evidence, self.steps.terms)
        return grounded, bool(adds) and answers_question(grounded, relevance, self.settings.grounding)

    def _stands_in(self, text: str, quote: Quote | None) -> bool:
        """Whether a sentence is the quote, word for word."""
        return quote is not None and self.steps.terms(text) == self.steps.terms(quote.text)

    def _send(self, sentences: list[Grounded]) -> list[Event]:
        assert self.evidence is not None
        self.clock.mark("ttft")
        events: list[Event] = []
        for sentence in sentences:
            if (left := unsaid(sentence, self.evidence, self.written.citations)) is None:
                continue
            known = len(self.written.citations)
            events.append(Token(self.written.add(left)))
            events.extend(Cited(citation) for citation in self.written.citations[known:])
        return events

    async def _sentences(self, llm: str) -> AsyncGenerator[str, None]:
        """The LLM's sentences, each as soon as it is complete.

        Raises StageTimeoutError when the stage's time is up; a sentence that was cut off by it is not given.
        """
        assert self.prompt is not None
        generated = self.steps.generate(self.prompt.messages, model=llm, **self.sampling(llm))
        pieces = self.clock.iterate("generate", generated, self.settings.deadlines.generate_s)
        text, taken = "", 0  # `taken`: where the last sentence given ends
        finish_reason: str | None = None
        async with aclosing(pieces):
            async for piece in pieces:
                text += piece.text
                self.usage = piece.usage or self.usage
                finish_reason = piece.finish_reason or finish_reason
                for start, end in complete_sentences(text, done=False, start=taken):
                    taken = end
                    yield text[start:end]
        for start, end in last_sentences(text, taken, cut=finish_reason == "length"):
            yield text[start:end]

    def _answer(self) -> Answer:
        """Everything as the caller gets it."""
        abstained = self.verdict.decision == "abstain"
        self.clock.timings_ms["total"] = round(self.clock.elapsed_s * 1000, 3)
        return Answer(
            status="abstained" if abstained else "answered",
            answer=self.written.text,
            answer_source=None if abstained else "extracted" if self.written.extracted else "generated",
            reason=self.verdict.reason,
            citations=tuple(self.written.citations),
            unsupported=tuple(self.written.unsupported),
            confidence=self.verdict.confidence,
            degraded=tuple(self.clock.degraded),
            collection=self.question.collection,
            index_version=self.found.index_version,
            model=self.llm,
            usage=self.usage,
            timings_ms=dict(self.clock.timings_ms),
            hits=self.found.hits,
            query=self.query,
            prompt_hash=self.prompt.hash if self.prompt else None,
            dropped=self.dropped,
        )

"""What the models say of the passages' sentences: how well each matches a text, and answers the question."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import DeadlineError
from rag.evidence import JUDGED_PASSAGES, BestSentence, best_sentence
from rag.extract import likeliest, question_relevance, weigh_answerability
from rag.ground import lexical_similarity
from rag.language import understands
from rag.quotes import Evidence
from rag.retrieve import DEGRADABLE, SearchSteps, judge_answerability, score_spans

logger = logging.getLogger(__name__)

# Sentences that the answerability model reads by themselves: of so many it makes quotes as much to the point as answers
# can bear, see eval/MEASURED.md.
LIKELIEST = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """`relevance`: per passage how well each of its sentences answers the question. `sentence`: the scorer's best value
    of one of the first passage; `answerability`: the best log odds that such a one between its neighbours answers, in
    the first JUDGED_PASSAGES; None each where no model said so."""

    relevance: list[np.ndarray]
    sentence: float | None = None
    answerability: float | None = None


async def read_evidence(
    query: str, evidence: Evidence, steps: SearchSteps, settings: Settings, clock: RequestClock
) -> Reading:
    """Reads the sentences for the question that they are to answer; without models by their words."""
    similarity = await match_sentences(query, query, evidence, steps, settings, clock)
    relevance = question_relevance(evidence, similarity)
    by_words = "ground" in clock.degraded or not understands(settings.reranker.languages, query)
    passages = range(0 if by_words else min(JUDGED_PASSAGES, len(similarity)))
    best = [_best_of(evidence, similarity, passage) for passage in passages]
    if not best or best[0] is None:
        return Reading(relevance)
    windows = [one.window for one in best if one is not None]
    places = likeliest(evidence, relevance, LIKELIEST)
    texts = [*windows, *(evidence.sentences[passage][at].claims.text for passage, at in places)]
    judged = await judge_answerability(query, texts, steps, settings, clock)
    if judged is None:
        return Reading(relevance, best[0].score)
    weighed = weigh_answerability(evidence, relevance, places, judged[len(windows) :])
    return Reading(weighed, best[0].score, float(judged[: len(windows)].max()))


async def match_sentences(
    text: str, query: str, evidence: Evidence, steps: SearchSteps, settings: Settings, clock: RequestClock
) -> list[np.ndarray]:
    """Per passage the scorer's value of each sentence for `text`, which is the query or is about it.

    By shared words when the scorer is down (`ground` degraded), and for a query that it does not understand.
    """
    if not understands(settings.reranker.languages, query):
        return await asyncio.to_thread(lexical_similarity, text, evidence, steps.terms)
    # `rerank` is degraded too where only the answerability model failed, and then the scorer has scored the hits.
    unscored = all(passage.hit.scores.rerank is None for passage in evidence.passages)
    if "ground" not in clock.degraded and not ("rerank" in clock.degraded and unscored):
        try:
            hits = [passage.hit for passage in evidence.passages]
            return await clock.run(
                "ground",
                lambda: score_spans(text, hits, evidence.spans, steps.score),
                settings.deadlines.ground_s,
                optional=True,
            )
        except (*DEGRADABLE, DeadlineError) as error:
            logger.warning("grounding by words alone: %s", error, extra={"stage": "ground"})
    clock.leave_out("ground")
    return await asyncio.to_thread(lexical_similarity, text, evidence, steps.terms)


def _best_of(evidence: Evidence, similarity: Sequence[np.ndarray], passage: int) -> BestSentence | None:
    """Of a passage's sentences that may be quoted."""
    scored = zip(evidence.sentences[passage], similarity[passage].tolist(), strict=True)
    kept = [(sentence.span, score) for sentence, score in scored if not sentence.instructs]
    text = evidence.passages[passage].hit.chunk.text
    return best_sentence(text, [span for span, _ in kept], [score for _, score in kept])

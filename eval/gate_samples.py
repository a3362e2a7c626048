"""What passages say about labelled questions, on each scale that the evidence gate judges on.

Each data set is ingested into a store of its own and asked by the service's own retrieval. The scales of stages left
out are had from the same hits, without those stages' scores.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval.dataset import Dataset
from eval.gate_questions import Kind, LabelledQuestion, hide_articles, read_questions, sample_articles
from eval.retrieval import PATIENT_S, Say, evaluation_settings, index_dataset, open_steps
from eval.train_answerability import CARD
from rag.analyze import terms
from rag.clock import RequestClock
from rag.config import Settings
from rag.errors import InputError, StageError
from rag.evidence import JUDGED_PASSAGES, BestSentence, best_sentence, read_features, scale_of
from rag.filters import Not, OneOf
from rag.language import understands
from rag.local_steps import Models
from rag.models import locate_answerability
from rag.retrieve import SearchSteps, judge_answerability, retrieve, score_spans
from rag.sentences import split_sentences
from rag.step_settings import EvidenceFeature, EvidenceScale
from rag.types import Hit, Score

# Of ten questions seven have an answer, one only seems to, two are about something else.
MIX: Mapping[Kind, float] = {"answerable": 0.7, "look-alike": 0.1, "off-corpus": 0.2}
# What may be left out of hits on a scale, and the scale that they are then on.
DEGRADED: Mapping[EvidenceScale, tuple[EvidenceScale, ...]] = {
    "answerability": ("rerank", "dense", "lexical"),
    "rerank": ("dense", "lexical"),
    "words": (),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What a question's passages say on one scale, and whether they hold the answer."""

    dataset: str
    kind: Kind
    article: str
    scale: EvidenceScale
    features: Mapping[EvidenceFeature, float]
    holds: bool


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one scale as arrays, one row each."""

    rows: tuple[Sample, ...]

    @property
    def scale(self) -> EvidenceScale:
        return self.rows[0].scale

    @property
    def holds(self) -> np.ndarray:
        """bool (samples,)"""
        return np.array([one.holds for one in self.rows])

    @property
    def weights(self) -> np.ndarray:
        """float64 (samples,), 1 on average: each kind as MIX says, of those that are there."""
        kinds = np.array([one.kind for one in self.rows])
        raw = sum((kinds == kind) * share / max((kinds == kind).sum(), 1) for kind, share in MIX.items())
        return np.asarray(raw * kinds.size / np.sum(raw))

    def matrix(self, features: Sequence[EvidenceFeature]) -> np.ndarray:
        """float64 (samples, features)"""
        return np.array([[one.features[name] for name in features] for one in self.rows])


def left_out(hits: Sequence[Hit], scale: EvidenceScale) -> list[Hit]:
    """The hits as they would be on a degraded scale, best first: without rerank scores, and `lexical` without dense.

    On `rerank` they are as they are: the answerability model scores no hit.
    """
    if scale == "rerank":
        return list(hits)
    if scale == "lexical":
        found = [hit for hit in hits if hit.scores.lexical is not None]
        bare = [replace(hit, scores=replace(hit.scores, rerank=None, dense=None)) for hit in found]
        return sorted(bare, key=lambda hit: -(hit.scores.lexical or 0.0))
    bare = [replace(hit, scores=replace(hit.scores, rerank=None)) for hit in hits]
    return sorted(bare, key=lambda hit: -(hit.scores.fused or 0.0))


async def find_best_sentences(question: str, hits: Sequence[Hit], score: Score) -> list[BestSentence | None]:
    """Of each of the first JUDGED_PASSAGES the sentence that the reranker scores best; None where there is none."""
    judged = hits[:JUDGED_PASSAGES]
    spans = [split_sentences(hit.chunk.text) for hit in judged]
    if not any(spans):
        return [None for _ in judged]
    scores = await score_spans(question, judged, spans, score)
    return [
        best_sentence(hit.chunk.text, own, row.tolist()) for hit, own, row in zip(judged, spans, scores, strict=True)
    ]


def read_samples(
    dataset: str,
    question: LabelledQuestion,
    hits: Sequence[Hit],
    sentence: float | None,
    answerability: float | None,
    settings: Settings,
) -> Iterator[Sample]:
    """A question's sample on its own scale and on each that a stage left out would bring; none without hits."""
    if not hits:
        return
    understood = understands(settings.reranker.languages, question.text)
    scored, judged = sentence is not None, answerability is not None
    own = scale_of(hits, understood=understood, scored=scored, judged=judged)
    for scale, ranked in ((own, hits), *((one, left_out(hits, one)) for one in DEGRADED[own])):
        kept = ranked[: settings.reranker.top_k]
        if kept:
            features = read_features(question.text, kept, sentence, answerability, split=split_sentences, terms=terms)
            holds = any(hit.source in question.relevant for hit in kept)
            yield Sample(dataset, question.kind, question.article, scale, features, holds)


async def ask_questions(
    dataset: str,
    questions: Sequence[LabelledQuestion],
    collection: str,
    steps: SearchSteps,
    settings: Settings,
    say: Say,
) -> list[Sample]:
    """Every question over the collection that holds its set. Raises StageError for a stage that was left out."""
    samples: list[Sample] = []
    for number, question in enumerate(questions):
        clock = RequestClock(PATIENT_S)
        where = Not(OneOf("source", tuple(sorted(question.hidden)))) if question.hidden else None
        found = await retrieve(question.text, collection, steps, settings, clock, groups=None, where=where)
        if clock.degraded:
            raise StageError(clock.degraded[0], f"failed for {question.text!r}; the log above says why")
        best: list[BestSentence | None] = []
        answerability = None
        if understands(settings.reranker.languages, question.text):
            best = await find_best_sentences(question.text, found.hits, steps.score)
        if best and best[0] is not None:
            windows = [one.window for one in best if one is not None]
            judged = await judge_answerability(question.text, windows, steps, settings, clock)
            answerability = None if judged is None else float(judged.max())
        if clock.degraded:
            raise StageError(clock.degraded[0], f"failed for {question.text!r}; the log above says why")
        sentence = best[0].score if best and best[0] is not None else None
        samples.extend(read_samples(dataset, question, found.hits, sentence, answerability, settings))
        if number % 200 == 0:
            say(f"{dataset}: {number} of {len(questions)} questions")
    return samples


def trained_articles(settings: Settings) -> frozenset[str]:
    """The titles of squad2-a and xquad-en that the answerability adapter in use was trained on, by its card.

    Its other tables have no titles: a set made of them is not known here. Raises InputError.
    """
    adapter = locate_answerability(settings)
    if adapter is None:
        return frozenset()
    card = adapter.path.with_name(CARD)
    try:
        articles = frozenset(json.loads(card.read_text(encoding="utf-8"))["articles"])
        return articles | {name.replace(" ", "_") for name in articles}  # as SQuAD's own files write them
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{card} does not say on which articles the adapter was trained ({error}): a gate fitted on them would be "
            "too sure; train it again, or set evidence.answerability to null"
        ) from error


def collect_samples(
    references: Sequence[str], settings: Settings, say: Say, *, questions: int, articles: int, seed: int
) -> list[Sample]:
    """The samples of every set: at most so many questions of each, and half as many of them off-corpus.

    None is about an article that `trained_articles` names.
    """
    own = evaluation_settings(settings)
    models = Models(own)
    trained = trained_articles(own)
    samples: list[Sample] = []
    for reference in references:
        dataset, labelled = sample_articles(*read_questions(reference), articles, seed, trained)
        chosen = random.Random(seed).sample(labelled, min(questions, len(labelled)))
        chosen += hide_articles(chosen, dataset)[: questions // 2]
        samples += _ask_set(dataset, chosen, own, models, say)
    return samples


def _ask_set(
    dataset: Dataset, questions: Sequence[LabelledQuestion], settings: Settings, models: Models, say: Say
) -> list[Sample]:
    collection = index_dataset(dataset, settings, say)

    async def ask() -> list[Sample]:
        async with open_steps(settings, models) as steps:
            return await ask_questions(dataset.name, questions, collection, steps, settings, say)

    return asyncio.run(ask())


def by_scale(samples: Sequence[Sample]) -> list[Samples]:
    """The samples apart by their scale, in the order in which scales first come."""
    scales = dict.fromkeys(sample.scale for sample in samples)
    return [Samples(tuple(one for one in samples if one.scale == scale)) for scale in scales]

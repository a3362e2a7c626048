"""How well grounding tells what passages support from what is made up, by the product's own grounding."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from eval.claim_pairs import ClaimPair
from eval.confidence import measure_auroc
from eval.metrics import RESAMPLES, SEED, Estimate
from rag.analyze import terms
from rag.config import Settings
from rag.ground import ground_sentence, lexical_similarity, question_relevance, split_evidence
from rag.language import understands
from rag.retrieve import score_spans
from rag.sentences import split_sentences
from rag.types import Passage, Score


@dataclass(frozen=True, slots=True)
class Judged:
    """A sentence's support by the best quote, 0 without one; whether it is supported by the settings' threshold; and
    its length in characters."""

    support: float
    supported: bool
    chars: int


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """The sentences of a pair's two answers, none of a missing one."""

    right: tuple[Judged, ...]
    made_up: tuple[Judged, ...]


async def judge_pair(pair: ClaimPair, score: Score, settings: Settings) -> JudgedPair:
    """Every sentence of both answers, grounded in the pair's passages as the service grounds what an LLM wrote.

    Raises what the scorer raises.
    """
    passages = [Passage(marker, hit) for marker, hit in enumerate(pair.hits, start=1)]
    evidence = await asyncio.to_thread(split_evidence, passages, pair.question, split_sentences, terms)
    understood = understands(settings.reranker.languages, pair.question)

    async def similarity(text: str) -> list[np.ndarray]:
        if not understood:
            return await asyncio.to_thread(lexical_similarity, text, evidence, terms)
        return await score_spans(text, pair.hits, evidence.spans, score)

    relevance = question_relevance(evidence, await similarity(pair.question))

    async def judge(answer: str | None) -> tuple[Judged, ...]:
        found = []
        for sentence in (answer[start:end] for start, end in split_sentences(answer)) if answer else ():
            ground = partial(ground_sentence, sentence, evidence, await similarity(sentence), relevance, terms=terms)
            anything = ground(settings=settings.grounding.model_copy(update={"min_support": 0.0}))
            supported = ground(settings=settings.grounding).quote is not None
            found.append(Judged(anything.support, supported, len(sentence)))
        return tuple(found)

    return JudgedPair(await judge(pair.right), await judge(pair.made_up))


def measure_grounding(judged: Sequence[JudgedPair]) -> dict[str, Any]:
    """The figures of a set's pairs, over `right_sentences` and `made_up_sentences`.

    unsupported_auroc   how often a right sentence has more support than a made-up one, ties half; its 95 % interval
                        is by samples of the pairs, since the sentences of one share their passages
    length_auroc        how often a right one is shorter: as much as that may tell the two forms, and not support
    right_supported     of the right sentences, those that are supported at the threshold
    made_up_supported   the same of the made-up ones

    Raises ValueError where there are not two sentences of either kind.
    """
    right = [one for pair in judged for one in pair.right]
    made_up = [one for pair in judged for one in pair.made_up]
    every = np.arange(len(judged))
    interval = bootstrap(
        (every,),
        lambda chosen: _support_auroc([judged[index] for index in chosen]),
        n_resamples=RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=SEED,
    ).confidence_interval
    return {
        "right_sentences": len(right),
        "made_up_sentences": len(made_up),
        "unsupported_auroc": asdict(Estimate(_support_auroc(judged), float(interval.low), float(interval.high))),
        "length_auroc": _auroc([-one.chars for one in right], [-one.chars for one in made_up]),
        "right_supported": float(np.mean([one.supported for one in right])),
        "made_up_supported": float(np.mean([one.supported for one in made_up])),
    }


def _support_auroc(judged: Sequence[JudgedPair]) -> float:
    return _auroc(
        [one.support for pair in judged for one in pair.right], [one.support for pair in judged for one in pair.made_up]
    )


def _auroc(right: Sequence[float], made_up: Sequence[float]) -> float:
    holds = np.arange(len(right) + len(made_up)) < len(right)
    return measure_auroc(np.array([*right, *made_up], dtype=np.float64), holds).mean

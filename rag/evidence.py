"""Is there enough evidence to answer? A calibrated confidence decides between an answer and an abstention. Pure.

Features of the question and its passages become the chance that the passages hold the answer, by a logistic
regression that `python -m eval.gate fit` fits for each scale that scores may be on:

    answerability  so did a model that was trained to tell whether a text answers a question (rag.answerability)
    rerank         the reranker read question and passages, and then the first passage's sentences
    words          it does not understand the question: the share of the question's words in a passage
    dense          the reranker was left out, or failed at the sentences: cosine similarity
    lexical        so was dense search: BM25, whose values mean nothing across questions
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rag.claims import Claims, Terms, missing_names, missing_numbers, read_claims
from rag.config import Settings
from rag.errors import SettingsError
from rag.step_settings import EvidenceFeature, EvidenceScale, EvidenceSettings, FittedModels
from rag.types import Hit, Span, SplitSentences

# What a scale's regression may use: never a score that hits of this scale need not have.
FEATURES: Mapping[EvidenceScale, tuple[EvidenceFeature, ...]] = {
    # Without the negation: the model reads the question as a whole.
    "answerability": ("rerank", "sentence", "names", "numbers", "answerability"),
    "rerank": ("rerank", "sentence", "names", "numbers", "negation"),
    "words": ("coverage",),
    "dense": ("dense", "coverage", "names", "numbers", "negation"),
    "lexical": ("coverage", "names", "numbers", "negation"),
}
# Of the first so many passages the answerability model reads the best sentence between its neighbours. Two tell more
# than one, see eval/MEASURED.md; three were not tried.
JUDGED_PASSAGES = 2
# Keeps log odds finite: no score is surer than this.
_SUREST = 1e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to answer; `reason` when not. `confidence` (0..1) is None where no scale could judge."""

    decision: Literal["answer", "abstain"]
    reason: Literal["no_documents", "no_evidence"] | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class BestSentence:
    """Of a passage the sentence that the reranker scores best, and `window`: it between its neighbours, which is what
    the answerability model reads."""

    score: float
    window: str


def best_sentence(text: str, spans: Sequence[Span], scores: Sequence[float]) -> BestSentence | None:
    """Of a passage's sentences, in their order, the best one, of several the first; None without any."""
    if not spans:
        return None
    best = max(range(len(spans)), key=lambda index: scores[index])
    around = spans[max(best - 1, 0) : best + 2]
    return BestSentence(scores[best], " ".join(text[start:end] for start, end in around))


def check_fitted(settings: Settings) -> None:
    """Raises SettingsError where a gate would judge by the scores of other models than it was fitted to."""
    evidence = settings.evidence
    if not evidence.min_confidence or evidence.fitted_for is None:
        return
    used = FittedModels(
        embedder=settings.embedder.model,
        reranker=settings.reranker_model,
        # Without the adapter, another scale judges.
        answerability=evidence.answerability or evidence.fitted_for.answerability,
    )
    if used == evidence.fitted_for:
        return
    same_models = used == evidence.fitted_for.model_copy(update={"answerability": used.answerability})
    without = "set RAG_EVIDENCE__ANSWERABILITY=null, and the gate goes without that adapter; or " if same_models else ""
    raise SettingsError(
        f"the evidence gate was fitted to the scores of {_named(evidence.fitted_for)}, not to those of {_named(used)}: "
        f"{without}fit it anew (python -m eval.gate fit, see the README) and put what that writes under `evidence` of "
        "a settings file; or set RAG_EVIDENCE__MIN_CONFIDENCE=0, and no question is refused for want of evidence"
    )


def _named(models: FittedModels) -> str:
    adapter = f" with answerability {models.answerability}" if models.answerability else ""
    return f"embedder {models.embedder}{adapter} and reranker {models.reranker}"


def judge_evidence(
    question: str,
    hits: Sequence[Hit],
    settings: EvidenceSettings,
    *,
    understood: bool,
    sentence: float | None,
    answerability: float | None,
    split: SplitSentences,
    terms: Terms,
) -> Verdict:
    """Abstain without hits (`no_documents`), or with less confidence than `settings.min_confidence` (`no_evidence`).

    `hits` are the passages, best first; `understood`: whether the reranker reads the question's language; `sentence`
    is its best score of a sentence of the first passage, None where it scored none; `answerability`: the best log
    odds that a window of the first JUDGED_PASSAGES answers, None where no model said so. Only the calibration of the
    hits' own scale judges; where it has none, the evidence cannot be judged: answer. A confidence equal to the
    threshold is enough.
    """
    if not hits:
        return Verdict("abstain", "no_documents")
    # A gate that was fitted without the model goes by the reranker alone.
    scored, judged = sentence is not None, answerability is not None and "answerability" in settings.scales
    calibration = settings.scales.get(scale_of(hits, understood=understood, scored=scored, judged=judged))
    if calibration is None:
        return Verdict("answer")
    features = read_features(question, hits, sentence, answerability, split=split, terms=terms)
    log_odds = calibration.intercept + sum(weight * features[name] for name, weight in calibration.weights.items())
    # The logistic function by tanh, which no steep slope makes overflow.
    confidence = 0.5 + 0.5 * math.tanh(0.5 * log_odds)
    if settings.min_confidence is None or confidence >= settings.min_confidence:
        return Verdict("answer", confidence=confidence)
    return Verdict("abstain", "no_evidence", confidence)


def scale_of(hits: Sequence[Hit], *, understood: bool, scored: bool, judged: bool) -> EvidenceScale:
    """The scale that the hits are on; see the module.

    `understood`: whether the reranker reads the question; `scored`: whether it scored a sentence of the first passage;
    `judged`: whether the answerability model read that.
    """
    if not understood:
        return "words"
    if scored and any(hit.scores.rerank is not None for hit in hits):
        return "answerability" if judged else "rerank"
    return "dense" if any(hit.scores.dense is not None for hit in hits) else "lexical"


def read_features(
    question: str,
    hits: Sequence[Hit],
    sentence: float | None,
    answerability: float | None,
    *,
    split: SplitSentences,
    terms: Terms,
) -> dict[EvidenceFeature, float]:
    """What the gate knows of a question and its passages, best first, one at least.

    rerank      log odds of the best rerank score, 0 without any
    sentence    the reranker's best score of a sentence of the first passage, 0 without one
    dense       the best cosine similarity, 0 without any
    coverage    the largest share of the question's distinct terms that one passage holds, 0..1
    names       how many of the question's names are neither in the first passage nor in its heading and title
    numbers     how many of the question's numbers the first passage does not mention
    negation    1 where the question negates and the passages' sentence that shares most terms with it does not
    answerability  the model's best log odds that a best sentence between its neighbours answers, 0 without it
    """
    asked = read_claims(question, terms)
    first = hits[0].chunk.text
    held = [frozenset(terms(f"{hit.chunk.heading}\n{hit.chunk.text}")) for hit in hits]
    shared = max(len(asked.terms & one) for one in held)
    label = f"{hits[0].chunk.heading}\n{hits[0].title}"
    return {
        "rerank": _log_odds(max((hit.scores.rerank for hit in hits if hit.scores.rerank is not None), default=0.5)),
        "sentence": sentence or 0.0,
        "dense": max((hit.scores.dense for hit in hits if hit.scores.dense is not None), default=0.0),
        "coverage": shared / len(asked.terms) if asked.terms else 0.0,
        "names": float(len(missing_names(asked.names, f"{first}\n{label}"))),
        "numbers": float(len(missing_numbers(asked, read_claims(first, terms)))),
        "negation": float(asked.negated and not _nearest(asked, hits, split, terms).negated),
        "answerability": answerability or 0.0,
    }


def _nearest(asked: Claims, hits: Sequence[Hit], split: SplitSentences, terms: Terms) -> Claims:
    """The claims of the sentence that shares most terms with the question; of several the first."""
    texts = (hit.chunk.text[start:end] for hit in hits for start, end in split(hit.chunk.text))
    nearest = max(texts, key=lambda text: len(asked.terms & frozenset(terms(text))), default="")
    return read_claims(nearest, terms)


def _log_odds(score: float) -> float:
    within = min(max(score, _SUREST), 1 - _SUREST)
    return math.log(within / (1 - within))

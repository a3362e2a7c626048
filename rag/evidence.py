"""Is there enough evidence to answer? A calibrated score decides between an answer and an abstention. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rag.step_settings import EvidenceSettings
from rag.types import Hit


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to answer; `reason` when not. `confidence` (0..1) is None where no scale could judge."""

    decision: Literal["answer", "abstain"]
    reason: Literal["no_documents", "no_evidence"] | None = None
    confidence: float | None = None


def judge_evidence(hits: Sequence[Hit], settings: EvidenceSettings) -> Verdict:
    """Abstain without hits (`no_documents`), or when the best hit is below its scale's threshold (`no_evidence`).

    The rerank threshold judges rerank scores only. Where the hits have none (the stage was left out) or that threshold
    is not set, the dense threshold judges dense scores. Where no scale has both, the evidence cannot be judged: answer.
    A score equal to its threshold is enough.
    """
    if not hits:
        return Verdict("abstain", "no_documents")
    scales = (
        (settings.min_rerank, [hit.scores.rerank for hit in hits]),
        (settings.min_dense, [hit.scores.dense for hit in hits]),
    )
    for threshold, scores in scales:
        best = max((score for score in scores if score is not None), default=None)
        if threshold is None or best is None:
            continue
        confidence = min(max(best, 0.0), 1.0)
        if best >= threshold:
            return Verdict("answer", confidence=confidence)
        return Verdict("abstain", "no_evidence", confidence)
    return Verdict("answer")

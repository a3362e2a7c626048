"""The evidence gate: which scale judges, and what happens at its threshold."""

import pytest

from rag.evidence import Verdict, judge_evidence
from rag.step_settings import EvidenceSettings
from rag.types import Chunk, Hit, Scores


def hit(rerank: float | None = None, dense: float | None = None, fused: float | None = None) -> Hit:
    scores = Scores(dense=dense, fused=fused, rerank=rerank)
    return Hit(Chunk("c", "d", "r", 0, "text", 0, 4), "Title", "s.md", 0.0, scores)


BOTH = EvidenceSettings(min_rerank=0.5, min_dense=0.3)
RERANK_ONLY = EvidenceSettings(min_rerank=0.5)
NONE = EvidenceSettings()


def answer(confidence: float | None) -> Verdict:
    return Verdict("answer", None, confidence)


def abstain(confidence: float | None) -> Verdict:
    return Verdict("abstain", "no_evidence", confidence)


CASES = {
    "above": ([hit(rerank=0.7)], BOTH, answer(0.7)),
    "equal_is_enough": ([hit(rerank=0.5)], BOTH, answer(0.5)),
    "below": ([hit(rerank=0.4999)], BOTH, abstain(0.4999)),
    "best_of_all_counts": ([hit(rerank=0.1), hit(rerank=0.8), hit()], BOTH, answer(0.8)),
    "rerank_judges_alone_when_it_ran": ([hit(rerank=0.4, dense=0.9)], BOTH, abstain(0.4)),
    "dense_judges_when_rerank_was_left_out": ([hit(dense=0.4)], BOTH, answer(0.4)),
    "rerank_threshold_never_judges_dense": ([hit(dense=0.4)], RERANK_ONLY, answer(None)),
    "dense_below": ([hit(dense=0.2, fused=0.9)], BOTH, abstain(0.2)),
    "dense_judges_without_a_rerank_threshold": (
        [hit(rerank=0.1, dense=0.4)],
        EvidenceSettings(min_dense=0.3),
        answer(0.4),
    ),
    "lexical_hits_only_cannot_be_judged": ([hit(fused=0.1)], BOTH, answer(None)),
    "no_threshold": ([hit(rerank=0.01, dense=0.01)], NONE, answer(None)),
    "confidence_stays_within_0_and_1": ([hit(dense=-0.4)], EvidenceSettings(min_dense=-0.5), answer(0.0)),
    "no_hits": ([], BOTH, Verdict("abstain", "no_documents", None)),
    "no_hits_and_no_threshold": ([], NONE, Verdict("abstain", "no_documents", None)),
}


@pytest.mark.parametrize(("hits", "settings", "expected"), CASES.values(), ids=CASES.keys())
def test_verdict(hits: list[Hit], settings: EvidenceSettings, expected: Verdict) -> None:
    assert judge_evidence(hits, settings) == expected
